"""The move pass: recompute the features in registers, run the network and update the parameter (SPEC §3–§6).

The normalizer is folded into the network's first layer: each weight is multiplied by its channel's
``rsqrt(eps + mean square)``. Features that are constant along an axis become additions to the first layer's output, one
per row and one per column (:func:`fold_tables`). Networks of up to eight units are unrolled in registers; wider ones
use matrix products.
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
    factors_at,
    features,
    fours,
    integer,
    planes,
    pointer,
    quotient,
    table_indices,
)
from pylo_zoo.kernels.gpu.network_pass import additions_at, four_of_all, looped, multiplied, table_inputs, unrolled
from pylo_zoo.kernels.gpu.records import (
    DIAG,
    DIVIDE_TRAILING,
    ELEMENT_FIELDS,
    GROUPS,
    MOMENTUM,
    OUTER_IS_ROW,
    SECOND_MOMENT,
    SIZE,
    SPAN,
    STEP,
    T_ENTRIES,
    T_IS_ROW,
    T_OUTER,
    T_SIZE,
    T_SPAN,
    T_SQUARES,
    T_STATE,
    T_TASK,
    T_TRAILING,
    TABLE_FIELDS,
    TASK,
    TRAILING,
    P,
)


@triton.jit
def fold_tables(
    tables, programs, scales, weights, weights_stride, bias, bias_stride, additions,
    H: tl.constexpr, ROWS_OF_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Additions to the first layer's output for each entry of ``row`` and ``col``. The outer table's include the bias.

    Args:
        scales: the result of :func:`pylo_zoo.kernels.gpu.factor_pass.table_scales`.
        weights: ``[1 or tasks, 2 (row, col), 6, H]``, for the table's three channels and their rsqrt.
        additions: the output, per table ``[H, entries]``, or for the outer one ``[entries, H]`` with ``ROWS_OF_H``.
    """
    row = tables + tl.load(programs + 2 * tl.program_id(0)) * TABLE_FIELDS
    entry = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    size, task = integer(row, T_SIZE), tl.load(row + T_TASK)
    inside = entry < size
    weight = weights + task * weights_stride + (1 - tl.load(row + T_IS_ROW)) * (6 * H) + tl.arange(0, H)

    hidden = tl.zeros([BLOCK, H], tl.float32)
    if tl.load(row + T_OUTER) != 0:
        hidden += tl.load(bias + task * bias_stride + tl.arange(0, H))[None, :]
    x = table_features(row, scales, entry, size, inside)
    for k in tl.static_range(6):
        hidden += x[k][:, None] * tl.load(weight + k * H)[None, :]
    written, unit = additions + H * tl.load(row + T_ENTRIES), tl.arange(0, H)[None, :]
    entry = entry[:, None].to(tl.int64)
    if ROWS_OF_H:
        by_entry = tl.load(row + T_OUTER).to(tl.int64)
        place = entry * (by_entry * H + (1 - by_entry)) + unit * (by_entry + (1 - by_entry) * size)
    else:
        place = unit * size + entry
    tl.store(written + place, hidden, inside[:, None])


@triton.jit
def normalize_tables(tables, programs, scales, written, BLOCK: tl.constexpr):
    """The normalized features of each entry of ``row`` and ``col``: ``[6, entries]`` per table."""
    row = tables + tl.load(programs + 2 * tl.program_id(0)) * TABLE_FIELDS
    entry = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    size = integer(row, T_SIZE)
    x = table_features(row, scales, entry, size, entry < size)
    at = written + 6 * tl.load(row + T_ENTRIES)
    for k in tl.static_range(6):
        tl.store(at + k * size.to(tl.int64) + entry, x[k], entry < size)


@triton.jit
def table_features(row, scales, entry, size, inside):
    """The three channels of a table's entries and their rsqrt, normalized."""
    values = planes(pointer(row, T_STATE, tl.float32), entry, size, inside)
    trailing = integer(row, T_TRAILING)
    group = entry // (integer(row, T_SPAN) * trailing) * trailing + entry % trailing
    scale = scales + tl.load(row + T_SQUARES) + group * 6
    x = ()
    for k in tl.static_range(3):
        x = x + (values[k] * tl.load(scale + k, inside, 0.0),)
    for k in tl.static_range(3):
        x = x + (tl.rsqrt(values[k] + 1e-8) * tl.load(scale + 3 + k, inside, 0.0),)
    return x


@triton.jit
def move_elements(
    records, gradients, programs, scale, factors, additions,
    first, scales, of_tables, of_tables_stride, deep, deep_stride, bias, bias_stride,
    coefficient, shrink, size_of_step, steps, proceed,
    rsqrt_eps, diag_eps, exp_mult,
    FACTORED: tl.constexpr, PLAIN: tl.constexpr, VARIED: tl.constexpr, ALIGNED: tl.constexpr,
    P_TYPE: tl.constexpr, G_TYPE: tl.constexpr, SELECT: tl.constexpr, MEANS: tl.constexpr,
    H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr, PRECISION: tl.constexpr, MOVE: tl.constexpr,
    CHANNELS: tl.constexpr, LANES: tl.constexpr, PER_LANE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """``p ← p − coefficient·step − shrink·p``. Without ``MOVE``, write the step to ``steps`` instead.

    Args:
        first: the first layer's weights ``[groups, features, H]`` with the normalizer folded in. With ``VARIED``,
            ``[parameters, features, H]`` without the normalizer, which is ``scales [groups, CHANNELS, MEANS]``.
        deep: the other layers ``[1 or tasks, …]``: weights ``[H, H]`` and bias each, then ``[2, H]`` and ``[2]``.
        bias: the first layer's bias ``[1 or tasks, H]``. In registers, factored parameters have it in ``additions``.
        LAYERS: number of hidden layers.
        of_tables: the first layer's weights for tables, as in :func:`fold_tables`, for matrix products.
        PRECISION: one of :func:`product`; empty for networks in registers. For matrix products, ``additions`` is the
            result of :func:`normalize_tables`.
        proceed: None, or the kernel does nothing if it is 0.
    """
    if proceed is not None:  # noqa: SIM102 — a constexpr condition
        if tl.load(proceed) == 0:
            return
    number = tl.load(programs + 2 * tl.program_id(0))
    block = tl.load(programs + 2 * tl.program_id(0) + 1)
    row = records + number * ELEMENT_FIELDS
    size, trailing = integer(row, SIZE), integer(row, TRAILING)
    span = integer(row, SPAN) * trailing
    if ALIGNED:
        size, span = fours(size), fours(span)
    per_span = tl.cdiv(span, LANES * PER_LANE * TILES)
    leading, start = block // per_span, block % per_span * (LANES * PER_LANE * TILES)
    task, group = tl.load(row + TASK), integer(row, GROUPS)
    if VARIED:
        first_at = first + number.to(tl.int64) * (len(SELECT) * H)
    else:
        first_at = first + (group + leading).to(tl.int64) * (len(SELECT) * H)
    deep_at = deep + fours(task * deep_stride)
    bias_at = bias + fours(task * bias_stride)
    p_at, g_at = pointer(row, P, P_TYPE, ALIGNED), pointer(gradients, number, G_TYPE, ALIGNED)
    m_at, v_at = pointer(row, MOMENTUM, tl.float32, ALIGNED), pointer(row, SECOND_MOMENT, tl.float32, ALIGNED)
    scale, rms = tl.load(scale), tl.load(size_of_step + task)
    rate, decay = tl.load(coefficient + task), tl.load(shrink + task)

    # One stage: with more, the compiler copies every load through shared memory if there are matrix products.
    for tile in tl.range(0, tl.minimum(TILES, tl.cdiv(span - start, LANES * PER_LANE)), num_stages=1):
        at = start + tile * (LANES * PER_LANE) + tl.arange(0, LANES)[:, None] * PER_LANE
        within = tl.arange(0, PER_LANE)[None, :]
        first_element = leading * span + at
        e, mask = first_element + within, at < span if ALIGNED else at + within < span
        p = tl.load(p_at + e, mask, 0.0).to(tl.float32)
        g = conditioned(tl.load(g_at + e, mask, 0.0), scale, row)
        m, v = planes(m_at, e, size, mask), tl.load(v_at + e, mask, 0.0)
        outer, inner = e, e
        if FACTORED:
            outer, inner = table_indices(row, first_element, within, PLAIN, ALIGNED)
            second = factors_at(factors, row, outer, inner, mask, ALIGNED)
        else:
            second = planes(pointer(row, DIAG, tl.float32, ALIGNED), e, size, mask)

        x = features(p, g, m, v, second, rsqrt_eps, diag_eps, FACTORED, SELECT)
        if VARIED:
            strip, mean = strip_of(row, at + within, group + leading * tl.cdiv(trailing, MEANS), trailing, MEANS)
            scale_at = scales + strip * (CHANNELS * MEANS) + mean
            scaled = ()
            for k in tl.static_range(len(SELECT)):
                scaled = scaled + (x[k] * tl.load(scale_at + k * MEANS),)
            x = scaled
        if PRECISION == "":
            BY_LANE: tl.constexpr = PLAIN and ALIGNED
            if H > 8:
                direction, magnitude = looped(
                    x, additions, bias_at, row, outer, inner, mask, first_at, deep_at,
                    FACTORED, H, BY_LANE, ALIGNED, LAYERS, TANH,
                )  # fmt: skip
            else:
                hidden = ()
                for j in tl.static_range(0, H // 4):
                    if FACTORED:
                        four = additions_at(additions, row, outer, inner, mask, j, H, PER_LANE, BY_LANE, ALIGNED)
                    else:
                        four = four_of_all(bias_at + 4 * j, LANES, PER_LANE)
                    hidden = hidden + (four,)
                direction, magnitude = unrolled(x, hidden, first_at, deep_at, H, LAYERS, TANH)
        else:
            if FACTORED:
                x = x + table_inputs(additions, row, outer, inner, mask, PER_LANE, ALIGNED)
            direction, magnitude = multiplied(
                x, first_at, of_tables + task * of_tables_stride, tl.load(row + OUTER_IS_ROW), bias_at, deep_at,
                len(SELECT), H, LAYERS, TANH, PRECISION,
            )  # fmt: skip
        step = direction * tl.exp(magnitude * exp_mult) * rms
        if MOVE:
            tl.store(p_at + e, (p - (rate * step + decay * p)).to(P_TYPE), mask)
        else:
            tl.store(steps + fours(tl.load(row + STEP)) + e, step, mask)


@triton.jit
def strip_of(row, place, strip, trailing, MEANS: tl.constexpr):
    """The strip of ``MEANS`` means of elements at ``place`` in their span, and the mean in it."""
    mean = place - quotient(place, row, DIVIDE_TRAILING) * trailing
    return strip + mean // MEANS, mean % MEANS
