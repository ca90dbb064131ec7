"""The base class of optimizers that run a :class:`~pylo_zoo.ops.rule.Rule`, eagerly or with fused kernels."""

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


@dataclass
class KernelBatch:
    """Parameters that fused kernels update together."""

    kernels: Kernels
    positions: list[int]
    """Indices of the items in the step's sequence of parameters."""
    items: list[ParamStep]
    advanced: Any = None
    """The result of ``kernels.advance``."""


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

    def networks(self, prepared: Sequence[Network], positions: Sequence[int]) -> tuple[Sequence[Layer], Any]:
        """Layers and multipliers of the parameters at ``positions``, which are on one device.

        The layers are shared by all of them or stacked ``[N, …]``.
        """
        return prepared[positions[0]].layers, [prepared[k].multiplier for k in positions]

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
        batches, rest = self._kernel_batches(items)
        for batch in batches if self.prepare_reads_state else ():
            self._advance(batch)
            moments = batch.kernels.moments(batch.advanced)
            for item, row in zip(batch.items, moments.unbind(), strict=True):
                item.moments = row
        prepared = self.prepare(items, step, loss)
        for batch in batches:
            if batch.advanced is None:
                self._advance(batch)
            self._move(batch, prepared)
            batch.advanced = None  # frees copies of gradients
        self._update_each([items[k] for k in rest], [prepared[k] for k in rest], step)

    def _kernel_batches(self, items: Sequence[ParamStep]) -> tuple[list[KernelBatch], list[int]]:
        """The parameters that kernels support, in batches, and the positions of the others."""
        batches: list[KernelBatch] = []
        rest: list[int] = []
        sizes: dict[torch.device, tuple[KernelBatch, int]] = {}
        rule, hidden = self.rule, items[0].meta.net.mlp.weights()[0][0].shape[-2]  # pyright: ignore
        kernels_of: dict[tuple[int, int], Kernels | None] = {}
        for k, item in enumerate(items):
            p, kind = item.parameter, (id(item.axes), id(item.meta))  # cached per shape and layout, device and dtype
            if kind not in kernels_of:
                kernels = self.kernels_of(p)
                supported = kernels is not None and kernels.covers(p, item.axes, rule, hidden)
                kernels_of[kind] = kernels if supported else None
            kernels = kernels_of[kind]
            if kernels is None:
                rest.append(k)
                continue
            device, count = p.device, p.numel()
            batch, size = sizes.get(device, (None, 0))
            if batch is None or (not self.prepare_reads_state and size + count > kernels.bucket):
                batch, size = KernelBatch(kernels, [], []), 0
                batches.append(batch)
            batch.positions.append(k)
            batch.items.append(item)
            sizes[device] = batch, size + count
        return batches, rest

    def _advance(self, batch: KernelBatch) -> None:
        tasks = [self._task(item, batch.kernels) for item in batch.items]
        batch.advanced = batch.kernels.advance(tasks, self.rule, batch.items[0].scale, self.prepare_reads_state, True)

    def _task(self, item: ParamStep, kernels: Kernels) -> Task:
        p, g = item.kernel_inputs(kernels.dtypes)
        return Task(p, g, item.state, item.axes, item.meta.decays, *self.limits(item.group))

    def _move(self, batch: KernelBatch, prepared: Sequence[Network]) -> None:
        layers, multipliers = self.networks(prepared, batch.positions)
        lrs = [item.group["lr"] for item in batch.items]
        decays = [self.decay(item.group) for item in batch.items]
        batch.kernels.move(batch.advanced, layers, lr_products(lrs, multipliers), lr_products(lrs, decays))
        for item in batch.items:
            self.after_update(item)
            item.write_back()


def lr_products(lrs: Sequence[float | Tensor], factors: Sequence[float] | Tensor) -> Sequence[float] | Tensor:
    """``lr · factor`` per parameter: numbers, or a tensor ``[N]`` if an input is a tensor, to avoid reading it."""
    tensors = [each for each in (factors, *lrs) if isinstance(each, Tensor)]
    if not tensors:
        return [float(lr) * float(factor) for lr, factor in zip(lrs, factors, strict=True)]
    like = next((each for each in tensors if each.device.type != "cpu"), tensors[0])
    options = {"device": like.device, "dtype": torch.float32}
    if any(isinstance(lr, Tensor) for lr in lrs):
        rates = torch.stack([torch.as_tensor(lr, **options).reshape(()) for lr in lrs])
    else:
        rates = torch.tensor(lrs, **options)
    return rates * torch.as_tensor(factors, **options)
