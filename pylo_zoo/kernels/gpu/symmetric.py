"""Triton kernel for matrix products with a known symmetric result, and for the dense product of an iteration.

A symmetric result is computed in tiles of its lower triangle, each of which is also stored transposed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(index):
    """The row and column of a tile of the lower triangle: ``index = row·(row + 1)/2 + column``, column ≤ row."""
    row = ((tl.sqrt(8.0 * index + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)  # the root is rounded
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit
def multiply(
    x_start, y_start, out_start, first_start, second_start, alpha, first_factor, second_factor, identity,
    rows, columns, depth, tiles,
    SYMMETRIC: tl.constexpr, TERMS: tl.constexpr, IDENTITY: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out = alpha·x·y + first_factor·first + second_factor·second + identity·I`` of one tile of one matrix.

    All tensors are contiguous: x ``[batch, rows, depth]``; y ``[batch, columns, depth]`` if SYMMETRIC, which uses its
    transpose, else ``[batch, depth, columns]``; out and terms ``[batch, rows, columns]``. EVEN: BLOCK_K divides depth.
    """
    program = tl.program_id(0)
    matrix, index = (program // tiles).to(tl.int64), program % tiles
    if SYMMETRIC:
        i, j = tile_of(index)
    else:
        across = tl.cdiv(columns, BLOCK)
        i, j = index // across, index % across
    # Scalar addresses of 64 bits, and offsets of 32 bits within a tile, which take half of the registers.
    r, c, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    row_fits, column_fits = i * BLOCK + r < rows, j * BLOCK + c < columns
    x = x_start + (matrix * rows + i * BLOCK) * depth
    x_at = r[:, None] * depth + k[None, :]
    if SYMMETRIC:
        y = y_start + (matrix * columns + j * BLOCK) * depth
        y_at = c[None, :] * depth + k[:, None]
    else:
        y = y_start + matrix * columns * depth + j * BLOCK
        y_at = k[:, None] * columns + c[None, :]
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, depth, BLOCK_K):
        if EVEN:
            left = tl.load(x + x_at, mask=row_fits[:, None], other=0.0)
            right = tl.load(y + y_at, mask=column_fits[None, :], other=0.0)
        else:
            inside = start + k < depth
            left = tl.load(x + x_at, mask=row_fits[:, None] & inside[None, :], other=0.0)
            right = tl.load(y + y_at, mask=column_fits[None, :] & inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        x += BLOCK_K
        y += BLOCK_K if SYMMETRIC else BLOCK_K * columns
    total *= alpha
    tile = (matrix * rows + i * BLOCK) * columns + j * BLOCK
    at = r[:, None] * columns + c[None, :]
    fits = row_fits[:, None] & column_fits[None, :]
    if TERMS > 0:
        total += first_factor * tl.load(first_start + tile + at, mask=fits, other=0.0).to(tl.float32)
    if TERMS > 1:
        total += second_factor * tl.load(second_start + tile + at, mask=fits, other=0.0).to(tl.float32)
    if IDENTITY:
        total += tl.where((i * BLOCK + r)[:, None] == (j * BLOCK + c)[None, :], identity, 0.0)
    result = total.to(out_start.dtype.element_ty)
    tl.store(out_start + tile + at, result, mask=fits)
    if SYMMETRIC:  # noqa: SIM102 (one is known at compile time)
        if i != j:
            mirrored = (matrix * rows + j * BLOCK) * columns + i * BLOCK
            fits = column_fits[:, None] & row_fits[None, :]
            tl.store(out_start + mirrored + at, tl.trans(result), mask=fits)
