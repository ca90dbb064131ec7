"""The host's side of CELO2's last pass: tables that are kept while the parameters' addresses and shapes stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import guard
from pylo_zoo.kernels.base import Normalized
from pylo_zoo.kernels.gpu import normalize_pass
from pylo_zoo.kernels.gpu.launch import launch
from pylo_zoo.kernels.gpu.plan import MEANS, MEANS_TILE, Addresses, starts, view
from pylo_zoo.kernels.gpu.records import TYPES, bits, blocks, ceil_div, factors_of, rows
from pylo_zoo.ops.capture import is_capturing

LANES, PER_LANE = 128, 4
"""A tile of the sums, unless means interleave."""
MOST_CHUNKS = 256
"""Partial sums per mean."""
MOVE_BLOCK, COMBINED = 1024, (16, 64)
MOST_KEPT = 64
"""Sets of tables that are kept: one per call in a step of an optimizer."""


class Part(NamedTuple):
    """Parameters of one launch of each kernel that is specialized: their block tables and what they share."""

    p_type: torch.dtype
    varied: bool
    aligned: bool
    sums: Tensor
    moves: Tensor
    start: int
    """Their place in the table of addresses, which is also the number of their first record."""


class NormalizedTables:
    """The records of a call's parameters."""

    def __init__(self, tasks: Sequence[Normalized], kinds: Sequence[tuple[torch.dtype, bool, bool]]) -> None:
        device = tasks[0].p.device
        members: dict[tuple[torch.dtype, bool, bool], list[int]] = {}
        for k, kind in enumerate(kinds):
            members.setdefault(kind, []).append(k)
        self.steps = Addresses(list(members.values()), device)
        order = self.steps.order
        views = [view(tuple(tasks[k].p.shape), tasks[k].over) for k in order]
        walks = [self._walk(span, trailing) for _, span, trailing in views]
        means = [leading * trailing for leading, _, trailing in views]
        *mean_starts, self.means = starts(means)
        *part_starts, self.partials = starts([many * chunks for many, (_, chunks) in zip(means, walks, strict=True)])
        records = [
            {
                "p": tasks[k].p.data_ptr(), "size": tasks[k].p.numel(), "span": of.span, "trailing": of.trailing,
                "tiles": walk[0], "chunks": walk[1], "means": mean, "partials": part, "task": k,
                "eps": bits(tasks[k].eps),
            }
            for k, of, walk, mean, part in zip(order, views, walks, mean_starts, part_starts, strict=True)
        ]  # fmt: skip
        self.records = rows(normalize_pass.NORMALIZED, records, device)
        self.combined = blocks([ceil_div(many, COMBINED[0]) for many in means], device)
        self.parts = []
        for (kind, each), start in zip(members.items(), self.steps.starts, strict=True):
            at = range(start, start + len(each))
            counts = [views[k].leading * ceil_div(views[k].trailing, MEANS if kind[1] else 1) * walks[k][1] for k in at]
            moves = [ceil_div(tasks[k].p.numel(), MOVE_BLOCK) for k in each]
            self.parts.append(Part(*kind, blocks(counts, device, start), blocks(moves, device, start), start))

    @staticmethod
    def _walk(span: int, trailing: int) -> tuple[int, int]:
        """Tiles per program, and programs per mean."""
        tiles = ceil_div(span, MEANS_TILE if trailing > 1 else LANES * PER_LANE)
        each = ceil_div(tiles, MOST_CHUNKS)
        return each, ceil_div(tiles, each)


class GpuNormalizedPlan:
    """:class:`~pylo_zoo.kernels.base.NormalizedPlan` for a GPU. It keeps the tables of the last calls."""

    def __init__(self, tasks: Sequence[Normalized]) -> None:
        for over in {task.over for task in tasks}:
            if max(over) - min(over) != len(over) - 1:
                raise ZooError(f"Steps are normalized over the axes {over}.", "Pass adjacent axes.")
        self._device = tasks[0].p.device
        self._sizes = [task.p.numel() for task in tasks]
        self._tasks = [task._replace(p=torch.empty(0), step=torch.empty(0)) for task in tasks]
        self._shapes = [task.p.shape for task in tasks]
        self._kept: dict[object, NormalizedTables] = {}
        self._captured: list[NormalizedTables] = []

    def move(
        self,
        values: Sequence[Tensor],
        steps: Sequence[Tensor],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        device = self._device
        guard.check_steps(values, steps, self._sizes, tuple(TYPES), device)
        guard.check_numbers("coefficient", coefficient, len(values))
        guard.check_numbers("shrink", shrink, len(values))
        guard.check_proceed(proceed, device)
        shaped = zip(self._tasks, values, steps, self._shapes, strict=True)
        tasks = [task._replace(p=p.view(shape), step=step.view(shape)) for task, p, step, shape in shaped]
        self._run(tasks, factors_of(coefficient, device), factors_of(shrink, device), proceed)

    def _run(self, tasks: Sequence[Normalized], coefficient: Tensor, shrink: Tensor, proceed: Tensor | None) -> None:
        tables = self._tables(tasks)
        tables.steps.set([task.step.data_ptr() for task in tasks])
        steps, device = tables.steps.on_device(fixed=True), self._device
        partials, scales = (
            torch.empty(size, dtype=torch.float32, device=device) for size in (tables.partials, tables.means)
        )
        for part in tables.parts:
            launch(
                normalize_pass.sum_squares, len(part.sums), tables.records, steps, part.sums, partials,
                VARIED=part.varied, ALIGNED=part.aligned,
                TILE_0=MEANS_TILE if part.varied else LANES, TILE_1=MEANS if part.varied else PER_LANE,
            )  # fmt: skip
        launch(
            normalize_pass.combine_squares, len(tables.combined), tables.records, tables.combined, partials, scales,
            ROWS=COMBINED[1], BLOCK=COMBINED[0],
        )  # fmt: skip
        for part in tables.parts:
            launch(
                normalize_pass.move_normalized, len(part.moves), tables.records, steps, part.moves, scales,
                coefficient, shrink, proceed,
                P_TYPE=TYPES[part.p_type], ALIGNED=part.aligned, BLOCK=MOVE_BLOCK,
            )  # fmt: skip

    def _tables(self, tasks: Sequence[Normalized]) -> NormalizedTables:
        kinds = [_kind_of(task) for task in tasks]
        key = tuple((task.p.data_ptr(), task.p.shape, task.over, task.eps) for task in tasks), tuple(kinds)
        tables = self._kept.pop(key, None)
        if tables is None:
            tables = NormalizedTables(tasks, kinds)
        self._kept[key] = tables  # the last used is the last in the dict
        if is_capturing() and tables not in self._captured:
            self._captured.append(tables)  # the graph, which may be the caller's, reads them
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return tables


def _kind_of(task: Normalized) -> tuple[torch.dtype, bool, bool]:
    """Dtype; whether means interleave; whether addresses are multiples of 16 bytes and lengths multiples of 4."""
    _, span, trailing = view(tuple(task.p.shape), task.over)
    aligned = task.p.data_ptr() % 16 == task.step.data_ptr() % 16 == 0 and task.p.numel() % 4 == span % 4 == 0
    return task.p.dtype, trailing > 1, aligned
