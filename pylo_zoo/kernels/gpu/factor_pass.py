"""The factor pass: sum ``g²`` along the factored axes, and advance ``row`` and ``col`` (SPEC §1–2).

It has four launches, each for many parameters: sums of tiles; means of the sums, which advance the tables; row factors,
which need a mean of ``row``; the normalizer's scales of the tables. A table is a ``row`` or ``col``.
"""

# Triton's types differ from Python's, so type checkers report false errors. Tuples must grow by + (RUF005).
# ruff: noqa: RUF005
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.elements import at_least, conditioned, integer, planes, pointer, store_planes
from pylo_zoo.kernels.gpu.records import (
    ELEMENT_FIELDS,
    INNER_SIZE,
    OUTER_SIZE,
    T_ALONG,
    T_COUNT,
    T_DECAY,
    T_ENTRIES,
    T_IS_ROW,
    T_PART,
    T_PARTS,
    T_SIZE,
    T_SPAN,
    T_SQUARES,
    T_STATE,
    T_STRIDE,
    T_TRAILING,
    TABLE_FIELDS,
    B,
    C,
    X,
    Y,
)


@triton.jit
def tile_sums(
    records, gradients, places, programs, scale, partials,
    G_TYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Sum ``g² + 1e-30`` over a tile's Y, for the outer table, and over its X, for the inner one.

    ``places [N, 2]``: offsets in ``partials`` of each parameter's outer and inner sums.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    tile = tl.load(programs + 2 * tl.program_id(0) + 1)
    row = records + number * ELEMENT_FIELDS
    size_x, size_y = integer(row, X), integer(row, Y)
    if TILE_C == 1:
        size_b, size_c = 1, 1
        if ALIGNED:
            size_y = tl.multiple_of(size_y, 4)
    else:
        size_b, size_c = integer(row, B), integer(row, C)
    tiles_c, tiles_y, tiles_x = tl.cdiv(size_c, TILE_C), tl.cdiv(size_y, TILE_Y), tl.cdiv(size_x, TILE_X)
    tile_c = tile % tiles_c
    tile_y = tile // tiles_c % tiles_y
    tile_x = tile // (tiles_c * tiles_y) % tiles_x
    plane = tile // (tiles_c * tiles_y * tiles_x)  # a · B + b
    a, b = plane // size_b, plane % size_b

    x = (tile_x * TILE_X + tl.arange(0, TILE_X))[:, None, None]
    y = (tile_y * TILE_Y + tl.arange(0, TILE_Y))[None, :, None]
    c = (tile_c * TILE_C + tl.arange(0, TILE_C))[None, None, :]
    outer = (a * size_x + x) * size_b + b
    mask = (x < size_x) & (y < size_y) & (c < size_c)
    g = tl.load(pointer(gradients, number, G_TYPE, ALIGNED) + (outer * size_y + y) * size_c + c, mask, 0.0)
    g = conditioned(g, tl.load(scale), row)
    square = tl.where(mask, g * g + 1e-30, 0.0)

    of_outer = partials + tl.load(places + 2 * number) + tile_y.to(tl.int64) * integer(row, OUTER_SIZE)
    tl.store(of_outer + outer * size_c + c, tl.sum(square, axis=1, keep_dims=True), (x < size_x) & (c < size_c))
    of_inner = partials + tl.load(places + 2 * number + 1) + tile_x.to(tl.int64) * integer(row, INNER_SIZE)
    inner = (plane * size_y + y) * size_c + c
    tl.store(of_inner + inner, tl.sum(square, axis=0, keep_dims=True), (y < size_y) & (c < size_c))


@triton.jit
def advance_tables(tables, programs, partials, factors, proceed, BLOCK: tl.constexpr):
    """Advance ``row`` and ``col`` by the means, and compute ``col_factor``. Does nothing if ``proceed`` is 0."""
    if proceed is not None:  # noqa: SIM102 — a constexpr condition
        if tl.load(proceed) == 0:
            return
    row = tables + tl.load(programs + 2 * tl.program_id(0)) * TABLE_FIELDS
    entry = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    size, parts = integer(row, T_SIZE), integer(row, T_PARTS)
    inside = entry < size

    total = tl.zeros([BLOCK], tl.float32)
    part = tl.arange(0, 8)[:, None]
    for first in range(0, parts, 8):
        place = tl.load(row + T_PART) + (first + part).to(tl.int64) * size + entry[None, :]
        total += tl.sum(tl.load(partials + place, (first + part < parts) & inside[None, :], 0.0), axis=0)
    mean = total / integer(row, T_COUNT).to(tl.float32)

    state, decay = pointer(row, T_STATE, tl.float32), pointer(row, T_DECAY, tl.float32)
    old = planes(state, entry, size, inside)
    new = (_advanced(old[0], mean, decay), _advanced(old[1], mean, decay + 1), _advanced(old[2], mean, decay + 2))
    store_planes(state, entry, size, new, inside)
    if tl.load(row + T_IS_ROW) == 0:
        factor = (_rsqrt(new[0]), _rsqrt(new[1]), _rsqrt(new[2]))
        store_planes(factors + 3 * tl.load(row + T_ENTRIES), entry, size, factor, inside)


@triton.jit
def row_factors(tables, programs, factors, ALONG: tl.constexpr, ACROSS: tl.constexpr):
    """``rsqrt(max(row / (mean(row) + 1e-9), 1e-9))``, with the mean over the remaining factored axis of ``row``."""
    row = tables + tl.load(programs + 2 * tl.program_id(0)) * TABLE_FIELDS
    size, along, stride = integer(row, T_SIZE), integer(row, T_ALONG), integer(row, T_STRIDE)
    start, across, mask_across = _strip(tl.load(programs + 2 * tl.program_id(0) + 1), along, stride, ACROSS)
    state = pointer(row, T_STATE, tl.float32)
    written = factors + 3 * tl.load(row + T_ENTRIES)

    sums = (tl.zeros([ACROSS], tl.float32), tl.zeros([ACROSS], tl.float32), tl.zeros([ACROSS], tl.float32))
    for first in range(0, along, ALONG):
        k = first + tl.arange(0, ALONG)[:, None]
        values = planes(state, start + k * stride + across, size, (k < along) & mask_across)
        sums = (
            sums[0] + tl.sum(values[0], axis=0),
            sums[1] + tl.sum(values[1], axis=0),
            sums[2] + tl.sum(values[2], axis=0),
        )
    for first in range(0, along, ALONG):
        k = first + tl.arange(0, ALONG)[:, None]
        mask, entry = (k < along) & mask_across, start + k * stride + across
        values = planes(state, entry, size, mask)
        factor = (
            _rsqrt(values[0] / (sums[0] / along + 1e-9)[None, :]),
            _rsqrt(values[1] / (sums[1] / along + 1e-9)[None, :]),
            _rsqrt(values[2] / (sums[2] / along + 1e-9)[None, :]),
        )
        store_planes(written, entry, size, factor, mask)


@triton.jit
def table_scales(tables, programs, scales, norm_eps, ALONG: tl.constexpr, ACROSS: tl.constexpr):
    """The normalizer's ``rsqrt(eps + mean(x²))`` of a table and of its ``rsqrt(x + 1e-8)``: six channels."""
    row = tables + tl.load(programs + 2 * tl.program_id(0)) * TABLE_FIELDS
    size, span, trailing = integer(row, T_SIZE), integer(row, T_SPAN), integer(row, T_TRAILING)
    start, across, mask_across = _strip(tl.load(programs + 2 * tl.program_id(0) + 1), span, trailing, ACROSS)
    state = pointer(row, T_STATE, tl.float32)

    sums = ()
    for _ in tl.static_range(6):
        sums = sums + (tl.zeros([ACROSS], tl.float32),)
    for first in range(0, span, ALONG):
        k = first + tl.arange(0, ALONG)[:, None]
        mask = (k < span) & mask_across
        values = planes(state, start + k * trailing + across, size, mask)
        more = ()
        for i in tl.static_range(3):
            more = more + (sums[i] + tl.sum(values[i] * values[i], axis=0),)
        for i in tl.static_range(3):
            root = tl.rsqrt(values[i] + 1e-8)
            more = more + (sums[3 + i] + tl.sum(tl.where(mask, root * root, 0.0), axis=0),)
        sums = more
    group = start // span + across  # start is leading · span · trailing
    written = scales + tl.load(row + T_SQUARES) + group * 6
    for i in tl.static_range(6):
        tl.store(written + i, tl.rsqrt(norm_eps + sums[i] / span)[None, :], mask_across)


@triton.jit
def _strip(strip, length, stride, ACROSS: tl.constexpr):
    """The columns of one program in a reduction over the middle axis of ``[leading, length, stride]``.

    Returns:
        The offset of its leading index, the columns ``[1, ACROSS]``, and a mask of the valid ones.
    """
    strips = tl.cdiv(stride, ACROSS)
    across = strip % strips * ACROSS + tl.arange(0, ACROSS)[None, :]
    return strip // strips * length * stride, across, across < stride


@triton.jit
def _advanced(old, value, decay):
    """``d · old + (1 − d) · value``"""
    d = tl.load(decay)
    return d * old + (1 - d) * value


@triton.jit
def _rsqrt(x):
    return tl.rsqrt(at_least(x, 1e-9))
