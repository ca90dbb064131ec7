"""The parameters' records for the kernels: an int64 table with one row per parameter and named columns.

A launch covers many parameters. Each program looks up its row and its part of that parameter in a block table, and
loads addresses and sizes from the row.

For the factored second moment, the shape is merged to ``[A, X, B, Y, C]``: X and Y are the factored axes in memory
order. Its two tables are the *outer* one ``[A, X, B, C]``, averaged over Y, and the *inner* one ``[A, B, Y, C]``,
averaged over X. The one averaged over the longer axis is ``row``. For the normalizer, the shape is merged to
``[leading, span, trailing]``: a mean has ``span`` elements, and ``trailing`` means interleave.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from pylo_zoo.ops.transfer import upload

ELEMENTS = (
    "p", "momentum", "second_moment", "diag", "decay_momentum", "decay_rms", "decay_adafactor", "size", "task", "clip",
    "replace", "outer", "inner", "outer_size", "inner_size", "x", "b", "y", "c", "span", "trailing", "tiles", "chunks",
    "groups", "step", "divide_run", "divide_planes", "divide_b", "divide_c", "divide_trailing",
    "outer_is_row",
)  # fmt: skip
"""Fields of a parameter: addresses, sizes, offsets, and :func:`divisor` of Y·C, X·B, B, C and trailing."""
TABLES = (
    "state", "size", "entries", "part", "parts", "count", "is_row", "decay", "task", "along", "stride", "span",
    "trailing", "squares", "outer",
)  # fmt: skip
"""Fields of a table (a ``row`` or ``col``): address, size, and offsets in shared buffers."""
STEPS = ("p", "momentum", "second_moment", "size", "task", "nesterov")
"""Fields of a parameter with AdamW."""

(
    P, MOMENTUM, SECOND_MOMENT, DIAG, DECAY_MOMENTUM, DECAY_RMS, DECAY_ADAFACTOR, SIZE, TASK, CLIP, REPLACE,
    OUTER, INNER, OUTER_SIZE, INNER_SIZE, X, B, Y, C, SPAN, TRAILING, TILES, CHUNKS, GROUPS, STEP, DIVIDE_RUN,
    DIVIDE_PLANES, DIVIDE_B, DIVIDE_C, DIVIDE_TRAILING, OUTER_IS_ROW,
) = map(tl.constexpr, range(len(ELEMENTS)))  # fmt: skip
(
    T_STATE, T_SIZE, T_ENTRIES, T_PART, T_PARTS, T_COUNT, T_IS_ROW, T_DECAY, T_TASK, T_ALONG, T_STRIDE, T_SPAN,
    T_TRAILING, T_SQUARES, T_OUTER,
) = map(tl.constexpr, range(len(TABLES)))  # fmt: skip
A_P, A_MOMENTUM, A_SECOND_MOMENT, A_SIZE, A_TASK, A_NESTEROV = map(tl.constexpr, range(len(STEPS)))
ELEMENT_FIELDS, TABLE_FIELDS, ADAM_FIELDS = (tl.constexpr(len(fields)) for fields in (ELEMENTS, TABLES, STEPS))


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Triton's dtypes of parameters and gradients."""


def rows(fields: Sequence[str], records: Sequence[dict[str, int]], device: torch.device) -> Tensor:
    """The table of ``records``: ``[records, fields]``, int64."""
    return upload(torch.tensor([[record[name] for name in fields] for record in records], dtype=torch.int64), device)


def blocks(counts: Sequence[int], device: torch.device, first: int = 0) -> Tensor:
    """A block table: the row of each program and its number within the row, ``[sum(counts), 2]``, int32.

    ``first`` is the number of the first row.
    """
    each = torch.tensor(counts)
    row = torch.repeat_interleave(torch.arange(len(counts)), each)
    number = torch.arange(len(row)) - (each.cumsum(0) - each)[row]
    return upload(torch.stack([row + first, number], 1).to(torch.int32), device)


def factors_of(values: Tensor | Sequence[float], device: torch.device) -> Tensor:
    """One number per parameter, on the device."""
    if not isinstance(values, Tensor) or values.is_cpu:
        return upload(torch.as_tensor(values, dtype=torch.float32), device)
    return values.detach().to(device, torch.float32, non_blocking=True).contiguous()


def scale_of(scale: Tensor | None, device: torch.device) -> Tensor:
    """The gradients' scale on the device, ``[1]``."""
    if scale is None:
        return torch.ones(1, dtype=torch.float32, device=device)
    return scale.detach().to(device, torch.float32).reshape(1)


def bits(value: float) -> int:
    """The bits of ``value`` as float32, as an integer."""
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


def divisor(d: int) -> int:
    """What :func:`pylo_zoo.kernels.gpu.elements.quotient` needs to divide by ``d``, ``0 < d < 2^30``.

    With ``s = ceil(log2 d)`` and ``M = ceil(2^(31+s) / d) < 2^32``, ``n // d = (n·M) >> (31+s)`` for ``n < 2^30``:
    with ``M·d = 2^(31+s) + e`` and ``e < d ≤ 2^s``, ``n·M / 2^(31+s) = n/d + n·e / (d·2^(31+s)) < n/d + 1/d``.
    """
    shift = 31 + (d - 1).bit_length()
    return shift << 32 | -(-(1 << shift) // d)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
