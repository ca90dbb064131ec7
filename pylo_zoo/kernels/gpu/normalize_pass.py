"""CELO2's last pass: ``p ← p − coefficient·norm(step) − shrink·p`` (SPEC §6), for parameters of any shape.

A step is normalized over one or two adjacent axes: its shape is merged to ``[leading, span, trailing]``, a mean has
``span`` elements, and ``trailing`` means interleave. Partial sums are combined in a fixed order.
"""

# Triton's types differ from Python's, so type checkers report false errors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.elements import integer, pointer

NORMALIZED = ("p", "size", "span", "trailing", "tiles", "chunks", "means", "partials", "task", "eps")
"""Fields of a parameter: its address, sizes, tiles per program and programs per mean, offsets, and eps as bits."""
N_P, N_SIZE, N_SPAN, N_TRAILING, N_TILES, N_CHUNKS, N_MEANS, N_PARTIALS, N_TASK, N_EPS = map(
    tl.constexpr, range(len(NORMALIZED))
)
NORMALIZED_FIELDS = tl.constexpr(len(NORMALIZED))


@triton.jit
def sum_squares(
    records, steps, programs, partials, VARIED: tl.constexpr, ALIGNED: tl.constexpr,
    TILE_0: tl.constexpr, TILE_1: tl.constexpr,
):  # fmt: skip
    """Sums of squares of each mean's chunks: ``partials [means, chunks]`` per parameter.

    A tile is ``[elements of a mean, means]`` if ``VARIED``, else ``[threads, neighboring elements]`` of one mean.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    part = tl.load(programs + 2 * tl.program_id(0) + 1)
    row = records + number * NORMALIZED_FIELDS
    span, trailing = integer(row, N_SPAN), integer(row, N_TRAILING)
    if ALIGNED:
        span = tl.multiple_of(span, 4)
    tiles, chunks = integer(row, N_TILES), integer(row, N_CHUNKS)
    strips = tl.cdiv(trailing, TILE_1) if VARIED else 1
    chunk, strip, leading = part % chunks, part // chunks % strips, part // (chunks * strips)
    step = pointer(steps, number, tl.float32, ALIGNED) + leading.to(tl.int64) * span * trailing
    written = partials + tl.load(row + N_PARTIALS) + chunk

    total = tl.zeros([TILE_1 if VARIED else TILE_0], tl.float32)
    for tile in range(tiles):
        if VARIED:
            k = (chunk * tiles + tile) * TILE_0 + tl.arange(0, TILE_0)[:, None]
            mean = strip * TILE_1 + tl.arange(0, TILE_1)[None, :]
            x = tl.load(step + k * trailing + mean, (k < span) & (mean < trailing), 0.0)
            total += tl.sum(x * x, axis=0)
        else:
            k = (chunk * tiles + tile) * (TILE_0 * TILE_1)
            k += tl.arange(0, TILE_0)[:, None] * TILE_1 + tl.arange(0, TILE_1)[None, :]
            x = tl.load(step + k, k < span, 0.0)
            total += tl.sum(x * x, axis=1)
    if VARIED:
        mean = strip * TILE_1 + tl.arange(0, TILE_1)
        tl.store(written + (leading * trailing + mean) * chunks, total, mean < trailing)
    else:
        tl.store(written + leading * chunks, tl.sum(total, axis=0))


@triton.jit
def combine_squares(records, programs, partials, scales, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``rsqrt(eps + mean square)`` of every mean: ``scales [means]`` per parameter."""
    row = records + tl.load(programs + 2 * tl.program_id(0)) * NORMALIZED_FIELDS
    mean = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    span, chunks = integer(row, N_SPAN), integer(row, N_CHUNKS)
    means = integer(row, N_SIZE) // span
    read = partials + tl.load(row + N_PARTIALS)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, ROWS):
        chunk = start + tl.arange(0, ROWS)[None, :]
        mask = (mean[:, None] < means) & (chunk < chunks)
        total += tl.sum(tl.load(read + mean[:, None] * chunks + chunk, mask, 0.0), axis=1)
    eps = tl.load(row + N_EPS).to(tl.int32).to(tl.float32, bitcast=True)
    scale = 1 / tl.sqrt(eps + total / span.to(tl.float32))
    tl.store(scales + tl.load(row + N_MEANS) + mean, scale, mean < means)


@triton.jit
def move_normalized(
    records, steps, programs, scales, coefficient, shrink, proceed,
    P_TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move the parameters. Does nothing if ``proceed`` is 0."""
    if proceed is not None:  # noqa: SIM102 — a constexpr condition
        if tl.load(proceed) == 0:
            return
    number = tl.load(programs + 2 * tl.program_id(0))
    row = records + number * NORMALIZED_FIELDS
    size, trailing = integer(row, N_SIZE), integer(row, N_TRAILING)
    if ALIGNED:
        size = tl.multiple_of(size, 4)
    e = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    mask = e < size
    mean = e // (integer(row, N_SPAN) * trailing) * trailing + e % trailing
    scale = tl.load(scales + tl.load(row + N_MEANS) + mean, mask, 0.0)
    p_at = pointer(row, N_P, P_TYPE, ALIGNED)
    p = tl.load(p_at + e, mask, 0.0).to(tl.float32)
    step = tl.load(pointer(steps, number, tl.float32, ALIGNED) + e, mask, 0.0)
    task = tl.load(row + N_TASK)
    moved = p - (step * (scale * tl.load(coefficient + task)) + p * tl.load(shrink + task))
    tl.store(p_at + e, moved.to(P_TYPE), mask)
