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
    activation,
    conditioned,
    factors_at,
    features,
    integer,
    offset_of,
    plane_size,
    planes,
    pointer,
    quotient,
    table_indices,
)
from pylo_zoo.kernels.gpu.records import (
    DIAG,
    DIVIDE_TRAILING,
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
        additions: the output, per table ``[entries, H]`` if ``ROWS_OF_H`` is 2, or 1 and the table is the outer one;
            else ``[H, entries]``.
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
    if ROWS_OF_H == 2:
        place = entry * H + unit
    elif ROWS_OF_H == 1:
        by_entry = tl.load(row + T_OUTER).to(tl.int64)
        place = entry * (by_entry * H + (1 - by_entry)) + unit * (by_entry + (1 - by_entry) * size)
    else:
        place = unit * size + entry
    tl.store(written + place, hidden, inside[:, None])


@triton.jit
def move_elements(
    records, gradients, programs, scale, factors, additions,
    first, scales, deep, deep_stride, bias, bias_stride, coefficient, shrink, size_of_step, steps, proceed,
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
    per_span = tl.cdiv(span, LANES * PER_LANE * TILES)
    leading, start = block // per_span, block % per_span * (LANES * PER_LANE * TILES)
    task, group = tl.load(row + TASK), integer(row, GROUPS)
    if VARIED:
        first_at = first + number.to(tl.int64) * (len(SELECT) * H)
    else:
        first_at = first + (group + leading).to(tl.int64) * (len(SELECT) * H)
    deep_at = deep + tl.multiple_of(task * deep_stride, 4)
    bias_at = bias + tl.multiple_of(task * bias_stride, H)
    p_at, g_at = pointer(row, P, P_TYPE, ALIGNED), pointer(gradients, number, G_TYPE, ALIGNED)
    m_at, v_at = pointer(row, MOMENTUM, tl.float32, ALIGNED), pointer(row, SECOND_MOMENT, tl.float32, ALIGNED)
    scale, rms = tl.load(scale), tl.load(size_of_step + task)
    rate, decay = tl.load(coefficient + task), tl.load(shrink + task)

    for tile in range(0, tl.minimum(TILES, tl.cdiv(span - start, LANES * PER_LANE))):
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
            direction, magnitude = multiplied(
                x, additions, bias_at, row, outer, inner, mask, first_at, deep_at, FACTORED, H, LAYERS, TANH, PRECISION
            )
        step = direction * tl.exp(magnitude * exp_mult) * rms
        if MOVE:
            tl.store(p_at + e, (p - (rate * step + decay * p)).to(P_TYPE), mask)
        else:
            tl.store(steps + tl.multiple_of(tl.load(row + STEP), 4) + e, step, mask)


@triton.jit
def strip_of(row, place, strip, trailing, MEANS: tl.constexpr):
    """The strip of ``MEANS`` means of elements at ``place`` in their span, and the mean in it."""
    mean = place - quotient(place, row, DIVIDE_TRAILING) * trailing
    return strip + mean // MEANS, mean % MEANS


@triton.jit
def additions_at(
    additions, row, outer, inner, mask, j,
    H: tl.constexpr, PER_LANE: tl.constexpr, BY_LANE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Additions to the first layer's ``j``-th four outputs. ``BY_LANE``: the outer table's are ``[entries, H]``."""
    at_outer = additions + H * offset_of(row, OUTER, ALIGNED)
    at_inner = additions + H * offset_of(row, INNER, ALIGNED)
    size, outer_size = plane_size(row, INNER_SIZE, ALIGNED), tl.load(row + OUTER_SIZE)
    total = four_rows(at_inner + 4 * j * size + inner, size, mask)
    if BY_LANE:
        total += four_of_lane(at_outer + outer * H + 4 * j, mask, PER_LANE)
    else:
        total += four_rows(at_outer + 4 * j * outer_size + outer, outer_size, mask)
    return total


@triton.jit
def four_rows(at, stride, mask):
    """The floats at ``at``, ``at + stride``, … of four units: ``[lanes, neighbors, 4]``, without data movement."""
    u0, u1 = tl.load(at, mask, 0.0), tl.load(at + stride, mask, 0.0)
    u2, u3 = tl.load(at + 2 * stride, mask, 0.0), tl.load(at + 3 * stride, mask, 0.0)
    joined = tl.join(tl.join(u0, u2), tl.join(u1, u3))
    return tl.reshape(joined, [u0.shape[0], u0.shape[1], 4])


@triton.jit
def four_of_lane(at, mask, PER_LANE: tl.constexpr):
    """Four consecutive floats per lane, for all its elements, by one load: ``[lanes, PER_LANE, 4]``."""
    values = tl.load(at + tl.arange(0, 4)[None, :], mask, 0.0)
    return tl.broadcast_to(tl.reshape(values, [values.shape[0], 1, 4]), [values.shape[0], PER_LANE, 4])


@triton.jit
def four_of_all(at, LANES: tl.constexpr, PER_LANE: tl.constexpr):
    """Four consecutive floats that all elements need."""
    lanes = tl.zeros([LANES, 1], tl.int32)
    return four_of_lane(at + lanes, lanes == 0, PER_LANE)


@triton.jit
def single(units):
    """The units of a tuple of ``[lanes, neighbors, 4]`` as a tuple of ``[lanes, neighbors]``."""
    LANES: tl.constexpr = units[0].shape[0]
    PER_LANE: tl.constexpr = units[0].shape[1]
    each = ()
    for k in tl.static_range(len(units)):
        even, odd = tl.split(tl.reshape(units[k], [LANES, PER_LANE, 2, 2]))
        u0, u2 = tl.split(even)
        u1, u3 = tl.split(odd)
        each = each + (u0, u1, u2, u3)
    return each


@triton.jit
def unrolled(x, hidden, first, deep, H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr):
    """Direction and magnitude, with every unit in registers. ``hidden``: additions to the first layer's output.

    Four units are one tensor ``[lanes, neighbors, 4]``, all in one thread: one operation for four keeps the program
    short, because the compiler's time grows faster than its length. A thread loads four weights at a time and uses them
    for all its elements.
    """
    LANES: tl.constexpr = x[0].shape[0]
    PER_LANE: tl.constexpr = x[0].shape[1]
    units = activated(layer_of(x, hidden, first, H), TANH)
    for layer in tl.static_range(LAYERS - 1):
        weight = deep + layer * (H * H + H)
        bias = ()
        for j in tl.static_range(0, H, 4):
            bias = bias + (four_of_all(weight + H * H + j, LANES, PER_LANE),)
        units = activated(layer_of(single(units), bias, weight, H), TANH)
    return outputs_of(units, deep + (LAYERS - 1) * (H * H + H), H)


@triton.jit
def outputs_of(units, last, H: tl.constexpr):
    """Direction and magnitude of the last hidden layer's units."""
    LANES: tl.constexpr = units[0].shape[0]
    PER_LANE: tl.constexpr = units[0].shape[1]
    direction = tl.load(last + 2 * H) + tl.zeros([LANES, PER_LANE], tl.float32)
    magnitude = tl.load(last + 2 * H + 1) + tl.zeros([LANES, PER_LANE], tl.float32)
    for j in tl.static_range(0, H, 4):
        to_direction = single((units[j // 4] * four_of_all(last + j, LANES, PER_LANE),))
        to_magnitude = single((units[j // 4] * four_of_all(last + H + j, LANES, PER_LANE),))
        for k in tl.static_range(4):
            direction += to_direction[k]
            magnitude += to_magnitude[k]
    return direction, magnitude


@triton.jit
def looped(
    x, additions, bias, row, outer, inner, mask, first, deep,
    FACTORED: tl.constexpr, H: tl.constexpr, BY_LANE: tl.constexpr, ALIGNED: tl.constexpr,
    LAYERS: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """:func:`unrolled` for more units: a loop adds four units of the first layer at a time to all of the second.

    Without a second hidden layer, it keeps them instead.
    """
    LANES: tl.constexpr = x[0].shape[0]
    PER_LANE: tl.constexpr = x[0].shape[1]
    above = ()
    if LAYERS > 1:
        for j in tl.static_range(0, H, 4):
            above = above + (four_of_all(deep + H * H + j, LANES, PER_LANE),)
        for j in range(0, H // 4):
            units = four_units(x, additions, bias, row, outer, inner, mask, first, j, FACTORED, H, BY_LANE, ALIGNED)
            above = layer_of(single((activation(units, TANH),)), above, deep + 4 * j * H, H)
        above = activated(above, TANH)
        for layer in tl.static_range(1, LAYERS - 1):
            weight = deep + layer * (H * H + H)
            biases = ()
            for j in tl.static_range(0, H, 4):
                biases = biases + (four_of_all(weight + H * H + j, LANES, PER_LANE),)
            above = activated(layer_of(single(above), biases, weight, H), TANH)
    else:
        for j in tl.static_range(0, H // 4):
            units = four_units(x, additions, bias, row, outer, inner, mask, first, j, FACTORED, H, BY_LANE, ALIGNED)
            above = above + (activation(units, TANH),)
    return outputs_of(above, deep + (LAYERS - 1) * (H * H + H), H)


@triton.jit
def four_units(
    x, additions, bias, row, outer, inner, mask, first, j,
    FACTORED: tl.constexpr, H: tl.constexpr, BY_LANE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The ``j``-th four outputs of the first layer before activation."""
    LANES: tl.constexpr = x[0].shape[0]
    PER_LANE: tl.constexpr = x[0].shape[1]
    if FACTORED:
        units = additions_at(additions, row, outer, inner, mask, j, H, PER_LANE, BY_LANE, ALIGNED)
    else:
        units = four_of_all(bias + 4 * j, LANES, PER_LANE)
    for k in tl.static_range(len(x)):
        units += for_four(x[k]) * four_of_all(first + k * H + 4 * j, LANES, PER_LANE)
    return units


@triton.jit
def layer_of(x, units, weight, H: tl.constexpr):
    """``units`` plus the inputs ``x`` times ``weight [inputs, H]``."""
    LANES: tl.constexpr = x[0].shape[0]
    PER_LANE: tl.constexpr = x[0].shape[1]
    for k in tl.static_range(len(x)):
        x_k, more = for_four(x[k]), ()
        for j in tl.static_range(0, H, 4):
            more = more + (units[j // 4] + x_k * four_of_all(weight + k * H + j, LANES, PER_LANE),)
        units = more
    return units


@triton.jit
def for_four(x):
    """``x [lanes, neighbors]`` as the input of four units: ``[lanes, neighbors, 4]``."""
    twice = tl.join(x, x)
    return tl.reshape(tl.join(twice, twice), [x.shape[0], x.shape[1], 4])


@triton.jit
def activated(units, TANH: tl.constexpr):
    each = ()
    for k in tl.static_range(len(units)):
        each = each + (activation(units[k], TANH),)
    return each


@triton.jit
def multiplied(
    x, additions, bias, row, outer, inner, mask, first, deep,
    FACTORED: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Direction and magnitude, with matrix products. Elements are ``[BLOCK, 1]``."""
    CHANNELS: tl.constexpr = 16 if len(x) <= 16 else 32
    BLOCK: tl.constexpr = x[0].shape[0]
    channel, unit = tl.arange(0, CHANNELS)[:, None], tl.arange(0, H)[None, :]
    if FACTORED:
        of_row = tl.load(additions + H * (tl.load(row + OUTER) + outer) + unit, mask, 0.0)
        of_col = tl.load(additions + H * (tl.load(row + INNER) + inner) + unit, mask, 0.0)
        hidden = of_row + of_col
    else:
        hidden = tl.load(bias + unit) + tl.zeros([BLOCK, H], tl.float32)
    weight = tl.load(first + channel * H + unit, channel < len(x), 0.0)
    units = product(_side_by_side(x, CHANNELS), weight, hidden, PRECISION)
    below = tl.arange(0, H)[:, None]
    for layer in tl.static_range(LAYERS - 1):
        at = deep + layer * (H * H + H)
        biases = tl.load(at + H * H + unit) + tl.zeros([BLOCK, H], tl.float32)
        units = product(activation(units, TANH), tl.load(at + below * H + unit), biases, PRECISION)
    units = activation(units, TANH)
    last = deep + (LAYERS - 1) * (H * H + H)
    direction = tl.load(last + 2 * H) + tl.sum(units * tl.load(last + unit), axis=1, keep_dims=True)
    magnitude = tl.load(last + 2 * H + 1) + tl.sum(units * tl.load(last + H + unit), axis=1, keep_dims=True)
    return direction, magnitude


@triton.jit
def product(x, weight, total, PRECISION: tl.constexpr):
    """``total + x @ weight``, with an input precision of :func:`tl.dot` or with ``"split"`` operands.

    Split: an operand is the sum of its 11 leading bits and a rest of half a unit, of which a tensor core reads 11 bits
    too. The three products that it adds leave out terms below ``2^-21`` of ``|x|·|weight|``.
    """
    if PRECISION == "split":
        x_high, x_low = split_float(x)
        weight_high, weight_low = split_float(weight)
        total = tl.dot(x_low, weight_high, total, input_precision="tf32")
        total = tl.dot(x_high, weight_low, total, input_precision="tf32")
        total = tl.dot(x_high, weight_high, total, input_precision="tf32")
    else:
        total = tl.dot(x, weight, total, input_precision=PRECISION)
    return total


@triton.jit
def split_float(x):
    """The nearest number with 11 significant bits, and the rest. NaN and infinities become NaN."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _side_by_side(x, CHANNELS: tl.constexpr):
    """Join a tuple of ``[BLOCK, 1]`` to ``[BLOCK, CHANNELS]``, padded with zeros, pairwise without data movement."""
    for _ in tl.static_range(CHANNELS - len(x)):
        x = x + (tl.zeros_like(x[0]),)
    for _ in tl.static_range(4 if CHANNELS == 16 else 5):
        pairs = ()
        for k in tl.static_range(len(x) // 2):
            pairs = pairs + (tl.join(x[k], x[len(x) // 2 + k]),)
        x = pairs
    return tl.reshape(x[0], [x[0].shape[0], CHANNELS])
