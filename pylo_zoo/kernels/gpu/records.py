"""What the kernels know of each parameter: rows of int64 in one table, a name a column.

A launch serves many parameters. Each of its programs finds, in a block table, which row it works on and which part of
that parameter is its own; addresses and sizes it reads from the row.

The factored second moment sees a parameter's memory as ``[A, X, B, Y, C]``: X and Y are the two factored axes in
memory order, the others are merged around them. Of its two tables the *outer* one has lost Y, ``[A, X, B, C]``, and the
*inner* one X, ``[A, B, Y, C]``; which of them is ``row`` depends on which axis is the longer. The normaliser sees
memory as ``[leading, span, trailing]``: ``span`` elements share a mean, ``trailing`` of them lie interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

ELEMENTS = (
    "p", "momentum", "second_moment", "diag", "decay_momentum", "decay_rms", "decay_adafactor", "size", "task", "clip",
    "replace", "outer", "inner", "outer_size", "inner_size", "x", "b", "y", "c", "span", "trailing", "tiles", "chunks",
    "groups", "step",
)  # fmt: skip
"""A parameter: addresses, sizes, and where its parts of shared buffers begin."""
TABLES = (
    "state", "size", "entries", "part", "parts", "count", "is_row", "decay", "task", "along", "stride", "span",
    "trailing", "squares", "outer",
)  # fmt: skip
"""A ``row`` or ``col``: address, size, and where its parts of shared buffers begin."""
STEPS = ("p", "g", "momentum", "second_moment", "size", "task", "nesterov")
"""A parameter of AdamW."""

(
    P, MOMENTUM, SECOND_MOMENT, DIAG, DECAY_MOMENTUM, DECAY_RMS, DECAY_ADAFACTOR, SIZE, TASK, CLIP, REPLACE,
    OUTER, INNER, OUTER_SIZE, INNER_SIZE, X, B, Y, C, SPAN, TRAILING, TILES, CHUNKS, GROUPS, STEP,
) = map(tl.constexpr, range(len(ELEMENTS)))  # fmt: skip
(
    T_STATE, T_SIZE, T_ENTRIES, T_PART, T_PARTS, T_COUNT, T_IS_ROW, T_DECAY, T_TASK, T_ALONG, T_STRIDE, T_SPAN,
    T_TRAILING, T_SQUARES, T_OUTER,
) = map(tl.constexpr, range(len(TABLES)))  # fmt: skip
A_P, A_G, A_MOMENTUM, A_SECOND_MOMENT, A_SIZE, A_TASK, A_NESTEROV = map(tl.constexpr, range(len(STEPS)))
ELEMENT_FIELDS, TABLE_FIELDS, ADAM_FIELDS = (tl.constexpr(len(fields)) for fields in (ELEMENTS, TABLES, STEPS))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on the device, without waiting for it."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def rows(fields: Sequence[str], records: Sequence[dict[str, int]], device: torch.device) -> Tensor:
    """``[records, fields]``, int64."""
    return upload(torch.tensor([[record[name] for name in fields] for record in records], dtype=torch.int64), device)


def blocks(counts: Sequence[int], device: torch.device) -> Tensor:
    """A block table: for each program, the row it works on and its number there, ``[sum(counts), 2]``, int32."""
    each = torch.tensor(counts)
    row = torch.repeat_interleave(torch.arange(len(counts)), each)
    number = torch.arange(len(row)) - (each.cumsum(0) - each)[row]
    return upload(torch.stack([row, number], 1).to(torch.int32), device)


def bits(value: float) -> int:
    """The float32 nearest ``value``, as the integer of the same bits."""
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
