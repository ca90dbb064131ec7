"""Error bounds from rounding: counted (:func:`gamma`), or simulated if errors are amplified (:func:`simulate`).

Neither depends on the processor: a bound is a property of the formula and of the precision.

:func:`gamma` is the worst case for a value that at most n roundings affect (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., Lemma 3.1). It fits sums and products. An optimizer's step divides by norms and passes through a
network, where terms cancel and errors grow by factors that depend on the values. :func:`simulate` therefore runs the
eager implementation in float64 and displaces the result of every operation by its rounding error in the precision under
test, with random signs (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997). The distance of such runs from the
undisturbed run bounds the effect of another operation order, instruction set or library.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SAFETY = 4
"""Safety factor over the largest simulated error. Simulated roundings all have the maximal size u; real ones are spread
evenly up to it, with a root mean square of at most u/√3. A factor of four is then seven standard deviations."""

FUNCTION = 4
"""Roundoff units per division, root, exponential or hyperbolic tangent: vector libraries and GPUs document results
within two units in the last place, which is four units of roundoff."""


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff: the largest relative error of one rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def gamma(roundings: int, dtype: torch.dtype) -> float:
    """Largest relative error of a value that ``roundings`` roundings affect in sequence: ``n·u / (1 − n·u)``."""
    product = roundings * unit(dtype)
    assert product < 1
    return product / (1 - product)


def one_rounding(x: Tensor, dtype: torch.dtype) -> Tensor:
    """At most half the distance between neighbors in ``dtype`` around ``x``; constant below the normal numbers."""
    return unit(dtype) * x.abs().clamp(min=torch.finfo(dtype).smallest_normal)


def additions(terms: int) -> int:
    """Sequential additions that a term of a sum passes: all of them in a short sum, lanes and blocks in a long one.

    Torch and the kernels cut long sums into blocks. The longest chain is shortest for √n blocks of √n terms, and no
    summation here uses fewer or larger blocks than twice that.
    """
    return max(1, min(terms - 1, 4 * math.isqrt(terms)))


def _sum_size(terms: int, absolute: Tensor) -> Tensor:
    """Error of a sum in units of roundoff: errors of random sign grow with the root of their number.

    Higham and Mary, SIAM J. Sci. Comput. 41 (2019) A2815: ``√n·u·Σ|x|`` instead of the worst case ``n·u·Σ|x|``.
    """
    return math.sqrt(additions(terms) + 1) * absolute


def _over(x: Tensor, dim: Any) -> int:
    dims = range(x.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return math.prod(x.shape[k] for k in dims)


def _reduced(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = list(range(x.ndim)) if dim is None or dim == [] else dim
    return _sum_size(_over(x, dim), x.abs().mean(dim=dims, keepdim=keepdim))


def _summed(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = list(range(x.ndim)) if dim is None or dim == [] else dim
    return _sum_size(_over(x, dim), x.abs().sum(dim=dims, keepdim=keepdim))


def _norm(x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return _sum_size(_over(x, dim), torch.linalg.vector_norm(x, ord, dim, keepdim))


def _product(x: Tensor, y: Tensor, **_: Any) -> Tensor:
    return _sum_size(x.shape[-1], x.abs() @ y.abs())


def _added_product(bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1, **_: Any) -> Tensor:
    return abs(beta) * bias.abs() + abs(alpha) * _product(x, y)


def _added(_: Tensor, x: Tensor, y: Tensor, value: float = 1, **__: Any) -> Tensor:
    return 2 * abs(value) * (x * y).abs()


def _divided(_: Tensor, x: Tensor, y: Tensor, value: float = 1, **__: Any) -> Tensor:
    return 2 * abs(value) * (x / y).abs()


def _scaled_sum(x: Tensor, y: Any, *, alpha: float = 1, **_: Any) -> Tensor | float:
    return abs(y * alpha) if alpha != 1 else 0.0


def _interpolated(x: Tensor, end: Tensor, weight: Any, **_: Any) -> Tensor:
    return 2 * (weight * (end - x)).abs()


def _tanh_backward(gradient: Tensor, y: Tensor, **_: Any) -> Tensor:
    return gradient.abs()  # 1 − y² rounds with the error of 1


def _moments(x: Tensor, dim: Any = None, keepdim: bool = False, **more: Any) -> tuple[Tensor, Tensor]:
    dims = list(range(x.ndim)) if dim is None or dim == [] else dim
    variance, mean = torch.var_mean(x, dims, keepdim=keepdim, correction=more.get("correction", 1))
    # A variance is a mean of squares minus a squared mean, in any order.
    return _sum_size(_over(x, dim), variance + mean.square()), _reduced(x, dim, keepdim)


EXACT = frozenset(
    [
        "abs",
        "alias",
        "all",
        "amax",
        "amin",
        "any",
        "arange",
        "argmax",
        "argmin",
        "as_strided",
        "bitwise_and",
        "bitwise_not",
        "cat",
        "chunk",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "constant_pad_nd",
        "contiguous",
        "copy",
        "cumsum",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "eq",
        "expand",
        "eye",
        "fill",
        "flip",
        "floor",
        "full",
        "full_like",
        "ge",
        "gt",
        "index",
        "index_select",
        "is_leaf",
        "is_same_size",
        "isfinite",
        "isinf",
        "isnan",
        "item",
        "le",
        "lift_fresh",
        "linalg_svd",
        "local_scalar_dense",
        "logical_and",
        "logical_not",
        "logical_or",
        "lt",
        "masked_fill",
        "max",
        "maximum",
        "min",
        "minimum",
        "nan_to_num",
        "narrow",
        "native_dropout",
        "ne",
        "neg",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "normal",
        "ones",
        "ones_like",
        "permute",
        "promote_types",
        "rand",
        "randint",
        "randn",
        "record_function_enter_new",
        "record_function_exit",
        "relu",
        "repeat",
        "reshape",
        "resize",
        "scalar_tensor",
        "select",
        "set",
        "set_data",
        "sign",
        "slice",
        "sort",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "t",
        "threshold_backward",
        "to",
        "to_copy",
        "transpose",
        "unbind",
        "unfold",
        "uniform",
        "unsafe_view",
        "unsqueeze",
        "view",
        "where",
        "zero",
        "zeros",
        "zeros_like",
    ]
)
"""Operations that do not round. (``to_copy`` only widens in a simulated run.)"""

ROUNDED: Mapping[str, tuple[float, Callable[..., Any] | None]] = {
    **dict.fromkeys(("mul", "square"), (1, None)),
    **dict.fromkeys(("add", "sub", "rsub"), (1, _scaled_sum)),
    **dict.fromkeys(("div", "reciprocal", "rsqrt", "sqrt", "exp", "log", "log1p", "tanh", "sigmoid"), (FUNCTION, None)),
    **dict.fromkeys(("pow", "expm1", "log10", "softmax", "erf", "cos", "sin"), (FUNCTION, None)),
    "addcmul": (1, _added),
    "addcdiv": (1, _divided),
    "lerp": (1, _interpolated),
    "mean": (1, _reduced),
    "sum": (0, _summed),
    "linalg_vector_norm": (FUNCTION, _norm),
    "mm": (0, _product),
    "bmm": (0, _product),
    "mv": (0, _product),
    "addmm": (0, _added_product),
    "baddbmm": (0, _added_product),
    "var_mean": (1, _moments),
    "tanh_backward": (2, _tanh_backward),
    "linspace": (2, None),
}
"""Per operation: its error in units of roundoff of the result, and of its terms."""


class Roundings(TorchDispatchMode):
    """Displaces every operation's result by its rounding error in ``dtype``, with random signs.

    Raises:
        LookupError: an operation whose rounding is not in the table.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.mix = random.Random(seed).getrandbits(62) | 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = _rounding(func)
        if known is None:
            return func(*args, **kwargs)
        units, of_terms, lists = known
        more = [_sizes(of_terms, args, kwargs, lists)] if of_terms else []
        out = func(*args, **kwargs)
        results = out if isinstance(out, (list, tuple)) else args[0] if out is None else [out]
        terms = more[0] if more and isinstance(more[0], (list, tuple)) else more * len(results)
        for k, result in enumerate(results):
            counter = result.ndim == 0 and result.is_floating_point() and result.item().is_integer()  # exact
            if result.is_floating_point() and result.numel() and not counter:
                self._displace(result, units, terms[k] if terms else None)
        return out

    def _displace(self, result: Tensor, units: float, terms: Any) -> None:
        # In the same precision, a displacement by u is lost in rounding to even; a displacement by 2u is not.
        scale = unit(self.dtype) * (2 if result.dtype == self.dtype else 1)
        signs = _signs(result, self.mix).to(result)
        if terms is not None:
            size = units * result.abs() + terms
            result.add_(torch.where(size.isfinite(), signs * size, 0), alpha=scale)
        else:
            result.mul_((signs * (units * scale)).add_(1))


@functools.cache
def _rounding(func: Any) -> tuple[float, Callable[..., Any] | None, bool] | None:
    """Roundoff units of the result, of its terms, and whether it operates on lists; None if it is exact."""
    name = func.overloadpacket.__name__
    op = name.removeprefix("_foreach_").strip("_")
    if op in ROUNDED:
        return *ROUNDED[op], name.startswith("_foreach_")
    if op in EXACT:
        return None
    raise LookupError(f"{name}: its rounding is not in the table.")


def _signs(values: Tensor, mix: int) -> Tensor:
    """Random signs that depend only on the values: the same operation on the same numbers rounds the same way twice.

    VeLO subtracts a running minimum from an average that often equals the minimum; their roundings must cancel.
    """
    bits = values.double().view(torch.int64)
    return ((bits * mix) >> 63).mul_(2).add_(1).double()


def _sizes(of_terms: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], lists: bool) -> Any:
    if not lists:
        return of_terms(*args, **kwargs)
    many = len(args[0])
    each = [arg if isinstance(arg, (list, tuple)) else [arg] * many for arg in args]
    return [of_terms(*(arg[k] for arg in each), **kwargs) for k in range(many)]


class Simulation(NamedTuple):
    """A run with its simulated displacements."""

    truth: list[Tensor]
    draws: list[list[Tensor]]

    def distance(self, k: int, norm: float = math.inf) -> float:
        """:data:`SAFETY` times the largest norm of a displacement of result ``k``, finite elements only."""
        return SAFETY * max(size(draw[k] - self.truth[k], norm) for draw in self.draws)


def size(x: Tensor, norm: float = math.inf) -> float:
    """A norm of the finite elements of ``x``; 0 if it has none."""
    finite = x.detach().double()[x.isfinite()]
    return torch.linalg.vector_norm(finite, norm).item() if finite.numel() else 0.0


def draws_for(elements: int) -> int:
    """Number of simulated runs: a small result needs more, since its few elements may all be displaced little."""
    return 4 if elements < 1000 else 2 if elements < 10_000 else 1


def simulate(run: Callable[[], Sequence[Tensor]], dtype: torch.dtype = torch.float32, draws: int = 4) -> Simulation:
    """Run ``run`` undisturbed, and ``draws`` times with the roundings of ``dtype``.

    Args:
        run: computes in float64, from copies of its inputs, and returns tensors.
        dtype: the precision whose roundings are simulated.
        draws: number of simulated runs.
    """

    def copies() -> list[Tensor]:
        return [each.detach().double() for each in run()]

    truth, runs = copies(), []
    for seed in range(draws):
        with Roundings(dtype, seed):
            runs.append([each.detach() for each in run()])
    return Simulation(truth, [[each.double() for each in one] for one in runs])
