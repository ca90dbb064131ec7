"""Orthogonalization by Newton–Schulz iterations (kellerjordan.github.io/posts/muon; SPEC §6, §7).

Buffers are reused, so nothing here is differentiable: torch raises an error if a gradient is required.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.ops.iteration import Triple
from pylo_zoo.ops.iteration import iterate as _iterate
from pylo_zoo.ops.precision import NsDtype, resolve_precision
from pylo_zoo.ops.product import ProductsFor, torch_products
from pylo_zoo.ops.stacks import Shape, join_shapes, stack_limit, stacked

Coefficients = str | Sequence[float] | Sequence[Sequence[float]]
"""The name of a preset, one triple, or several triples."""

COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    # kellerjordan.github.io/posts/muon: the steepest slope at 0; values end up spread around 1
    "original": ((3.4445, -4.7750, 2.0315),),
    # leloykun.github.io/ponder/muon-opt-coeffs: a separate triple for each of five iterations
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Polar Express, arXiv 2505.16932: each triple is optimal for the output of the previous one; the last fixes x = 1
    "polar_express": (
        (8.237312490495555, -23.157747414558198, 16.680568411445915),
        (4.082441999064835, -2.893047735332586, 0.5252849256975648),
        (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
        (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
        (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
        (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
        (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
        (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
    ),
    # the same with a wider margin for rounding
    "polar_express_safer": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
        (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
        (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
        (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
        (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
        (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
        (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
    ),
}
"""Presets by name, with one triple per iteration (SPEC §7)."""

MAX_STEPS = 100
"""Maximum number of iterations; 5 to 10 are common."""


def newton_schulz(
    matrices: Tensor,
    coefficients: Sequence[Triple],
    eps: float,
    *,
    dtype: NsDtype = None,
    products_for: ProductsFor = torch_products,
) -> Tensor:
    """Move the singular values of each matrix toward 1, as CELO2 does (SPEC §6).

    Args:
        matrices: ``[*batch, rows, columns]``.
        coefficients: one triple per iteration.
        eps: added to the Frobenius norm that each matrix is divided by first.
        dtype: precision of the iterations (:func:`~pylo_zoo.ops.precision.resolve_precision`).
        products_for: chooses the matrix products.

    Returns:
        A tensor of the same shape and dtype.
    """
    return newton_schulz_all([matrices], coefficients, eps, dtype=dtype, products_for=products_for)[0]


def newton_schulz_all(
    matrices: Sequence[Tensor],
    coefficients: Sequence[Triple],
    eps: float,
    *,
    dtype: NsDtype = None,
    products_for: ProductsFor = torch_products,
) -> list[Tensor]:
    """:func:`newton_schulz` for many tensors. Matrices of equal shape, up to transposition, are iterated in stacks."""

    def scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.div(x, _frobenius(x, x.dtype).add_(eps), out=x.new_empty(x.shape, dtype=dtype))

    return _in_stacks(matrices, coefficients, scaled, dtype, products_for)


def orthogonalize(
    matrices: Tensor,
    coefficients: Sequence[Triple],
    *,
    eps: float = 1e-7,
    safety_factor: float = 1.0,
    dtype: NsDtype = torch.bfloat16,
    products_for: ProductsFor = torch_products,
) -> Tensor:
    """Move the singular values of each matrix toward 1, as Muon does (SPEC §7).

    Each matrix is first divided by ``max(‖X‖_F · safety_factor, eps)``, in float32 or wider, so that the iterations in
    a narrow dtype neither overflow nor underflow.

    Args:
        matrices: ``[*batch, rows, columns]``.
        coefficients: one triple per iteration, as :func:`resolve_coefficients` returns them.
        eps: smallest divisor. A matrix of zeros stays zero.
        safety_factor: a margin for rounding. 1.01 is usual with the Polar Express presets.
        dtype: precision of the iterations (:func:`~pylo_zoo.ops.precision.resolve_precision`).
        products_for: chooses the matrix products.

    Returns:
        A tensor of the matrices' shape and dtype, close to ``U·Vᵀ`` of ``X = U·S·Vᵀ``.
    """
    options: Any = {"eps": eps, "safety_factor": safety_factor, "dtype": dtype, "products_for": products_for}
    return orthogonalize_all([matrices], coefficients, **options)[0]


def orthogonalize_all(
    matrices: Sequence[Tensor],
    coefficients: Sequence[Triple],
    *,
    eps: float = 1e-7,
    safety_factor: float = 1.0,
    dtype: NsDtype = torch.bfloat16,
    products_for: ProductsFor = torch_products,
) -> list[Tensor]:
    """:func:`orthogonalize` for many tensors. Matrices of equal shape, up to transposition, are iterated in stacks."""

    def scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(torch.promote_types(x.dtype, dtype), torch.float32)
        norm = _frobenius(x, wide)
        divisor = (norm if safety_factor == 1 else norm.mul_(safety_factor)).clamp_(min=eps)
        return torch.div(x, divisor, out=x.new_empty(x.shape, dtype=dtype))

    return _in_stacks(matrices, coefficients, scaled, dtype, products_for)


def resolve_coefficients(coefficients: Coefficients, steps: int) -> tuple[Triple, ...]:
    """One triple for each of ``steps`` iterations (SPEC §7).

    Args:
        coefficients: the name of a preset (:data:`COEFFICIENTS`), one triple ``(a, b, c)``, or a sequence of triples.
        steps: number of iterations. A longer list of triples is truncated; a shorter one repeats its last triple.

    Raises:
        ZooError: an unknown preset, no triples, a triple that is not three finite numbers, or ``steps`` outside 1 to
            :data:`MAX_STEPS`.
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MAX_STEPS:
        hint = f"Use a whole number of iterations from 1 to {MAX_STEPS}; 5 is usual."
        raise ZooError(f"ns_steps is {quoted(steps)}.", hint)
    triples = _triples(coefficients)
    return (*triples, *[triples[-1]] * (int(steps) - len(triples)))[: int(steps)]


def _triples(coefficients: Any) -> tuple[Triple, ...]:
    if isinstance(coefficients, str):
        if coefficients not in COEFFICIENTS:
            message = f"Unknown coefficient preset {quoted(coefficients)}."
            raise ZooError(message, f"Use one of {', '.join(COEFFICIENTS)}.")
        return COEFFICIENTS[coefficients]
    usage = 'Use a preset such as "quintic", one triple (a, b, c), or a sequence of triples.'
    if not isinstance(coefficients, Sequence) or not coefficients:
        raise ZooError(f"ns_coefficients is {quoted(coefficients)}.", usage)
    triples = [coefficients] if all(isinstance(each, Real) for each in coefficients) else coefficients
    for triple in triples:
        numbers = isinstance(triple, Sequence) and all(map(is_finite_number, triple))
        if not numbers or len(triple) != 3:
            raise ZooError(f"ns_coefficients has {quoted(triple)}, which is not three finite numbers.", usage)
    return tuple((float(a), float(b), float(c)) for a, b, c in triples)


def is_finite_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number within a float's range, and not a bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _frobenius(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=dtype)


def _in_stacks(
    tensors: Sequence[Tensor],
    coefficients: Sequence[Triple],
    scaled: Callable[[Tensor, torch.dtype], Tensor],
    ns_dtype: NsDtype,
    products_for: ProductsFor,
) -> list[Tensor]:
    """Iterate every matrix of ``[*batch, rows, columns]`` tensors with rows ≤ columns, equal shapes in stacks.

    ``scaled`` returns a contiguous copy of a matrix or stack in a dtype, divided by its norm.
    """
    all_matrices = [list(_wide(each).flatten(0, -3) if each.ndim > 2 else [_wide(each)]) for each in tensors]
    kinds: dict[tuple[torch.dtype, torch.device], dict[Shape, list[tuple[int, int]]]] = {}
    for number, matrices in enumerate(all_matrices):
        for index, x in enumerate(matrices):
            shapes = kinds.setdefault((x.dtype, x.device), {})
            shapes.setdefault((x.shape[0], x.shape[1]), []).append((number, index))
    for (dtype, device), shapes in kinds.items():
        precision = resolve_precision(ns_dtype, dtype, device)
        products = products_for(device, precision)
        counts = {shape: len(places) for shape, places in shapes.items()}
        for largest, members in join_shapes(counts, device).items():
            shape = products.padded(*largest)
            places = [place for member in members for place in shapes[member]]
            most = max(1, stack_limit(device, precision) // max(1, shape[0] * shape[1]))
            for start in range(0, len(places), most):
                part = places[start : start + most]
                matrices = [all_matrices[number][index] for number, index in part]
                x = _iterate(scaled(stacked(matrices, shape), precision.dtype), coefficients, products).to(dtype)
                for (number, index), before, after in zip(part, matrices, [x] if x.ndim == 2 else x, strict=True):
                    rows, columns = before.shape
                    all_matrices[number][index] = after if after.shape == before.shape else after[:rows, :columns]
    return [_from_wide(matrices, each) for matrices, each in zip(all_matrices, tensors, strict=True)]


def _is_tall(matrices: Tensor) -> bool:
    return matrices.shape[-2] > matrices.shape[-1]


def _wide(matrices: Tensor) -> Tensor:
    return matrices.mT if _is_tall(matrices) else matrices


def _from_wide(matrices: Sequence[Tensor], like: Tensor) -> Tensor:
    """Stack, transpose and cast wide matrices back to the shape and dtype of ``like``."""
    if like.ndim == 2:
        return (matrices[0].mT if _is_tall(like) else matrices[0]).to(like.dtype)
    x = torch.stack(list(matrices)) if matrices else like.new_empty(0)
    return (x.reshape(_wide(like).shape).mT if _is_tall(like) else x.reshape(like.shape)).to(like.dtype)
