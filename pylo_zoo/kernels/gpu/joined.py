"""Tables of all batches of a plan, for kernels that are not specialized for a kind: one launch for all of them.

The batches keep their own offsets. Their parts of the shared buffers start at multiples of four floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels.gpu import combine_pass
from pylo_zoo.kernels.gpu.combine_pass import CHANNELS
from pylo_zoo.kernels.gpu.network import Inputs
from pylo_zoo.kernels.gpu.plan import ACROSS, MEANS, TABLE_BLOCK, Batch, starts
from pylo_zoo.kernels.gpu.records import TABLES, blocks, ceil_div, rows
from pylo_zoo.ops.transfer import upload


class Part(NamedTuple):
    """Where a batch's parts of the shared buffers start, in floats, or in rows of ``folded``."""

    entries: int
    parts: int
    table_scales: int
    partials: int
    sums: int
    folded: int


class Joined:
    """The tables of all batches.

    Args:
        batches: the batches of a plan.
        inputs: the features per element of each.
        statistics: channels of the moment pass besides the features.

    Attributes:
        entries_by_layout: block tables of entries whose additions to the first layer's output are stored by entry
            (True) or by unit (:func:`pylo_zoo.kernels.gpu.move_pass.fold_tables`).
    """

    def __init__(self, batches: Sequence[Batch], inputs: Sequence[Inputs], statistics: int) -> None:
        self.device, self.statistics = batches[0].device, statistics
        self.channels = [len(each.select) + statistics for each in inputs]
        self.means = [MEANS if batch.kind.varied else 1 for batch in batches]
        widths = [channels * means for channels, means in zip(self.channels, self.means, strict=True)]
        sizes = {
            "entries": [batch.entries_total for batch in batches],
            "parts": [batch.parts_total for batch in batches],
            "table_scales": [batch.scales_total for batch in batches],
            "partials": [len(batch.moment_tiles) * width for batch, width in zip(batches, widths, strict=True)],
            "sums": [batch.groups * width for batch, width in zip(batches, widths, strict=True)],
            "folded": [self._folded_rows(batch) * len(of.select) for batch, of in zip(batches, inputs, strict=True)],
        }
        offsets = {name: starts([ceil_div(size, 4) * 4 for size in of]) for name, of in sizes.items()}
        self.totals = {name: each[-1] for name, each in offsets.items()}
        self.parts = [Part(**{name: each[k] for name, each in offsets.items()}) for k in range(len(batches))]
        self.one = torch.ones(1, dtype=torch.float32, device=self.device)
        self.elements = torch.cat([batch.elements for batch in batches])
        self._join_tables(batches)
        self.width = max(widths)
        self._join_groups(batches, widths)
        self._join_folds(batches, inputs)

    def _join_tables(self, batches: Sequence[Batch]) -> None:
        """The tables' records with offsets in the shared buffers, and their block tables."""
        records = []
        for batch, part in zip(batches, self.parts, strict=True):
            bases = {"entries": part.entries, "part": part.parts, "squares": part.table_scales}
            records += [
                {**table, **{name: table[name] + base for name, base in bases.items()}}
                for table in batch.tables_on_host
            ]
        self.has_tables = bool(records)
        if records:
            self.tables = rows(TABLES, records, self.device)
            counts = [ceil_div(table["size"], TABLE_BLOCK) for table in records]
            by_lane = [batch.kind.plain and batch.kind.aligned for batch in batches for _ in batch.tables_on_host]
            self.entries = blocks(counts, self.device)
            self.entries_by_layout = {
                layout: blocks([n * (each == layout) for n, each in zip(counts, by_lane, strict=True)], self.device)
                for layout in set(by_lane)
            }
            self.row_strips = blocks(
                [each["is_row"] * _strips(each, "along", "stride") for each in records], self.device
            )
            self.scale_strips = blocks([_strips(each, "span", "trailing") for each in records], self.device)

    def _join_groups(self, batches: Sequence[Batch], widths: Sequence[int]) -> None:
        groups, wholes = [], []
        for batch, part, width, channels, means in zip(
            batches, self.parts, widths, self.channels, self.means, strict=True
        ):
            first_program = group = 0
            for place in batch.places:
                _, chunks, many = place.walk
                whole = {"sums": part.sums + group * width, "count": many, "channels": channels, "means": means}
                wholes.append({**whole, "size": place.size, "task": place.index})
                for _ in range(many):
                    program = part.partials + first_program * width
                    groups.append(
                        {
                            "partials": program, "count": chunks, "width": width, "sums": part.sums + group * width,
                            "span": place.means.span,
                        }
                    )  # fmt: skip
                    first_program, group = first_program + chunks, group + 1
        self.groups = rows(combine_pass.GROUP, groups, self.device)
        self.wholes = rows(combine_pass.WHOLE, wholes, self.device)

    def _join_folds(self, batches: Sequence[Batch], inputs: Sequence[Inputs]) -> None:
        records, columns = [], []
        for batch, part, of, channels in zip(batches, self.parts, inputs, self.channels, strict=True):
            second = [-1] * (len(of.columns) - len(of.second_columns)) + list(of.second_columns)
            padding = [0] * (CHANNELS - len(of.columns))
            columns += [*of.columns, *padding, *second, *padding]
            count, number = len(of.select), 0
            for place in batch.places:
                many = 1 if batch.kind.varied else place.walk[2]
                for _ in range(many):
                    scales = -1 if batch.kind.varied else part.sums + number * channels
                    out = part.folded + number * count
                    at = len(columns) - 2 * CHANNELS
                    records.append(
                        {"task": place.index, "columns": at, "channels": count, "scales": scales, "out": out}
                    )
                    number += 1
        self.folds = rows(combine_pass.FOLD, records, self.device)
        self.columns = upload(torch.tensor(columns, dtype=torch.int32), self.device)

    @staticmethod
    def _folded_rows(batch: Batch) -> int:
        return len(batch.places) if batch.kind.varied else sum(place.walk[2] for place in batch.places)

    def floats(self, name: str, factor: int = 1) -> Tensor:
        """An uninitialized shared buffer, of ``factor`` floats per unit of :class:`Part`."""
        return torch.empty(factor * self.totals[name], dtype=torch.float32, device=self.device)


def _strips(table: dict[str, int], span: str, trailing: str) -> int:
    return table["size"] // (table[span] * table[trailing]) * ceil_div(table[trailing], ACROSS)
