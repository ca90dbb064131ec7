"""Triton kernels for NVIDIA and AMD GPUs, compiled at first use.

:class:`GpuKernels` implements :class:`pylo_zoo.kernels.base.Kernels`. The parameters of a call are grouped by kind
(:mod:`~pylo_zoo.kernels.gpu.plan`), and each kind needs a fixed number of launches. No sum depends on the order in
which programs run, and no call synchronizes with the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pylo_zoo.kernels import guard
from pylo_zoo.kernels.base import Adam, Kernels, Normalized, ScratchBuffer, Task
from pylo_zoo.kernels.gpu import combine_pass, factor_pass, moment_pass, move_pass
from pylo_zoo.kernels.gpu.adam_plan import GpuAdamPlan
from pylo_zoo.kernels.gpu.joined import Joined, Part
from pylo_zoo.kernels.gpu.launch import launch
from pylo_zoo.kernels.gpu.moment_pass import STATISTICS
from pylo_zoo.kernels.gpu.network import IN_REGISTERS, Inputs, inputs_of, is_supported
from pylo_zoo.kernels.gpu.normalized import GpuNormalizedPlan
from pylo_zoo.kernels.gpu.packing import packer_of
from pylo_zoo.kernels.gpu.plan import (
    ACROSS,
    ALONG,
    MEANS,
    MEANS_TILE,
    PER_LANE,
    TABLE_BLOCK,
    Batch,
    BatchPlan,
)
from pylo_zoo.kernels.gpu.records import TYPES, ceil_div, factors_of, scale_of
from pylo_zoo.kernels.gpu.tuning import TUNING, Tuning
from pylo_zoo.ops.capture import is_capturing
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.lstm import LSTMWeights
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

LARGEST_SIZE = 2**30
"""A parameter must have fewer elements, because indices are 32-bit."""
MAX_UNITS = 64
"""Maximum number of units of a hidden layer."""


class AdvancedBatch(NamedTuple):
    """Results of the factor and moment passes for one batch; parts of buffers that all batches share."""

    batch: Batch
    part: Part
    inputs: Inputs
    gradients: Tensor
    factors: Tensor
    """``row_factor`` and ``col_factor``, three planes per table."""
    scales: Tensor
    """The normalizer's scales of the features that are not tables: ``[groups, features, means]``."""


class Advanced(NamedTuple):
    """Result of :meth:`GpuPlan.advance`, used by the other methods."""

    plan: BatchPlan
    values: Sequence[Tensor]
    rule: Rule
    scale: Tensor
    samples: Tensor
    """Approximate means of m ``[3]`` and v: ``[N, 4]``, if the plan has moments."""
    moments: Tensor
    """Means of p², and if the plan has moments, of m, m², v and v² relative to the samples: ``[N, 1 or 9]``."""
    sizes: Tensor
    """The rule's factor on each step: ``[N]``."""
    scales: Tensor
    """Those of all batches."""
    table_scales: Tensor
    """The normalizer's scales of ``row``, ``col`` and their roots: ``[means, 6]``."""
    batches: list[AdvancedBatch]
    kept: Sequence[Tensor]
    """The gradients, which can be copies: the move pass reads their memory again."""


class GpuPlan:
    """:class:`~pylo_zoo.kernels.base.KernelPlan` for a GPU: the tables of :class:`BatchPlan`.

    The tables are built again if the address of a value changes, or the dtype or alignment of a gradient.
    """

    def __init__(self, tasks: Sequence[Task], rule: Rule, moments: bool, tuning: Tuning) -> None:
        self._rule, self._tuning, self._statistics = rule, tuning, STATISTICS if moments else 1
        self._device = tasks[0].p.device
        self._kept = [tensor for task in tasks for tensor in task.state.values()]
        self._tasks = [task._replace(p=torch.empty(0), g=torch.empty(0)) for task in tasks]
        self._batches: BatchPlan | None = None
        self._captured: list[BatchPlan] = []
        self._signature: tuple[object, ...] = ()

    def bind(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> BatchPlan:
        addresses = list(map(Tensor.data_ptr, gradients))
        aligned = [address % 16 == 0 for address in addresses]
        signature = list(map(Tensor.data_ptr, values)), [g.dtype for g in gradients], aligned
        if self._batches is None or signature != self._signature:
            plan = BatchPlan(self._with(values, gradients), self._rule, self._tuning)
            inputs = [_inputs(batch, self._rule) for batch in plan.batches]
            plan.joined = Joined(plan.batches, inputs, self._statistics)
            self._batches, self._signature = plan, signature
        self._batches.gradients.set(addresses)
        return self._batches

    def advance(
        self,
        values: Sequence[Tensor],
        gradients: Sequence[Tensor],
        scale: Tensor | None,
        checked: bool = False,
        proceed: Tensor | None = None,
    ) -> Advanced:
        device = self._device
        if not checked:
            guard.check_tasks(self._with(values, gradients), GpuKernels.dtypes, device)
        guard.check_numbers("scale", scale, 1)
        guard.check_proceed(proceed, device)
        plan = self.bind(values, gradients)
        if is_capturing() and plan not in self._captured:
            self._captured.append(plan)  # the graph, which may be the caller's, reads its tables
        factor = plan.joined.one if scale is None else scale_of(scale, device)
        return _advance(plan, values, gradients, self._rule, factor, proceed)

    def _with(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Task]:
        return [task._replace(p=p, g=g) for task, p, g in zip(self._tasks, values, gradients, strict=True)]


class GpuKernels(Kernels):
    """The kernels of a GPU.

    Args:
        precision: precision of the matrix products of wide networks: ``"split"``, three TF32 products of split
            operands, or one of Triton's ``input_precision``. The default is ``"split"``, or ``"ieee"`` on AMD.
            ``"tf32"`` is faster, with 10 bits of mantissa.
        tuning: block sizes.
    """

    dtypes = tuple(TYPES)
    graphs = True
    bucket = 1 << 26
    """About 270 MB of steps, if a family stores them."""

    def __init__(self, precision: str | None = None, tuning: Tuning = TUNING) -> None:
        self.tuning = tuning
        self.precision = precision or ("ieee" if torch.version.hip else "split")

    def __repr__(self) -> str:
        return f"Triton {triton.__version__}"

    def covers(self, p: Tensor, axes: Axes, rule: Rule, hidden: int) -> bool:
        span = axes.matrix if rule.per_matrix else axes.all
        adjacent = max(span) - min(span) == len(span) - 1
        return 0 < p.numel() < LARGEST_SIZE and 0 < hidden <= MAX_UNITS and adjacent and is_supported(rule)

    def plan(self, tasks: Sequence[Task], rule: Rule, moments: bool = False) -> GpuPlan:
        guard.check_tasks(tasks, self.dtypes, tasks[0].p.device)
        guard.check_decays(tasks)
        return GpuPlan(tasks, rule, moments, self.tuning)

    def moments(self, advanced: Advanced) -> Tensor:
        p2, m, m2, v, v2 = advanced.moments.split([1, 3, 3, 1, 1], dim=1)  # the last four relative to the samples
        m_sample, v_sample = advanced.samples.split([3, 1], dim=1)
        return torch.cat([p2, m_sample + m, m2 - m.square(), v_sample + v, v2 - v.square()], dim=1)

    def move(
        self,
        advanced: Advanced,
        layers: Sequence[Layer],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        device, count = advanced.moments.device, advanced.plan.tasks
        guard.check_layers(layers, advanced.rule, count, device, MAX_UNITS)
        guard.check_numbers("coefficient", coefficient, count)
        guard.check_numbers("shrink", shrink, count)
        guard.check_proceed(proceed, device)
        self._apply(advanced, layers, (factors_of(coefficient, device), factors_of(shrink, device)), None, proceed)

    def steps(
        self, advanced: Advanced, layers: Sequence[Layer], scratch: ScratchBuffer, proceed: Tensor | None = None
    ) -> list[Tensor]:
        guard.check_layers(layers, advanced.rule, advanced.plan.tasks, advanced.moments.device, MAX_UNITS)
        guard.check_proceed(proceed, advanced.moments.device)
        # ``scratch`` is not used: torch's allocator reuses a GPU's memory.
        unused, batches = advanced.moments, [each.batch for each in advanced.batches]
        flat = [_floats(unused.device, batch.step_starts[-1]) for batch in batches]
        self._apply(advanced, layers, (unused, unused), flat, proceed)
        steps: dict[int, Tensor] = {}
        for batch, of_batch in zip(batches, flat, strict=True):
            for place, start in zip(batch.places, batch.step_starts, strict=False):
                steps[place.index] = of_batch[start : start + place.size].view(place.shape)
        return [steps[k] for k in range(advanced.plan.tasks)]

    def plan_normalized(self, tasks: Sequence[Normalized]) -> GpuNormalizedPlan:
        guard.check_normalized(tasks, self.dtypes, tasks[0].p.device)
        return GpuNormalizedPlan(tasks)

    def plan_lstm(self, weights: LSTMWeights, hidden: Tensor, cell: Tensor, ranks: Tensor | None) -> None:
        """The eager implementation computes the LSTM."""

    def plan_adam(self, tasks: Sequence[Adam]) -> GpuAdamPlan:
        guard.check_adam(tasks, self.dtypes, tasks[0].p.device)
        return GpuAdamPlan(tasks)

    def _apply(
        self,
        advanced: Advanced,
        layers: Sequence[Layer],
        factors: tuple[Tensor, Tensor],
        steps: Sequence[Tensor] | None,
        proceed: Tensor | None,
    ) -> None:
        """The move pass: fold the normalizer into the network, then run it on each batch."""
        plan, rule = advanced.plan, advanced.rule
        joined: Joined = plan.joined
        network, weights = packer_of(plan, layers, rule).pack(layers)
        units, tuning = network.units, self.tuning
        wide = units > IN_REGISTERS and tuning.network != "registers"
        bias, bias_stride = network.bias, _stride(network.bias)
        per_entry = 6 if wide else units
        first, additions = joined.floats("folded", units), joined.floats("entries", per_entry)
        launch(
            combine_pass.fold_first, len(joined.folds), joined.folds, joined.columns, network.first,
            _stride(network.first), network.first.shape[2], advanced.scales, first,
            H=units, CHANNELS=combine_pass.CHANNELS,
        )  # fmt: skip
        if weights is not None and wide:
            launch(
                move_pass.normalize_tables, len(joined.entries), joined.tables, joined.entries, advanced.table_scales,
                additions, BLOCK=TABLE_BLOCK,
            )  # fmt: skip
        elif weights is not None:
            for rows_of_h, entries in joined.entries_by_layout.items():
                launch(
                    move_pass.fold_tables, len(entries), joined.tables, entries, advanced.table_scales,
                    weights, _stride(weights), bias, bias_stride, additions,
                    H=units, ROWS_OF_H=rows_of_h, BLOCK=TABLE_BLOCK,
                )  # fmt: skip
        of_tables = bias if weights is None else weights
        lanes, per_lane, tiles, warps = tuning.network_sizes if units > IN_REGISTERS else tuning.move_sizes
        for k, (batch, part, inputs, gradients, of_factors, scales) in enumerate(advanced.batches):
            kind, programs = batch.kind, batch.move_tiles(lanes * per_lane * tiles)
            launch(
                move_pass.move_elements, len(programs), batch.elements, gradients, programs, advanced.scale,
                of_factors, additions[per_entry * part.entries :], first[units * part.folded :], scales,
                of_tables, _stride(of_tables), network.deep, _stride(network.deep), bias, bias_stride,
                *factors, advanced.sizes, advanced.sizes if steps is None else steps[k], proceed,
                rule.rsqrt_eps, rule.diag_eps, rule.exp_mult,
                FACTORED=kind.factored, PLAIN=kind.plain, VARIED=kind.varied, ALIGNED=kind.aligned,
                P_TYPE=TYPES[kind.p], G_TYPE=TYPES[kind.g], SELECT=inputs.select, MEANS=MEANS,
                H=units, LAYERS=network.hidden_layers, TANH=rule.activation == "tanh",
                PRECISION=self.precision if wide else "", MOVE=steps is None,
                CHANNELS=scales.shape[1], LANES=lanes, PER_LANE=per_lane, TILES=tiles, num_warps=warps,
            )  # fmt: skip


def _inputs(batch: Batch, rule: Rule) -> Inputs:
    return inputs_of(rule.features if batch.kind.factored else rule.unfactored, batch.kind.factored)


def _advance(
    plan: BatchPlan,
    values: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rule: Rule,
    scale: Tensor,
    proceed: Tensor | None,
) -> Advanced:
    """The factor and moment passes. Kernels that are not specialized for a kind run once for all batches."""
    joined: Joined = plan.joined
    device, count, table = joined.device, len(values), plan.gradients.on_device()
    tables = [table[batch.gradients_start :] for batch in plan.batches]
    factors, table_scales = joined.floats("entries", 3), joined.floats("table_scales")
    _advance_tables(plan, tables, scale, factors, table_scales, rule.norm_eps, proceed)

    statistics = joined.statistics
    samples, moments, sizes = _floats(device, count, 4), _floats(device, count, statistics), _floats(device, count)
    if statistics > 1:
        launch(moment_pass.take_samples, len(joined.elements), joined.elements, samples)
    partials, sums, scales = joined.floats("partials"), joined.floats("sums"), joined.floats("sums")
    batches = []
    for batch, part, of_batch, channels, means in zip(
        plan.batches, joined.parts, tables, joined.channels, joined.means, strict=True
    ):
        kind, inputs, tuning = batch.kind, _inputs(batch, rule), batch.tuning
        tile = (MEANS_TILE, MEANS) if kind.varied else (tuning.moment_lanes, PER_LANE)
        launch(
            moment_pass.advance_elements, len(batch.moment_tiles), batch.elements, of_batch,
            batch.moment_tiles, scale, factors[3 * part.entries :], samples, partials[part.partials :], proceed,
            rule.rsqrt_eps, rule.diag_eps,
            FACTORED=kind.factored, PLAIN=kind.plain, VARIED=kind.varied, ALIGNED=kind.aligned,
            P_TYPE=TYPES[kind.p], G_TYPE=TYPES[kind.g], SELECT=inputs.select, MOMENTS=statistics,
            TILE_0=tile[0], TILE_1=tile[1], STAGES=tuning.moment_stages, num_warps=tuning.moment_warps,
        )  # fmt: skip
        shape = batch.groups, channels, means
        of_groups = scales[part.sums : part.sums + math.prod(shape)].view(shape)
        batches.append(AdvancedBatch(batch, part, inputs, of_batch, factors[3 * part.entries :], of_groups))
    launch(
        combine_pass.combine_groups, (len(joined.groups), ceil_div(joined.width, 64)), joined.groups, partials, sums,
        scales, rule.norm_eps, ROWS=64, BLOCK=64,
    )  # fmt: skip
    launch(
        combine_pass.moments_of_all, len(joined.wholes), joined.wholes, sums, moments, sizes,
        MOMENTS=statistics, PARAMETER_SCALE=rule.parameter_scale, BLOCK=32,
    )  # fmt: skip
    return Advanced(plan, values, rule, scale, samples, moments, sizes, scales, table_scales, batches, gradients)


def _advance_tables(
    plan: BatchPlan,
    gradients: Sequence[Tensor],
    scale: Tensor,
    factors: Tensor,
    scales: Tensor,
    norm_eps: float,
    proceed: Tensor | None,
) -> None:
    """The factor pass: ``row`` and ``col``, their factors and the normalizer's scales."""
    joined: Joined = plan.joined
    if not joined.has_tables:
        return
    partials = joined.floats("parts")
    for batch, part, of_batch in zip(plan.batches, joined.parts, gradients, strict=True):
        kind, tile, tuning = batch.kind, batch.tile, batch.tuning
        if not kind.factored:
            continue
        tiles = batch.elements, of_batch, batch.factor_places, batch.factor_tiles, scale, partials[part.parts :]
        options: dict[str, Any] = {"G_TYPE": TYPES[kind.g], "ALIGNED": kind.aligned, "TILE_X": tile[0]}
        if kind.trailing:
            launch(
                factor_pass.tile_sums, len(batch.factor_tiles), *tiles, **options,
                TILE_Y=tile[1], TILE_C=tile[2], num_warps=8,
            )  # fmt: skip
        else:
            launch(
                factor_pass.matrix_sums, len(batch.factor_tiles), *tiles, **options,
                ROWS=tuning.sums_warps, BLOCKS=tuning.sums_blocks, num_warps=tuning.sums_warps,
            )  # fmt: skip
    launch(
        factor_pass.advance_tables, len(joined.entries), joined.tables, joined.entries, partials, factors, proceed,
        BLOCK=TABLE_BLOCK,
    )  # fmt: skip
    launch(
        factor_pass.row_factors, len(joined.row_strips), joined.tables, joined.row_strips, factors,
        ALONG=ALONG, ACROSS=ACROSS,
    )  # fmt: skip
    launch(
        factor_pass.table_scales, len(joined.scale_strips), joined.tables, joined.scale_strips, scales, norm_eps,
        ALONG=ALONG, ACROSS=ACROSS,
    )  # fmt: skip


def _floats(device: torch.device, *shape: int) -> Tensor:
    """An uninitialized float32 tensor."""
    return torch.empty(shape, dtype=torch.float32, device=device)


def _stride(x: Tensor) -> int:
    """Elements from one parameter's entry to the next, or 0 if all parameters share one."""
    return 0 if x.shape[0] == 1 else x.stride(0)


def find_kernels() -> GpuKernels:
    """The GPU kernels. Triton compiles each one at first use."""
    return GpuKernels()
