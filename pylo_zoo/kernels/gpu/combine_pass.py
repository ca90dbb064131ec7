"""Small kernels between the passes. Each runs once for the parameters of all kinds, so launches do not add up."""

# Triton's types differ from Python's, so type checkers report false errors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.elements import integer

GROUP = ("partials", "count", "width", "sums", "span")
"""Fields of a group, whose programs share means: offsets, number of programs and of sums, elements per mean."""
G_PARTIALS, G_COUNT, G_WIDTH, G_SUMS, G_SPAN = map(tl.constexpr, range(len(GROUP)))
GROUP_FIELDS = tl.constexpr(len(GROUP))
WHOLE = ("sums", "count", "channels", "means", "size", "task")
"""Fields of a parameter: offset and number of its groups' sums, channels and means per group, elements."""
W_SUMS, W_COUNT, W_CHANNELS, W_MEANS, W_SIZE, W_TASK = map(tl.constexpr, range(len(WHOLE)))
WHOLE_FIELDS = tl.constexpr(len(WHOLE))
FOLD = ("task", "columns", "channels", "scales", "out")
"""Fields of a row of folded weights: its parameter, offset of its columns, channels, offset of its scales or −1, and
offset of the result in units of the layer's width."""
F_TASK, F_COLUMNS, F_CHANNELS, F_SCALES, F_OUT = map(tl.constexpr, range(len(FOLD)))
FOLD_FIELDS = tl.constexpr(len(FOLD))
CHANNELS = 32
"""The most features per element."""


@triton.jit
def combine_groups(groups, partials, sums, scales, norm_eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the partial sums of each group's programs in a fixed order; ``scales`` are ``rsqrt(eps + mean)``."""
    row = groups + tl.program_id(0) * GROUP_FIELDS
    count, width = integer(row, G_COUNT), integer(row, G_WIDTH)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    read = partials + tl.load(row + G_PARTIALS)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, ROWS):
        program = start + tl.arange(0, ROWS)[:, None]
        mask = (program < count) & (column < width)[None, :]
        total += tl.sum(tl.load(read + program.to(tl.int64) * width + column[None, :], mask, 0.0), axis=0)
    place = tl.load(row + G_SUMS) + column
    tl.store(sums + place, total, column < width)
    tl.store(scales + place, tl.rsqrt(norm_eps + total / integer(row, G_SPAN).to(tl.float32)), column < width)


@triton.jit
def moments_of_all(
    wholes, sums, moments, sizes, MOMENTS: tl.constexpr, PARAMETER_SCALE: tl.constexpr, BLOCK: tl.constexpr
):
    """Means over whole parameters: ``moments [tasks, 9]``; the factor on each step: ``sizes [tasks]``."""
    row = wholes + tl.program_id(0) * WHOLE_FIELDS
    channels, means = integer(row, W_CHANNELS), integer(row, W_MEANS)
    count, size, task = integer(row, W_COUNT) * means, integer(row, W_SIZE), tl.load(row + W_TASK)
    read = sums + tl.load(row + W_SUMS)
    channel = tl.arange(0, 16)[None, :]
    total = tl.zeros([16], tl.float32)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)[:, None]
        place = (k // means * channels + channels - MOMENTS + channel) * means + k % means
        total += tl.sum(tl.load(read + place, (k < count) & (channel < MOMENTS), 0.0), axis=0)
    mean = total / size.to(tl.float32)
    tl.store(moments + task * MOMENTS + tl.arange(0, 16), mean, tl.arange(0, 16) < MOMENTS)
    square = tl.sum(tl.where(tl.arange(0, 16) == 0, mean, 0.0), axis=0)
    tl.store(sizes + task, tl.sqrt(square + 1e-9) if PARAMETER_SCALE else square * 0 + 1)


@triton.jit
def fold_first(
    rows, columns, first, first_stride, inputs, scales, folded, H: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The first layer's weights for features per element, times their scales: ``folded [channels, H]`` per row.

    Args:
        columns: the network input of each channel, and a second one that is added, or −1.
        first: ``[1 or tasks, H, inputs]``.
    """
    row = rows + tl.program_id(0) * FOLD_FIELDS
    channel, unit = tl.arange(0, CHANNELS)[:, None], tl.arange(0, H)[None, :]
    inside = channel < integer(row, F_CHANNELS)
    of_channel = columns + tl.load(row + F_COLUMNS) + channel
    one, other = tl.load(of_channel, inside, 0), tl.load(of_channel + CHANNELS, inside, -1)
    weight = first + tl.load(row + F_TASK) * first_stride + unit * inputs
    total = tl.load(weight + one, inside, 0.0) + tl.load(weight + other, inside & (other >= 0), 0.0)
    at = tl.load(row + F_SCALES)
    if at >= 0:
        total *= tl.load(scales + at + channel, inside, 0.0)
    tl.store(folded + tl.load(row + F_OUT) * H + channel * H + unit, total, inside)
