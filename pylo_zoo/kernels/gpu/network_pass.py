"""The network on a tile of elements, inside the move pass: in registers or by matrix products (SPEC §3–§6).

Inputs are a tuple of features, each ``[lanes, neighbors]``. Results are direction and magnitude, of the same shape.
"""

# Triton's types differ from Python's, so type checkers report false errors. Tuples must grow by + (RUF005).
# ruff: noqa: RUF005
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.elements import activation, offset_of, plane_size
from pylo_zoo.kernels.gpu.records import INNER, INNER_SIZE, OUTER, OUTER_SIZE


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
def table_inputs(normalized, row, outer, inner, mask, PER_LANE: tl.constexpr, ALIGNED: tl.constexpr):
    """Inputs that are constant along an axis, as ``[lanes, PER_LANE]``: six of the outer table and six of the inner."""
    at_outer, at_inner = normalized + 6 * tl.load(row + OUTER), normalized + 6 * offset_of(row, INNER, ALIGNED)
    x, size, outer_size = (), plane_size(row, INNER_SIZE, ALIGNED), tl.load(row + OUTER_SIZE)
    like = tl.zeros([outer.shape[0], PER_LANE], tl.float32)
    for k in tl.static_range(6):
        x = x + (tl.load(at_outer + k * outer_size + outer, mask, 0.0) + like,)
    for k in tl.static_range(6):
        x = x + (tl.load(at_inner + k * size + inner, mask, 0.0) + like,)
    return x


@triton.jit
def multiplied(
    x, first, of_tables, outer_is_row, bias, deep,
    ELEMENTS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, TANH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Direction and magnitude, with matrix products. ``x``: ``ELEMENTS`` inputs per element, then those of tables."""
    CHANNELS: tl.constexpr = 16 if len(x) <= 16 else 32
    BLOCK: tl.constexpr = x[0].shape[0] * x[0].shape[1]
    channel, unit = tl.arange(0, CHANNELS)[:, None], tl.arange(0, H)[None, :]
    if len(x) > ELEMENTS:
        of_table = channel - ELEMENTS
        by_row = (of_table < 6) == (outer_is_row != 0)
        at = tl.where(channel < ELEMENTS, first + channel * H, of_tables + (of_table % 6 + tl.where(by_row, 0, 6)) * H)
    else:
        at = first + channel * H
    weight = tl.load(at + unit, channel < len(x), 0.0)
    biases = tl.load(bias + unit) + tl.zeros([BLOCK, H], tl.float32)
    units = product(_side_by_side(x, CHANNELS), weight, biases, PRECISION)
    # A thread holds outputs 2t and 2t + 1 of eight, and needs inputs t and t + 4. The inputs of a layer can be in any
    # order, so they are renamed instead of exchanged between threads.
    place = tl.arange(0, H)[:, None]
    below = place // 8 * 8 + place % 4 * 2 + place // 4 % 2
    for layer in tl.static_range(LAYERS - 1):
        of_layer = deep + layer * (H * H + H)
        biases = tl.load(of_layer + H * H + unit) + tl.zeros([BLOCK, H], tl.float32)
        units = tl.permute(tl.reshape(activation(units, TANH), [BLOCK, H // 8, 4, 2]), (0, 1, 3, 2))
        units = product(tl.reshape(units, [BLOCK, H]), tl.load(of_layer + below * H + unit), biases, PRECISION)
    units = activation(units, TANH)
    last = deep + (LAYERS - 1) * (H * H + H)
    direction = tl.load(last + 2 * H) + tl.sum(units * tl.load(last + unit), axis=1)
    magnitude = tl.load(last + 2 * H + 1) + tl.sum(units * tl.load(last + H + unit), axis=1)
    return tl.reshape(direction, x[0].shape), tl.reshape(magnitude, x[0].shape)


@triton.jit
def product(x, weight, total, PRECISION: tl.constexpr):
    """``total + x @ weight``, with an input precision of :func:`tl.dot` or with ``"split"`` operands.

    Split: an operand is the sum of a number of 11 significant bits and a rest of at most 2^-11 of it. Tensor cores read
    11 bits of each, so they leave out at most 2^-21 of either operand, and the product of the rests is left out: at
    most ``2.5·2^-21·|x|·|weight|`` per product.
    """
    if PRECISION == "split":
        x_high, x_low = split_float(x)
        weight_high, weight_low = split_float(weight)
        total = tl.dot(x_high, weight_low, total, input_precision="tf32")
        total = tl.dot(x_high, weight_high, total, input_precision="tf32")
        total = tl.dot(x_low, weight_high, total, input_precision="tf32")
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
    """Join a tuple of ``[lanes, neighbors]`` to ``[elements, CHANNELS]``, padded with zeros, without data movement."""
    for _ in tl.static_range(CHANNELS - len(x)):
        x = x + (tl.zeros_like(x[0]),)
    for _ in tl.static_range(4 if CHANNELS == 16 else 5):
        pairs = ()
        for k in tl.static_range(len(x) // 2):
            pairs = pairs + (tl.join(x[k], x[len(x) // 2 + k]),)
        x = pairs
    return tl.reshape(x[0], [x[0].shape[0] * x[0].shape[1], CHANNELS])
