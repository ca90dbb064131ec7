"""Optimizers that compute a :class:`~pylo_zoo.ops.rule.Rule`, in plain torch or by fused kernels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels import Kernels, Task
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule
from pylo_zoo.ops.step import learned_step
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.base import Group, LearnedOptimizer, Loss, ParamStep


class Limits(NamedTuple):
    """What is done to a gradient before the rule sees it."""

    max_gradient: float = math.inf
    """It is clipped to ±this, element by element."""
    replace_nonfinite: bool = False
    """NaN becomes 0 first, and infinities the largest finite number."""

    def condition(self, g: Tensor) -> Tensor:
        """``g`` with that done; itself where there is nothing to do."""
        g = torch.nan_to_num(g) if self.replace_nonfinite else g
        return g if self.max_gradient == math.inf else g.clamp(-self.max_gradient, self.max_gradient)


class Network(NamedTuple):
    """The network of one parameter, and what its step is multiplied by."""

    layers: Sequence[Layer]
    multiplier: float | Tensor


@dataclass
class KernelBatch:
    """Parameters that fused kernels step together."""

    kernels: Kernels
    positions: list[int]
    """Where they stand among the step's parameters."""
    items: list[ParamStep]
    advanced: Any = None


class MLPRuleOptimizer(LearnedOptimizer):
    """Base of the optimizers whose step is a :class:`~pylo_zoo.ops.rule.Rule`.

    A family says what its rule is, what it does to gradients, which network a parameter has and what the step is
    multiplied by; one function (:func:`~pylo_zoo.ops.step.learned_step`) computes them all, or fused kernels do.
    """

    looks_ahead: ClassVar[bool] = False
    """:meth:`prepare` looks at every tensor's accumulators before any parameter moves."""

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """What the checkpoint's rule is."""

    def limits(self, group: Group) -> Limits:
        """What is done to the gradients of a group."""
        return Limits()

    def decay(self, group: Group) -> float:
        """The weight decay that stands in the update itself."""
        return group["weight_decay"]

    # prepare(items, step, loss) gives one Network a parameter.

    def networks(self, prepared: Sequence[Network], positions: Sequence[int]) -> tuple[Sequence[Layer], Any]:
        """What :meth:`prepare` gave, for parameters on one device: layers alike for all or stacked, and multipliers."""
        return prepared[positions[0]].layers, [prepared[k].multiplier for k in positions]

    def apply(self, item: ParamStep, delta: Tensor) -> None:
        """``p ← p − lr·(step + weight_decay·p)``; ``delta`` may be written over."""
        record("step", delta)
        if decay := self.decay(item.group):
            delta.add_(item.p, alpha=decay)
        item.p.sub_(delta.mul_(item.group["lr"]))

    def moved(self, item: ParamStep) -> None:
        """Called when ``item.p`` has been moved; nothing by default."""

    # --- plain ---------------------------------------------------------------------------------------------------

    def update(self, item: ParamStep, step: Tensor, context: Network) -> None:
        g = self.limits(item.group).condition(item.g)
        delta = learned_step(item.p, g, item.state, item.meta.decays, item.axes, self.rule, context.layers)
        self.apply(item, delta.mul_(context.multiplier))
        self.moved(item)

    # --- fused ---------------------------------------------------------------------------------------------------

    def _take_fused(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        launches, rest = self._launches(items)
        for launch in launches if self.looks_ahead else ():
            self._advance(launch)
            moments = launch.kernels.moments(launch.advanced)
            for item, row in zip(launch.items, moments.unbind(), strict=True):
                item.moments = row
        prepared = self.prepare(items, step, loss)
        for launch in launches:
            if launch.advanced is None:
                self._advance(launch)
            self._move(launch, prepared)
            launch.advanced = None  # with it go copies of gradients
        self._update_each([items[k] for k in rest], [prepared[k] for k in rest], step)

    def _launches(self, items: Sequence[ParamStep]) -> tuple[list[KernelBatch], list[int]]:
        """Parameters that kernels take, in launches; and the positions of the others."""
        launches: list[KernelBatch] = []
        rest: list[int] = []
        sizes: dict[torch.device, tuple[KernelBatch, int]] = {}
        rule, hidden = self.rule, items[0].meta.net.mlp.weights()[0][0].shape[-2]  # pyright: ignore
        known: dict[tuple[int, int], Kernels | None] = {}
        for k, item in enumerate(items):
            p, kind = item.parameter, (id(item.axes), id(item.meta))  # shape and layout; device and dtype
            if kind not in known:
                kernels = self.kernels_of(p)
                known[kind] = kernels if kernels is not None and kernels.covers(p, item.axes, rule, hidden) else None
            kernels = known[kind]
            if kernels is None:
                rest.append(k)
                continue
            device, count = p.device, p.numel()
            launch, size = sizes.get(device, (None, 0))
            if launch is None or (not self.looks_ahead and size + count > kernels.bucket):
                launch, size = KernelBatch(kernels, [], []), 0
                launches.append(launch)
            launch.positions.append(k)
            launch.items.append(item)
            sizes[device] = launch, size + count
        return launches, rest

    def _advance(self, launch: KernelBatch) -> None:
        tasks = [self._task(item, launch.kernels) for item in launch.items]
        launch.advanced = launch.kernels.advance(tasks, self.rule, launch.items[0].scale, self.looks_ahead, True)

    def _task(self, item: ParamStep, kernels: Kernels) -> Task:
        p, g = item.kernel_inputs(kernels.dtypes)
        return Task(p, g, item.state, item.axes, item.meta.decays, *self.limits(item.group))

    def _move(self, launch: KernelBatch, prepared: Sequence[Network]) -> None:
        layers, multipliers = self.networks(prepared, launch.positions)
        lrs = [item.group["lr"] for item in launch.items]
        decays = [self.decay(item.group) for item in launch.items]
        launch.kernels.move(launch.advanced, layers, products(lrs, multipliers), products(lrs, decays))
        for item in launch.items:
            self.moved(item)
            item.write_back()


def products(lrs: Sequence[float | Tensor], factors: Sequence[float] | Tensor) -> Sequence[float] | Tensor:
    """``lr · factor``, one a parameter: numbers, or a tensor ``[N]`` if there is one among them, which is not read."""
    tensors = [each for each in (factors, *lrs) if isinstance(each, Tensor)]
    if not tensors:
        return [float(lr) * float(factor) for lr, factor in zip(lrs, factors, strict=True)]
    like = next((each for each in tensors if each.device.type != "cpu"), tensors[0])
    kind = {"device": like.device, "dtype": torch.float32}
    if any(isinstance(lr, Tensor) for lr in lrs):
        rates = torch.stack([torch.as_tensor(lr, **kind).reshape(()) for lr in lrs])
    else:
        rates = torch.tensor(lrs, **kind)
    return rates * torch.as_tensor(factors, **kind)
