"""The moment pass: advance momentum, second moment and ``diag``, and sum each feature's squares (SPEC §1, §2).

A program loops over a few tiles of one parameter, sums in registers and writes one partial sum per channel. The partial
sums are then combined in a fixed order. ``VARIED`` means that the normalizer's means interleave in memory, as for a
convolution in torch layout that is normalized per matrix. A tile is then ``[elements of a mean, means]``, otherwise
``[threads, neighboring elements]``.
"""

# Triton's types differ from Python's, so type checkers report false errors. Tuples must grow by + (RUF005).
# ruff: noqa: RUF005
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.elements import (
    conditioned,
    features,
    integer,
    planes,
    pointer,
    store_planes,
    table_indices,
)
from pylo_zoo.kernels.gpu.records import (
    CHUNKS,
    DECAY_ADAFACTOR,
    DECAY_MOMENTUM,
    DECAY_RMS,
    DIAG,
    ELEMENT_FIELDS,
    GROUPS,
    INNER,
    INNER_SIZE,
    MOMENTUM,
    OUTER,
    OUTER_SIZE,
    SECOND_MOMENT,
    SIZE,
    SPAN,
    TASK,
    TILES,
    TRAILING,
    P,
)

MOMENTS = tl.constexpr(9)
"""Sums in addition to the features: p², and m, m², v and v² of the old accumulators, relative to a sample."""
SAMPLED = tl.constexpr(64)
"""Number of elements whose mean is a sample."""


@triton.jit
def take_samples(records, samples):
    """Means of a few old momenta and second moments: ``samples [tasks, 4]``.

    They approximate the means of all, so variances relative to them do not cancel."""
    row = records + tl.program_id(0) * ELEMENT_FIELDS
    size = integer(row, SIZE)
    k = tl.arange(0, SAMPLED)
    mask, few = k < size, tl.minimum(size, SAMPLED).to(tl.float32)
    m = planes(pointer(row, MOMENTUM, tl.float32), k, size, mask)
    v = tl.load(pointer(row, SECOND_MOMENT, tl.float32) + k, mask, 0.0)
    written = samples + 4 * integer(row, TASK)
    tl.store(written, tl.sum(m[0], axis=0) / few)
    tl.store(written + 1, tl.sum(m[1], axis=0) / few)
    tl.store(written + 2, tl.sum(m[2], axis=0) / few)
    tl.store(written + 3, tl.sum(v, axis=0) / few)


@triton.jit
def advance_elements(
    records, gradients, programs, scale, factors, samples, partials, proceed, rsqrt_eps, diag_eps,
    FACTORED: tl.constexpr, PLAIN: tl.constexpr, VARIED: tl.constexpr, ALIGNED: tl.constexpr,
    P_TYPE: tl.constexpr, G_TYPE: tl.constexpr, SELECT: tl.constexpr, TILE_0: tl.constexpr, TILE_1: tl.constexpr,
):  # fmt: skip
    """Advance the accumulators, and write sums to ``partials [programs, features + 9, means]``.

    Does nothing if ``proceed`` is 0."""
    if proceed is not None:  # noqa: SIM102 — a constexpr condition
        if tl.load(proceed) == 0:
            return
    number = tl.load(programs + 2 * tl.program_id(0))
    part = tl.load(programs + 2 * tl.program_id(0) + 1)
    row = records + number * ELEMENT_FIELDS
    size, span, trailing = integer(row, SIZE), integer(row, SPAN), integer(row, TRAILING)
    if ALIGNED:
        size, span = tl.multiple_of(size, 4), tl.multiple_of(span, 4)
    chunks, tiles, strips = integer(row, CHUNKS), integer(row, TILES), tl.cdiv(trailing, TILE_1) if VARIED else 1
    chunk, strip, leading = part % chunks, part // chunks % strips, part // (chunks * strips)
    start = leading * span * trailing

    p_at, g_at = pointer(row, P, P_TYPE, ALIGNED), pointer(gradients, number, G_TYPE, ALIGNED)
    m_at, v_at = pointer(row, MOMENTUM, tl.float32, ALIGNED), pointer(row, SECOND_MOMENT, tl.float32, ALIGNED)
    dm, dv = pointer(row, DECAY_MOMENTUM, tl.float32), tl.load(pointer(row, DECAY_RMS, tl.float32))
    dm0, dm1, dm2 = tl.load(dm), tl.load(dm + 1), tl.load(dm + 2)
    scale = tl.load(scale)
    sample = samples + 4 * integer(row, TASK)
    s0, s1, s2, s3 = tl.load(sample), tl.load(sample + 1), tl.load(sample + 2), tl.load(sample + 3)

    sums = ()
    for _ in tl.static_range(len(SELECT) + MOMENTS):
        sums = sums + (tl.zeros([TILE_1 if VARIED else TILE_0], tl.float32),)
    for tile in range(tiles):
        if VARIED:
            k = (chunk * tiles + tile) * TILE_0 + tl.arange(0, TILE_0)[:, None]
            mean = strip * TILE_1 + tl.arange(0, TILE_1)[None, :]
            offset, mask = k * trailing + mean, (k < span) & (mean < trailing)
            first = start
        else:
            at = (chunk * tiles + tile) * (TILE_0 * TILE_1)
            offset = tl.arange(0, TILE_0)[:, None] * TILE_1 + tl.arange(0, TILE_1)[None, :]
            mask = at + offset < span
            first = start + at
        e = first + offset

        p = tl.load(p_at + e, mask, 0.0).to(tl.float32)
        g = conditioned(tl.load(g_at + e, mask, 0.0), scale, row)
        old_m, old_v = planes(m_at, e, size, mask), tl.load(v_at + e, mask, 0.0)
        m = (dm0 * old_m[0] + (1 - dm0) * g, dm1 * old_m[1] + (1 - dm1) * g, dm2 * old_m[2] + (1 - dm2) * g)
        v = dv * old_v + (1 - dv) * (g * g)
        store_planes(m_at, e, size, m, mask)
        tl.store(v_at + e, v, mask)
        if FACTORED:
            outer, inner = table_indices(row, first, offset, PLAIN)
            of_outer = planes(factors + 3 * tl.load(row + OUTER), outer, integer(row, OUTER_SIZE), mask)
            of_inner = planes(factors + 3 * tl.load(row + INNER), inner, integer(row, INNER_SIZE), mask)
            second = of_outer + of_inner
        else:
            second = _advanced_diag(row, g, e, size, mask, ALIGNED)

        x = features(p, g, m, v, second, rsqrt_eps, diag_eps, FACTORED, SELECT)
        more = ()
        for k in tl.static_range(len(SELECT)):
            more = more + (sums[k] + tl.sum(tl.where(mask, x[k] * x[k], 0.0), axis=0 if VARIED else 1),)
        m0 = tl.where(mask, old_m[0] - s0, 0.0)
        m1 = tl.where(mask, old_m[1] - s1, 0.0)
        m2 = tl.where(mask, old_m[2] - s2, 0.0)
        v0 = tl.where(mask, old_v - s3, 0.0)
        moments = (p * p, m0, m1, m2, m0 * m0, m1 * m1, m2 * m2, v0, v0 * v0)
        for k in tl.static_range(MOMENTS):
            more = more + (sums[len(SELECT) + k] + tl.sum(moments[k], axis=0 if VARIED else 1),)
        sums = more

    written = partials + tl.program_id(0).to(tl.int64) * ((len(SELECT) + MOMENTS) * (TILE_1 if VARIED else 1))
    for k in tl.static_range(len(SELECT) + MOMENTS):
        if VARIED:
            tl.store(written + k * TILE_1 + tl.arange(0, TILE_1), sums[k])
        else:
            tl.store(written + k, tl.sum(sums[k], axis=0))


@triton.jit
def _advanced_diag(row, g, e, size, mask, ALIGNED: tl.constexpr):
    """Advance ``diag`` of unfactored parameters by ``g² + 1e-30``, in place, and return its three planes."""
    at, d = pointer(row, DIAG, tl.float32, ALIGNED), pointer(row, DECAY_ADAFACTOR, tl.float32)
    d0, d1, d2 = tl.load(d), tl.load(d + 1), tl.load(d + 2)
    square = g * g + 1e-30
    old = planes(at, e, size, mask)
    new = (d0 * old[0] + (1 - d0) * square, d1 * old[1] + (1 - d1) * square, d2 * old[2] + (1 - d2) * square)
    store_planes(at, e, size, new, mask)
    return new


@triton.jit
def combine(partials, groups, sums, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the partial sums of each group's programs in a fixed order: ``sums [groups, WIDTH]``.

    ``groups [N, 2]``: first program and number of programs of each group, which shares its means.
    """
    group = tl.program_id(0)
    first, count = tl.load(groups + 2 * group), tl.load(groups + 2 * group + 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, ROWS):
        program = start + tl.arange(0, ROWS)[:, None]
        mask = (program < count) & (column < WIDTH)[None, :]
        total += tl.sum(tl.load(partials + (first + program).to(tl.int64) * WIDTH + column[None, :], mask, 0.0), axis=0)
    tl.store(sums + group * WIDTH + column, total, column < WIDTH)


@triton.jit
def moments_of(records, groups_of, sums, moments, CHANNELS: tl.constexpr, MEANS: tl.constexpr, BLOCK: tl.constexpr):
    """Means over whole parameters, from the sums of their groups: ``moments [tasks, 9]``.

    ``groups_of [N]``: number of groups per parameter.
    """
    number = tl.program_id(0)
    row = records + number * ELEMENT_FIELDS
    first, count = integer(row, GROUPS), tl.load(groups_of + number) * MEANS
    size = integer(row, SIZE).to(tl.float32)
    channel = tl.arange(0, 16)[None, :]
    total = tl.zeros([16], tl.float32)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)[:, None]
        place = ((first + k // MEANS) * CHANNELS + CHANNELS - MOMENTS + channel) * MEANS + k % MEANS
        total += tl.sum(tl.load(sums + place, (k < count) & (channel < MOMENTS), 0.0), axis=0)
    written = moments + integer(row, TASK) * MOMENTS + tl.arange(0, 16)
    tl.store(written, total / size, tl.arange(0, 16) < MOMENTS)
