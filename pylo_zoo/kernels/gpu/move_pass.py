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

from pylo_zoo.kernels.gpu.elements import activation, conditioned, features, integer, planes, pointer, table_indices
from pylo_zoo.kernels.gpu.records import (
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
        additions: the output, per table ``[entries, H]`` if ``ROWS_OF_H``, else ``[H, entries]``.
    """
    row = tables + tl.load(programs + 2 * tl.program_id(0)) * TABLE_FIELDS
    entry = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    size, task = integer(row, T_SIZE), tl.load(row + T_TASK)
    inside = entry < size
    values = planes(pointer(row, T_STATE, tl.float32), entry, size, inside)
    trailing = integer(row, T_TRAILING)
    group = entry // (integer(row, T_SPAN) * trailing) * trailing + entry % trailing
    scale = scales + tl.load(row + T_SQUARES) + group * 6
    weight = weights + task * weights_stride + (1 - tl.load(row + T_IS_ROW)) * (6 * H) + tl.arange(0, H)

    hidden = tl.zeros([BLOCK, H], tl.float32)
    if tl.load(row + T_OUTER) != 0:
        hidden += tl.load(bias + task * bias_stride + tl.arange(0, H))[None, :]
    for k in tl.static_range(3):
        x = values[k] * tl.load(scale + k, inside, 0.0)
        hidden += x[:, None] * tl.load(weight + k * H)[None, :]
    for k in tl.static_range(3):
        x = tl.rsqrt(values[k] + 1e-8) * tl.load(scale + 3 + k, inside, 0.0)
        hidden += x[:, None] * tl.load(weight + (3 + k) * H)[None, :]
    written, unit = additions + H * tl.load(row + T_ENTRIES), tl.arange(0, H)[None, :]
    entry = entry[:, None].to(tl.int64)
    place = entry * H + unit if ROWS_OF_H else unit * size + entry
    tl.store(written + place, hidden, inside[:, None])


@triton.jit
def move_elements(
    records, gradients, programs, scale, factors, additions,
    first, scales, deep, deep_stride, bias, bias_stride, coefficient, shrink, size_of_step, steps, proceed,
    rsqrt_eps, diag_eps, exp_mult,
    FACTORED: tl.constexpr, PLAIN: tl.constexpr, VARIED: tl.constexpr, ALIGNED: tl.constexpr,
    P_TYPE: tl.constexpr, G_TYPE: tl.constexpr, SELECT: tl.constexpr, MEANS: tl.constexpr,
    H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr, PRECISION: tl.constexpr, MOVE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``p ← p − coefficient·step − shrink·p``. Without ``MOVE``, write the step to ``steps`` instead.

    Args:
        first: the first layer's weights ``[groups, features, H]`` with the normalizer folded in. With ``VARIED``,
            ``[parameters, features, H]`` without the normalizer, which is ``scales [groups, features + 9, MEANS]``.
        deep: the other layers ``[1 or tasks, …]``: weights ``[H, H]`` and bias each, then ``[2, H]`` and ``[2]``.
        bias: the first layer's bias ``[1 or tasks, H]``, for unfactored parameters. Others have it in ``additions``.
        LAYERS: number of hidden layers.
        PRECISION: input precision of tl.dot; empty for networks in registers.
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
        size, span = tl.multiple_of(size, 4), tl.multiple_of(span, 4)
    per_span = tl.cdiv(span, BLOCK)
    leading, at = block // per_span, block % per_span * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = at + offset < span
    start = leading * span + at
    e = start + offset

    p_at = pointer(row, P, P_TYPE, ALIGNED)
    m_at, v_at = pointer(row, MOMENTUM, tl.float32, ALIGNED), pointer(row, SECOND_MOMENT, tl.float32, ALIGNED)
    p = tl.load(p_at + e, mask, 0.0).to(tl.float32)
    g = tl.load(pointer(gradients, number, G_TYPE, ALIGNED) + e, mask, 0.0)
    g = conditioned(g, tl.load(scale), row)
    m, v = planes(m_at, e, size, mask), tl.load(v_at + e, mask, 0.0)
    outer, inner = e, e
    if FACTORED:
        outer, inner = table_indices(row, start, offset, PLAIN)
        of_outer = planes(factors + 3 * tl.load(row + OUTER), outer, integer(row, OUTER_SIZE), mask)
        of_inner = planes(factors + 3 * tl.load(row + INNER), inner, integer(row, INNER_SIZE), mask)
        second = of_outer + of_inner
    else:
        second = planes(pointer(row, DIAG, tl.float32, ALIGNED), e, size, mask)

    x = features(p, g, m, v, second, rsqrt_eps, diag_eps, FACTORED, SELECT)
    task = tl.load(row + TASK)
    group = integer(row, GROUPS)
    if VARIED:
        mean = (at + offset) % trailing
        strip = group + leading * tl.cdiv(trailing, MEANS) + mean // MEANS
        scale_at = scales + strip * ((len(SELECT) + 9) * MEANS) + mean % MEANS
        scaled = ()
        for k in tl.static_range(len(SELECT)):
            scaled = scaled + (x[k] * tl.load(scale_at + k * MEANS),)
        x = scaled
        first_at = first + number.to(tl.int64) * (len(SELECT) * H)
    else:
        first_at = first + (group + leading).to(tl.int64) * (len(SELECT) * H)
    deep_at, bias_at = deep + task * deep_stride, bias + task * bias_stride
    if PRECISION == "":
        hidden = ()
        for j in tl.static_range(H):
            if FACTORED:
                of_row = additions + H * tl.load(row + OUTER) + j * tl.load(row + OUTER_SIZE) + outer
                of_col = additions + H * tl.load(row + INNER) + j * tl.load(row + INNER_SIZE) + inner
                hidden = hidden + (tl.load(of_row, mask, 0.0) + tl.load(of_col, mask, 0.0),)
            else:
                hidden = hidden + (tl.load(bias_at + j) + tl.zeros([BLOCK], tl.float32),)
        direction, magnitude = _unrolled(x, hidden, first_at, deep_at, H, LAYERS, TANH)
    else:
        unit = tl.arange(0, H)[None, :]
        if FACTORED:
            of_row = tl.load(additions + H * (tl.load(row + OUTER) + outer[:, None]) + unit, mask[:, None], 0.0)
            of_col = tl.load(additions + H * (tl.load(row + INNER) + inner[:, None]) + unit, mask[:, None], 0.0)
            hidden = of_row + of_col
        else:
            hidden = tl.load(bias_at + unit) + tl.zeros([BLOCK, H], tl.float32)
        direction, magnitude = _multiplied(x, hidden, first_at, deep_at, H, LAYERS, TANH, PRECISION)

    step = direction * tl.exp(magnitude * exp_mult) * tl.load(size_of_step + task)
    if MOVE:
        moved = p - (tl.load(coefficient + task) * step + tl.load(shrink + task) * p)
        tl.store(p_at + e, moved.to(P_TYPE), mask)
    else:
        tl.store(steps + tl.multiple_of(tl.load(row + STEP), 4) + e, step, mask)


@triton.jit
def _unrolled(x, hidden, first, deep, H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr):
    """Direction and magnitude, with every unit in registers. ``hidden``: additions to the first layer's output."""
    units = ()
    for j in tl.static_range(H):
        total = hidden[j]
        for k in tl.static_range(len(x)):
            total += tl.load(first + k * H + j) * x[k]
        units = units + (activation(total, TANH),)
    for layer in tl.static_range(LAYERS - 1):
        weight = deep + layer * (H * H + H)
        above = ()
        for j in tl.static_range(H):
            total = tl.load(weight + H * H + j) + tl.load(weight + j) * units[0]
            for k in tl.static_range(1, H):
                total += tl.load(weight + k * H + j) * units[k]
            above = above + (activation(total, TANH),)
        units = above
    last = deep + (LAYERS - 1) * (H * H + H)
    direction = tl.load(last + 2 * H) + tl.load(last) * units[0]
    magnitude = tl.load(last + 2 * H + 1) + tl.load(last + H) * units[0]
    for k in tl.static_range(1, H):
        direction += tl.load(last + k) * units[k]
        magnitude += tl.load(last + H + k) * units[k]
    return direction, magnitude


@triton.jit
def _multiplied(
    x, hidden, first, deep, H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr, PRECISION: tl.constexpr
):
    """Direction and magnitude, with matrix products. ``hidden [BLOCK, H]``: additions to the first layer's output."""
    CHANNELS: tl.constexpr = 16 if len(x) <= 16 else 32
    channel, unit = tl.arange(0, CHANNELS)[:, None], tl.arange(0, H)[None, :]
    weight = tl.load(first + channel * H + unit, channel < len(x), 0.0)
    units = tl.dot(_side_by_side(x, CHANNELS), weight, hidden, input_precision=PRECISION)
    below = tl.arange(0, H)[:, None]
    for layer in tl.static_range(LAYERS - 1):
        at = deep + layer * (H * H + H)
        units = tl.dot(activation(units, TANH), tl.load(at + below * H + unit), input_precision=PRECISION)
        units += tl.load(at + H * H + unit)
    units = activation(units, TANH)
    last = deep + (LAYERS - 1) * (H * H + H)
    direction = tl.load(last + 2 * H) + tl.sum(units * tl.load(last + unit), axis=1)
    magnitude = tl.load(last + 2 * H + 1) + tl.sum(units * tl.load(last + H + unit), axis=1)
    return direction, magnitude


@triton.jit
def _side_by_side(x, CHANNELS: tl.constexpr):
    """Join a tuple of ``[BLOCK]`` to ``[BLOCK, CHANNELS]``, padded with zeros, pairwise and without data movement."""
    for _ in tl.static_range(CHANNELS - len(x)):
        x = x + (tl.zeros_like(x[0]),)
    for _ in tl.static_range(4 if CHANNELS == 16 else 5):
        pairs = ()
        for k in tl.static_range(len(x) // 2):
            pairs = pairs + (tl.join(x[k], x[len(x) // 2 + k]),)
        x = pairs
    return tl.reshape(x[0], [x[0].shape[0], CHANNELS])
