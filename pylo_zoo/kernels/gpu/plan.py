"""Tables of many parameters for the kernels, built once and valid while the parameters' addresses stay.

One launch covers all parameters of one :class:`Kind`: factored or not, matrices or more axes, 16-byte aligned or not.
The number of launches depends on the number of kinds, not of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels.base import Task
from pylo_zoo.kernels.gpu.records import ELEMENTS, bits, blocks, ceil_div, divisor, rows, upload
from pylo_zoo.kernels.gpu.tuning import Tuning
from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.capture import is_capturing
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.rule import Rule
from pylo_zoo.ops.slots import live

TILE_C = 16
"""A tile of the factor pass is ``[TILE_C] * 3`` if the last axes are not factored."""
PER_LANE = 4
"""Neighboring elements per thread: 16 bytes of float32."""
MEANS_TILE, MEANS = 32, 16
"""A tile of the moment pass if means interleave: elements of a mean, and means."""
PROGRAMS_OF_A_MEAN, INTERLEAVED_TILES = 2048, 4
"""In the moment pass, the most partial sums per mean, and the fewest tiles per program if means interleave."""
TABLE_BLOCK = 128
ALONG, ACROSS = 256, 4
"""A tile of a table's reduction: elements of a mean, and means."""


class View(NamedTuple):
    """A shape merged to ``[leading, span, trailing]``, for reductions over ``span``."""

    leading: int
    span: int
    trailing: int


class Kind(NamedTuple):
    """The properties of parameters for which kernels are specialized."""

    factored: bool
    plain: bool
    """A matrix, without axes before, between or after the factored ones."""
    trailing: bool
    """There are axes between or after the factored ones."""
    varied: bool
    """The normalizer's means interleave in memory."""
    aligned: bool
    """Addresses are multiples of 16 bytes, and row lengths multiples of 4."""
    p: torch.dtype
    g: torch.dtype


def view(shape: Sequence[int], axes: Sequence[int]) -> View:
    """The view of ``shape`` for a reduction over adjacent ``axes``."""
    first, last = min(axes) + len(shape), max(axes) + len(shape)
    return View(math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :]))


def kind_of(task: Task, rule: Rule) -> Kind:
    shape = tuple(task.p.shape)
    _, span, trailing = view(shape, task.axes.matrix if rule.per_matrix else task.axes.all)
    a, _, b, y, c = factored_view(shape, task.axes.factored)
    names = ["momentum", "second_moment", *([] if task.axes.factored else ["diag"])]
    aligned = all(x.data_ptr() % 16 == 0 for x in (task.p, task.g, *(task.state[name] for name in names)))
    aligned = aligned and task.p.numel() % 4 == span * trailing % 4 == y * c % 4 == 0
    factored, plain = task.axes.factored is not None, a * b * c == 1
    return Kind(factored, plain, b * c > 1, trailing > 1, aligned, task.p.dtype, task.g.dtype)


def factored_view(shape: Sequence[int], factored: tuple[int, int] | None) -> tuple[int, int, int, int, int]:
    """``A, X, B, Y, C`` (:mod:`pylo_zoo.kernels.gpu.records`). If unfactored, all elements are in Y."""
    if factored is None:
        return 1, 1, 1, math.prod(shape), 1
    x, y = sorted(axis + len(shape) for axis in factored)
    return math.prod(shape[:x]), shape[x], math.prod(shape[x + 1 : y]), shape[y], math.prod(shape[y + 1 :])


def starts(sizes: Sequence[int]) -> list[int]:
    """The offsets of consecutive pieces of these sizes, and the total."""
    return list(accumulate(sizes, initial=0))


@dataclass(frozen=True)
class Place:
    """A parameter's position and shape."""

    index: int
    """Position in the caller's order."""
    shape: tuple[int, ...]
    axes: Axes
    per_matrix: bool
    tuning: Tuning

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def five(self) -> tuple[int, int, int, int, int]:
        return factored_view(self.shape, self.axes.factored)

    @cached_property
    def means(self) -> View:
        return self.view(self.shape)

    def view(self, shape: Sequence[int]) -> View:
        """The normalizer's view of ``shape``, which is that of the parameter or of one of its tables."""
        return view(shape, self.axes.matrix if self.per_matrix else self.axes.all)

    @cached_property
    def walk(self) -> tuple[int, int, int]:
        """For the moment pass: tiles per program, programs per mean (or per strip of means), and number of means."""
        tile, fewest = self.tuning.moment_lanes * PER_LANE, self.tuning.moment_tiles
        if self.means.trailing > 1:
            tile, fewest = MEANS_TILE, INTERLEAVED_TILES
        tiles = ceil_div(self.means.span, tile)
        each = min(tiles, max(fewest, ceil_div(tiles, PROGRAMS_OF_A_MEAN)))
        strips = ceil_div(self.means.trailing, MEANS)
        return each, ceil_div(tiles, each), self.means.leading * strips


class Batch:
    """Parameters of one kind: their records and block tables, on the device.

    ``gradients_start`` is the place of their addresses in the plan's :class:`Addresses`.
    """

    def __init__(
        self,
        kind: Kind,
        members: Sequence[int],
        tasks: Sequence[Task],
        rule: Rule,
        tuning: Tuning,
        gradients_start: int,
    ) -> None:
        self.kind, self.tuning, self.gradients_start = kind, tuning, gradients_start
        self.device = tasks[members[0]].p.device
        self.places = [Place(k, tuple(tasks[k].p.shape), tasks[k].axes, rule.per_matrix, tuning) for k in members]
        self.step_starts = starts([ceil_div(place.size, 4) * 4 for place in self.places])
        self._group_starts = starts([place.walk[2] for place in self.places])
        self._decays = on_device([tasks[k] for k in members])  # keeps them alive: the records have their addresses
        self._moves: dict[int, Tensor] = {}

        pairs = [
            self._tables_of(place, tasks[place.index], decays)
            for place, decays in zip(self.places, self._decays, strict=True)
        ]
        # Records of ``row`` and ``col`` tables on the host; kernels read those of all batches together.
        self.tables_on_host = self._with_offsets([table for pair in pairs for table in pair])
        elements = [self._element(k, tasks[place.index]) for k, place in enumerate(self.places)]
        self.elements = rows(ELEMENTS, elements, self.device)

    @property
    def tile(self) -> tuple[int, int, int]:
        """Tile size of the factor pass, ``(x, y, c)``."""
        return (
            (TILE_C, TILE_C, TILE_C)
            if self.kind.trailing
            else (self.tuning.sums_rows, self.tuning.sums_blocks * 128, 1)
        )

    @cached_property
    def factor_tiles(self) -> Tensor:
        """Block table of the factor pass's tiles."""
        planes = [place.five[0] * place.five[2] for place in self.places]
        counts = [each * math.prod(self._tiles(place)) for each, place in zip(planes, self.places, strict=True)]
        return blocks(counts, self.device)

    @cached_property
    def factor_places(self) -> Tensor:
        """Offsets of the tiles' partial sums for the outer and the inner table, ``[N, 2]``."""
        return upload(torch.tensor([table["part"] for table in self.tables_on_host]).view(-1, 2), self.device)

    @cached_property
    def moment_tiles(self) -> Tensor:
        return blocks([place.walk[1] * place.walk[2] for place in self.places], self.device)

    @property
    def groups(self) -> int:
        """The number of groups in the moment pass, each with its own means."""
        return self._group_starts[-1]

    def move_tiles(self, block: int) -> Tensor:
        if block not in self._moves:
            means = [place.means for place in self.places]
            counts = [leading * ceil_div(span * trailing, block) for leading, span, trailing in means]
            self._moves[block] = blocks(counts, self.device)
        return self._moves[block]

    def _tiles(self, place: Place) -> tuple[int, int, int]:
        _, x, _, y, c = place.five
        return ceil_div(x, self.tile[0]), ceil_div(y, self.tile[1]), ceil_div(c, self.tile[2])

    def _tables_of(self, place: Place, task: Task, decays: Decays) -> list[dict[str, int]]:
        """The outer and the inner table of one parameter. An unfactored parameter has no tables."""
        if task.axes.factored is None:
            return []
        _, x, b, y, c = place.five
        d1, d0 = task.axes.factored
        tiles_x, tiles_y, _ = self._tiles(place)
        outer = {"parts": tiles_y, "count": y, "along": x, "stride": b * c, "is_row": int(d0 > d1), "outer": 1}
        inner = {"parts": tiles_x, "count": x, "along": y, "stride": c, "is_row": int(d0 < d1), "outer": 0}
        for table in (outer, inner):
            state = task.state["row" if table["is_row"] else "col"]
            means = place.view(tuple(state.shape[1:]))
            table |= {"state": state.data_ptr(), "size": state[0].numel(), "decay": decays.adafactor.data_ptr()}
            table |= {"task": place.index, "span": means.span, "trailing": means.trailing, "leading": means.leading}
        return [outer, inner]

    def _with_offsets(self, tables: list[dict[str, int]]) -> list[dict[str, int]]:
        """The tables, with their offsets in shared buffers."""
        *entries, self.entries_total = starts([ceil_div(table["size"], 4) * 4 for table in tables])
        *parts, self.parts_total = starts([table["size"] * table["parts"] for table in tables])
        *squares, self.scales_total = starts([6 * table["leading"] * table["trailing"] for table in tables])
        return [
            {**table, "entries": entry, "part": part, "squares": square}
            for table, entry, part, square in zip(tables, entries, parts, squares, strict=True)
        ]

    def _element(self, k: int, task: Task) -> dict[str, int]:
        place, decays, state = self.places[k], self._decays[k], task.state
        _, x, b, y, c = place.five
        no_table = {"entries": 0, "size": 0, "is_row": 0}
        outer, inner = self.tables_on_host[2 * k : 2 * k + 2] if self.kind.factored else [no_table] * 2
        return {
            "p": task.p.data_ptr(),
            "momentum": state["momentum"].data_ptr(),
            "second_moment": state["second_moment"].data_ptr(),
            "diag": 0 if self.kind.factored else state["diag"].data_ptr(),
            "decay_momentum": decays.momentum.data_ptr(),
            "decay_rms": decays.rms.data_ptr(),
            "decay_adafactor": decays.adafactor.data_ptr(),
            "size": task.p.numel(),
            "task": place.index,
            "clip": bits(task.max_gradient),
            "replace": int(task.replace_nonfinite),
            "outer": outer["entries"],
            "inner": inner["entries"],
            "outer_size": outer["size"],
            "inner_size": inner["size"],
            "x": x,
            "b": b,
            "y": y,
            "c": c,
            "span": place.means.span,
            "trailing": place.means.trailing,
            "tiles": place.walk[0],
            "chunks": place.walk[1],
            "groups": self._group_starts[k],
            "step": self.step_starts[k],
            "divide_run": divisor(y * c),
            "divide_planes": divisor(x * b),
            "divide_b": divisor(b),
            "divide_c": divisor(c),
            "divide_trailing": divisor(place.means.trailing),
            "outer_is_row": outer["is_row"],
        }


class Addresses:
    """Addresses of tensors that can change at each step, as a table that is uploaded if they do.

    Args:
        members: the parameters of each batch. A batch starts at an even place, so that its part of the table is aligned
            to 16 bytes.
        device: the kernels' device.

    Attributes:
        order: the parameter at each place; a batch with an odd number repeats its first.
        starts: the first place of each batch.
    """

    def __init__(self, members: Sequence[Sequence[int]], device: torch.device) -> None:
        self.order: list[int] = []
        self.starts: list[int] = []
        for each in members:
            self.starts.append(len(self.order))
            self.order += [*each, *each[: len(each) % 2]]
        self._device = device
        self._on_host: list[int] = []
        self._changed = True
        self._on_device = torch.empty(0)

    def set(self, addresses: Sequence[int]) -> None:
        """Set this step's addresses, in the caller's order of parameters."""
        ordered = list(map(addresses.__getitem__, self.order))
        self._changed = self._changed or ordered != self._on_host
        self._on_host = ordered

    def on_device(self, fixed: bool = False) -> Tensor:
        """The table, int64. ``fixed``: a graph reads the memory that it was captured with, at each replay."""
        if is_capturing():  # a graph needs its own table
            return self._new_table(list(self._on_host) if fixed else None)
        if self._changed:
            self._on_device, self._changed = self._new_table(), False
        return self._on_device

    def _new_table(self, fixed: list[int] | None = None) -> Tensor:
        def read() -> Tensor:
            return torch.tensor(self._on_host if fixed is None else fixed, dtype=torch.int64)

        return live(read, (len(self.order),), self._device, torch.int64)


class BatchPlan:
    """All parameters of a call, in one batch per kind.

    Attributes:
        joined: the tables of all batches (:class:`~pylo_zoo.kernels.gpu.joined.Joined`).
        packers: :class:`~pylo_zoo.kernels.gpu.packing.Packer` by the shapes of layers.
    """

    def __init__(self, tasks: Sequence[Task], rule: Rule, tuning: Tuning) -> None:
        self.tasks = len(tasks)
        kinds: dict[Kind, list[int]] = {}
        for k, task in enumerate(tasks):
            kinds.setdefault(kind_of(task, rule), []).append(k)
        self.joined: Any = None
        self.packers: dict[Any, Any] = {}
        self.gradients = Addresses(list(kinds.values()), tasks[0].p.device)
        self.batches = [
            Batch(kind, members, tasks, rule, tuning, start)
            for (kind, members), start in zip(kinds.items(), self.gradients.starts, strict=True)
        ]


def on_device(tasks: Sequence[Task]) -> list[Decays]:
    """The tasks' decays as contiguous float32 tensors on their device, without a copy if they already are."""
    copies: dict[int, Decays] = {}
    for task in tasks:
        key = id(task.decays)
        if key not in copies:
            like = {"device": task.p.device, "dtype": torch.float32}
            copies[key] = Decays(*(decay.detach().to(**like).contiguous() for decay in task.decays))
    return [copies[id(task.decays)] for task in tasks]
