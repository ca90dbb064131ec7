"""The base class of optimizers that run a :class:`~pylo_zoo.ops.rule.Rule`, eagerly or with fused kernels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels import KernelPlan, Task
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule
from pylo_zoo.ops.step import learned_step
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.base import Group, LearnedOptimizer, Loss, ParamStep
from pylo_zoo.optim.kernel_batch import KernelBatch
from pylo_zoo.optim.step_plan import MetaNetwork


class Limits(NamedTuple):
    """Gradient preprocessing before the rule."""

    max_gradient: float = math.inf
    """Elements are clipped to ± this value."""
    replace_nonfinite: bool = False
    """Before clipping, NaN becomes 0 and infinities become the largest finite number."""

    def condition(self, g: Tensor) -> Tensor:
        """The preprocessed gradient; ``g`` itself if no preprocessing is set."""
        g = torch.nan_to_num(g) if self.replace_nonfinite else g
        return g if self.max_gradient == math.inf else g.clamp(-self.max_gradient, self.max_gradient)


class Network(NamedTuple):
    """The MLP of one parameter, and the factor on its step."""

    layers: Sequence[Layer]
    multiplier: float | Tensor


class Networks(Sequence[Network]):
    """The networks of N parameters, in the order of a step's parameters."""

    @abstractmethod
    def select(self, batch: KernelBatch) -> tuple[Sequence[Layer], Tensor]:
        """Layers and multipliers ``[M]`` of a batch's parameters; layers are shared or stacked ``[M, …]``."""


class SharedMLPs(Networks):
    """One MLP for all parameters of a device and dtype, and a factor on each parameter's step.

    Args:
        items: the parameters.
        layers: the MLP of each of their :class:`~pylo_zoo.optim.step_plan.MetaNetwork`.
        multipliers: the factors.
    """

    def __init__(
        self, items: Sequence[ParamStep], layers: Mapping[MetaNetwork, Sequence[Layer]], multipliers: Sequence[float]
    ) -> None:
        self._items, self._layers, self._multipliers = items, layers, multipliers

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, k: int) -> Network:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Network(self._layers[self._items[k].meta], self._multipliers[k])

    def select(self, batch: KernelBatch) -> tuple[Sequence[Layer], Tensor]:
        def of_batch() -> Tensor:
            return torch.tensor([self._multipliers[k] for k in batch.positions], dtype=torch.float64)

        return self._layers[batch.items[0].meta], batch.keep("multipliers", of_batch)


class MLPRuleOptimizer(LearnedOptimizer):
    """Base class of the optimizers whose step is a :class:`~pylo_zoo.ops.rule.Rule`.

    A family provides its rule, its gradient preprocessing (:meth:`limits`), and one :class:`Network` per parameter
    (:meth:`prepare`). :func:`~pylo_zoo.ops.step.learned_step` or fused kernels compute the steps.
    """

    prepare_reads_state: ClassVar[bool] = False
    """:meth:`prepare` reads all accumulators, so it must run before any parameter is updated."""

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """The checkpoint's rule."""

    def limits(self, group: Group) -> Limits:
        """The gradient preprocessing of a group."""
        return Limits()

    def decay(self, group: Group) -> float:
        """The coefficient of decoupled weight decay."""
        return group["weight_decay"]

    def apply(self, item: ParamStep, delta: Tensor) -> None:
        """``p ← p − lr·(step + weight_decay·p)``. Overwrites ``delta``, the step."""
        record("step", delta)
        if decay := self.decay(item.group):
            delta.add_(item.p, alpha=decay)
        item.p.sub_(delta.mul_(item.group["lr"]))

    def after_update(self, item: ParamStep) -> None:
        """Called after ``item.p`` is updated; does nothing by default."""

    # --- eager ---------------------------------------------------------------------------------------------------

    def update(self, item: ParamStep, step: Tensor, context: Network) -> None:
        g = self.limits(item.group).condition(item.g)
        delta = learned_step(item.p, g, item.state, item.meta.decays, item.axes, self.rule, context.layers)
        self.apply(item, delta.mul_(context.multiplier))
        self.after_update(item)

    # --- fused ---------------------------------------------------------------------------------------------------

    def _update_fused(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        assert self._plan is not None
        batches, rest = self._plan.keep("batches", lambda: self._kernel_batches(items))
        moments = None
        if self.prepare_reads_state:
            for batch in batches:
                self._advance(batch)
            moments = self._moments(items, batches, rest)
        prepared: Any = self.prepare(items, step, loss, moments)
        for batch in batches:
            if batch.advanced is None:
                self._advance(batch)
            self._move(batch, prepared)
            if type(self).after_update is not MLPRuleOptimizer.after_update:
                for item in batch.items:
                    saved = self._condition.save_written([item.parameter], [item.state])
                    self.after_update(item)
                    self._condition.restore(saved)
            batch.finish()
        if rest:
            self._update_each([items[k] for k in rest], [prepared[k] for k in rest], step)

    def _kernel_batches(self, items: Sequence[ParamStep]) -> tuple[list[KernelBatch], list[int]]:
        """The parameters that kernels support, in batches, and the positions of the others."""
        assert self._plan is not None
        batches: list[KernelBatch] = []
        rest: list[int] = []
        open_batches: dict[torch.device, tuple[KernelBatch, int]] = {}
        rule, hidden = self.rule, items[0].meta.net.mlp.weights()[0][0].shape[-2]  # pyright: ignore
        for k, item in enumerate(items):
            kernels = self.kernels_of(item.parameter)
            if kernels is None or not kernels.covers(item.parameter, item.axes, rule, hidden):
                rest.append(k)
                continue
            device, count = item.parameter.device, item.parameter.numel()
            batch, size = open_batches.get(device, (None, 0))
            if batch is None or (not self.prepare_reads_state and size + count > kernels.bucket):
                batch, size = KernelBatch(kernels), 0
                batches.append(batch)
            batch.add(k, item)
            open_batches[device] = batch, size + count
        hooked = type(self).after_update is not MLPRuleOptimizer.after_update  # runs on the host
        self._plan.add_batches(batches, bool(rest) or hooked)
        return batches, rest

    def _moments(self, items: Sequence[ParamStep], batches: Sequence[KernelBatch], rest: Sequence[int]) -> Tensor:
        """The statistics of :func:`~pylo_zoo.ops.conditioning.moments` of all parameters, ``[N, 9]``."""
        if len(batches) == 1 and not rest:
            return batches[0].kernels.moments(batches[0].advanced)
        rows: dict[int, Tensor] = {k: moments_of(items[k]) for k in rest}
        for batch in batches:
            rows.update(zip(batch.positions, batch.kernels.moments(batch.advanced).unbind(), strict=True))
        like = self.param_groups[0]["loss_average"]
        return torch.stack([rows[k].to(like) for k in range(len(items))])

    def _advance(self, batch: KernelBatch) -> None:
        """Run the kernels' factor and moment passes."""
        gradients = batch.begin()

        def plan() -> KernelPlan:
            tasks = [
                Task(p, g, item.state, item.axes, item.meta.decays, *self.limits(item.group))
                for item, p, g in zip(batch.items, batch.values, gradients, strict=True)
            ]
            return batch.kernels.plan(tasks, self.rule, self.prepare_reads_state)

        kernel_plan, scale = batch.keep("plan", plan), batch.items[0].scale
        batch.advanced = kernel_plan.advance(batch.values, gradients, scale, True, self._proceed(batch))

    def _proceed(self, batch: KernelBatch) -> Tensor | None:
        """The flag that kernels read before they write, if the step has a condition."""
        return self._condition.flag(batch.items[0].parameter.device)

    def _move(self, batch: KernelBatch, networks: Networks) -> None:
        layers, multipliers = networks.select(batch)
        factors = batch.factors(_lr, self.decay, multipliers)
        batch.kernels.move(batch.advanced, layers, *factors, self._proceed(batch))


def moments_of(item: ParamStep) -> Tensor:
    """The statistics of a parameter before its update, ``[9]``."""
    return conditioning.moments(item.read_value(), item.state["momentum"], item.state["second_moment"])


def _lr(group: Group) -> float | Tensor:
    return group["lr"]
