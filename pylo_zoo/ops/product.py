"""Matrix products: of Newton–Schulz iterations, and of large float32 matrices on a CPU with the faster library.

By default torch uses Intel's MKL on a CPU, whose AVX-512 products run only on Intel processors. oneDNN has them for
all: on a Zen 5 it takes half the time for sides of 500 and more, with the same error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pylo_zoo.ops.precision import Precision

WORTHWHILE = 256
"""The shortest side for which oneDNN is faster, including its copies."""


class Products(Protocol):
    """The matrix products of a Newton–Schulz iteration, of one precision on one kind of device."""

    rounds_operands: bool
    """Whether a product rounds operands that are stored with more digits, as TF32 does."""
    ratio: float
    """Smallest columns / rows for which iterating the Gram matrix takes less time."""
    side: int
    """Smallest number of rows for the same."""

    def padded(self, rows: int, columns: int) -> tuple[int, int]:
        """The sizes to which matrices should be padded with zeros, which does not change their iteration."""
        ...

    def symmetric(
        self,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        alpha: float = 1.0,
        terms: Sequence[tuple[float, Tensor]] = (),
        identity: float = 0.0,
    ) -> Tensor:
        """``alpha·x·yᵀ + Σ factor·term + identity·I``, which the caller knows to be symmetric.

        Args:
            x, y: ``[*batch, n, k]``, contiguous, with at most one batch axis.
            out: memory ``[*batch, n, n]`` that may hold the result, contiguous, not an operand.
            alpha: a factor.
            terms: at most two factors and symmetric matrices ``[*batch, n, n]``.
            identity: the factor of the identity matrix.

        Returns:
            The result, in ``out`` or in new memory.
        """
        ...

    def apply(self, q: Tensor, x: Tensor, out: Tensor, beta: float) -> Tensor:
        """``q·x + beta·x`` of a symmetric ``q [*batch, n, n]`` and ``x [*batch, n, m]``; ``out`` as above."""
        ...


ProductsFor = Callable[[torch.device, Precision], Products]
"""Chooses the products for a device and a precision."""


class TorchProducts:
    """:class:`Products` by torch, which computes both halves of symmetric results.

    On a CPU, half of a product in block rows takes 0.7 to 0.9 of the time of all of it for float32 sides of 1024 on one
    thread, but more time on two, in 16 bits, and for smaller sides (benchmarks/newton_schulz_parts.py).
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.rounds_operands = precision.tf32
        self.ratio, self.side = GRAM.get(device.type, GRAM_ELSEWHERE)
        if device.type == "cpu" and precision.dtype.itemsize < 4:
            self.ratio, self.side = NARROW_GRAM
        # Only float32 products on CUDA depend on torch's global setting.
        self._fp32 = None
        if device.type == "cuda" and precision.dtype == torch.float32:
            self._fp32 = "tf32" if precision.tf32 else "ieee"

    def padded(self, rows: int, columns: int) -> tuple[int, int]:
        """The same sizes: torch's products need no padding."""
        return rows, columns

    def symmetric(
        self,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        alpha: float = 1.0,
        terms: Sequence[tuple[float, Tensor]] = (),
        identity: float = 0.0,
    ) -> Tensor:
        """:meth:`Products.symmetric`."""
        if x.ndim == 2 and by_onednn(x, y):
            out = product(x, y)
            out = out if alpha == 1 else out.mul_(alpha)
        else:
            factor, first = terms[0] if terms else (0.0, out)
            self._add_product(first, x, y.mT, factor, alpha, out)
            terms = terms[1:]
        for factor, term in terms:
            out.add_(term, alpha=factor)
        if identity:
            out.diagonal(dim1=-2, dim2=-1).add_(identity)
        return out

    def apply(self, q: Tensor, x: Tensor, out: Tensor, beta: float) -> Tensor:
        """:meth:`Products.apply`."""
        if x.ndim == 2 and by_onednn(q, x):
            result = product(q, x.T)
            return result.add_(x, alpha=beta) if beta else result
        return self._add_product(x, q, x, beta, 1.0, out)

    def _add_product(self, term: Tensor, x: Tensor, y: Tensor, beta: float, alpha: float, out: Tensor) -> Tensor:
        """torch's fused multiply-add reads and writes each matrix once, and in 16 bits rounds once."""
        add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
        if self._fp32 is None or torch.compiler.is_compiling():
            return add_product(term, x, y, beta=beta, alpha=alpha, out=out)
        with fp32_precision(self._fp32):
            return add_product(term, x, y, beta=beta, alpha=alpha, out=out)


GRAM = {"cpu": (3.0, 64)}
"""Smallest aspect ratio and number of rows for which the Gram matrix is iterated, by device type. Measured on a CPU
(benchmarks/newton_schulz_parts.py): 0.9 to 0.8 of the time at this ratio."""
GRAM_ELSEWHERE = (2.0, 128)
"""The same for torch's products on other devices, computed: 8 % fewer operations at this ratio."""
NARROW_GRAM = (4.0, 256)
"""The same in 16 bits on a CPU, whose small products take no less time than larger ones."""


def torch_products(device: torch.device, precision: Precision) -> Products:
    """:class:`TorchProducts`."""
    return TorchProducts(precision, device)


@contextmanager
def fp32_precision(value: str) -> Iterator[None]:
    """Set the precision of torch's float32 products on CUDA, ``"ieee"`` or ``"tf32"``, and restore it.

    The setting belongs to the process: another thread that starts a product at the same time may get this precision.
    """
    matmul: Any = torch.backends.cuda.matmul
    name, wanted = ("fp32_precision", value) if hasattr(matmul, "fp32_precision") else ("allow_tf32", value == "tf32")
    before = getattr(matmul, name)  # torch before 2.9 has only allow_tf32, and later versions reject a mix of both
    setattr(matmul, name, wanted)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def by_onednn(*matrices: Tensor) -> bool:
    """Whether :func:`product` uses oneDNN for these matrices."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in matrices)
        and min(side for x in matrices for side in x.shape) >= WORTHWHILE
        and not torch.compiler.is_compiling()
        and _is_faster()
    )


def product(x: Tensor, w: Tensor) -> Tensor:
    """``x·wᵀ`` of ``x [m, k]`` and ``w [n, k]``: ``[m, n]``, in their dtype. Not differentiable."""
    if not by_onednn(x, w):
        return x @ w.T
    return torch.nn.functional.linear(x.to_mkldnn(), w).to_dense()


@functools.cache
def _is_faster() -> bool:
    """Whether oneDNN is faster here. Measured only on AMD processors with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
