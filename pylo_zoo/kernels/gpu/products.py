"""Newton–Schulz's products on a GPU: half of each symmetric result, in a precision that no global setting changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.gpu import symmetric
from pylo_zoo.kernels.gpu.launch import launch
from pylo_zoo.kernels.gpu.records import ceil_div
from pylo_zoo.ops.precision import Precision, has_tf32
from pylo_zoo.ops.product import TorchProducts

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRAM = (1.5, 128)
"""Smallest aspect ratio and number of rows for which the Gram matrix is iterated. Computed, not measured: with half
products, five iterations take 11 % fewer operations at this ratio, and as many at 1."""
NARROW_SIDE = 128
"""Smallest number of rows in 16 bits for which the kernel runs instead of torch's batched product."""
SMALL, LARGE = 64, 128
"""Sides of a tile."""
LARGE_SIDE = 512
"""Smallest number of rows for which tiles are large."""


class TritonProducts(TorchProducts):
    """:class:`~pylo_zoo.ops.product.Products` by Triton: float32, TF32 and 16-bit matrices on one GPU.

    ``"float32"`` runs as three TF32 products if the GPU has TF32, with an error near float32's.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        super().__init__(precision, device)
        self.ratio, self.side = GRAM
        self.input_precision = "ieee"
        if precision.dtype == torch.float32:
            self.input_precision = "tf32" if precision.tf32 else "tf32x3" if has_tf32(device) else "ieee"

    def padded(self, rows: int, columns: int) -> tuple[int, int]:
        """Multiples of a tile: the kernel takes the time of whole tiles anyway, and reads aligned rows by vectors."""
        return (_up(rows), _up(columns)) if rows >= NARROW_SIDE else (rows, columns)

    def symmetric(
        self,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        alpha: float = 1.0,
        terms: Sequence[tuple[float, Tensor]] = (),
        identity: float = 0.0,
    ) -> Tensor:
        if x.dtype != torch.float32 and x.shape[-2] < NARROW_SIDE:
            return super().symmetric(x, y, out, alpha, terms, identity)
        factors, tensors = [factor for factor, _ in terms], [term for _, term in terms]
        multiply = symmetric_operator if torch.compiler.is_compiling() else symmetric_product
        multiply(x, y, out, float(alpha), factors, tensors, float(identity), self._precision_of(x.shape[-2]))
        return out

    def apply(self, q: Tensor, x: Tensor, out: Tensor, beta: float) -> Tensor:
        if x.dtype != torch.float32:  # torch's 16-bit products do not depend on a setting
            return super().apply(q, x, out, beta)
        multiply = dense_operator if torch.compiler.is_compiling() else dense_product
        multiply(q, x, out, float(beta), self._precision_of(q.shape[-2]))
        return out

    def _precision_of(self, rows: int) -> str:
        """Small float32 products are exact products, which cost little."""
        return "ieee" if self.input_precision == "tf32x3" and rows < NARROW_SIDE else self.input_precision


def triton_products(device: torch.device, precision: Precision) -> TritonProducts:
    """:class:`TritonProducts`."""
    return TritonProducts(precision, device)


def symmetric_product(
    x: Tensor,
    y: Tensor,
    out: Tensor,
    alpha: float,
    factors: Sequence[float],
    terms: Sequence[Tensor],
    identity: float,
    precision: str,
) -> None:
    """:meth:`pylo_zoo.ops.product.Products.symmetric`, into ``out``.

    Raises:
        ZooError: tensors do not fit each other, or there are more than two terms.
    """
    rows, depth = x.shape[-2:]
    square = (*x.shape[:-1], rows)
    _check([x, y, out, *terms], [x.shape, x.shape, *[square] * (1 + len(terms))], x)
    if len(terms) > 2 or len(factors) != len(terms):
        raise ZooError(f"A product has {len(terms)} terms and {len(factors)} factors.", "Pass at most two terms.")
    _launch(x, y, out, alpha, factors, terms, identity, precision, (rows, rows, depth), True)


def dense_product(q: Tensor, x: Tensor, out: Tensor, beta: float, precision: str) -> None:
    """:meth:`pylo_zoo.ops.product.Products.apply`, into ``out``.

    Raises:
        ZooError: tensors do not fit each other.
    """
    rows, columns = x.shape[-2:]
    _check([q, x, out], [(*x.shape[:-1], rows), x.shape, x.shape], x)
    terms = [x] if beta else []
    _launch(q, x, out, 1.0, [beta] * len(terms), terms, 0.0, precision, (rows, columns, rows), False)


# Compiled graphs contain these operators whole. Each call of an operator takes tens of microseconds more.
symmetric_operator = torch.library.custom_op("pylo_zoo::symmetric_product", symmetric_product, mutates_args=("out",))
dense_operator = torch.library.custom_op("pylo_zoo::dense_product", dense_product, mutates_args=("out",))


@symmetric_operator.register_fake
def _(*_: object) -> None:
    """Nothing to infer: the result is in ``out``."""


@dense_operator.register_fake
def _(*_: object) -> None:
    """Nothing to infer: the result is in ``out``."""


def _up(size: int) -> int:
    return ceil_div(size, SMALL) * SMALL


def _launch(
    x: Tensor,
    y: Tensor,
    out: Tensor,
    alpha: float,
    factors: Sequence[float],
    terms: Sequence[Tensor],
    identity: float,
    precision: str,
    sizes: tuple[int, int, int],
    is_symmetric: bool,
) -> None:
    rows, columns, depth = sizes
    narrow = x.dtype != torch.float32 or precision == "tf32"  # others would need more registers than a thread has
    block = LARGE if rows >= LARGE_SIDE and narrow else SMALL
    down, across = ceil_div(rows, block), ceil_div(columns, block)
    tiles = down * (down + 1) // 2 if is_symmetric else down * across
    block_k = 32 if x.dtype == torch.float32 else 64
    first, second = (*terms, x, x)[:2]
    first_factor, second_factor = (*factors, 0.0, 0.0)[:2]
    batch = x.shape[0] if x.ndim == 3 else 1
    launch(
        symmetric.multiply, tiles * batch, x, y, out, first, second, alpha, float(first_factor), float(second_factor),
        identity, rows, columns, depth, tiles,
        SYMMETRIC=is_symmetric, TERMS=len(terms), IDENTITY=identity != 0, EVEN=depth % block_k == 0,
        PRECISION=precision, BLOCK=block, BLOCK_K=block_k, num_warps=8 if block == LARGE else 4,
    )  # fmt: skip


def _check(tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], like: Tensor) -> None:
    """Raise :class:`ZooError` unless the kernel can use the tensors' addresses."""
    for tensor, shape in zip(tensors, shapes, strict=True):
        fits = tensor.dtype == like.dtype and tensor.device == like.device and tensor.is_contiguous()
        if not fits or tensor.shape != tuple(shape) or like.dtype not in DTYPES or tensor.ndim not in (2, 3):
            has = f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]} on {tensor.device} with strides {tensor.stride()}"
            raise ZooError(
                f"An operand is {has}; the product needs {tuple(shape)} {str(like.dtype)[6:]} on {like.device}.",
                "Pass contiguous float32, bfloat16 or float16 matrices or stacks on one device.",
            )
    out = tensors[2]
    if any(out.data_ptr() == each.data_ptr() for k, each in enumerate(tensors) if k != 2 and each.numel()):
        raise ZooError("A product would overwrite its operand.", "Pass other memory for the result.")
