"""AdamW with fused kernels: for the parameters that CELO2 does not learn, and for celo-adam's step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pylo_zoo.kernels import Adam, AdamInputs, AdamPlan, Kernels
from pylo_zoo.optim.kernel_batch import KernelBatch
from pylo_zoo.optim.param_grad import Group
from pylo_zoo.optim.state_checks import join
from pylo_zoo.optim.step_condition import StepCondition
from pylo_zoo.optim.step_plan import ParamStep, StepPlan


class AdamW(NamedTuple):
    """Options of a group: ``p ← p − lr·(m̂/(sqrt(v̂ + eps_root) + eps) + weight_decay·p)`` (SPEC §5, §6)."""

    betas: tuple[float, float]
    eps: float
    eps_root: float
    lr: float | Tensor
    weight_decay: float
    max_gradient: float = math.inf
    nesterov: bool = False
    """Read once per plan."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """A row of :attr:`pylo_zoo.kernels.AdamInputs.numbers`."""
        return (*self.betas, self.eps, self.eps_root, self.max_gradient)


class KernelChooser(Protocol):
    """An optimizer that chooses the kernels of a parameter, and whose steps may have a condition."""

    _condition: StepCondition

    def kernels_of(self, p: Tensor) -> Kernels | None: ...


class AdamBatches:
    """Parameters with AdamW, in one batch per device, and those that kernels do not support.

    Args:
        optimizer: chooses the kernels.
        items: parameters with ``momentum`` and ``second_moment`` ``[1, *shape]`` and ``step`` in their state.
        plan: the plan whose graph contains these parameters, or None.
    """

    def __init__(self, optimizer: KernelChooser, items: Sequence[ParamStep], plan: StepPlan | None = None) -> None:
        by_device: dict[torch.device, KernelBatch] = {}
        self.rest: list[int] = []
        self.items = items
        self._condition = optimizer._condition
        for k, item in enumerate(items):
            kernels, device = optimizer.kernels_of(item.parameter), item.parameter.device
            if kernels is None:
                self.rest.append(k)
            else:
                by_device.setdefault(device, KernelBatch(kernels)).add(k, item)
        self.batches = list(by_device.values())
        if plan is not None:
            plan.add_batches(self.batches, bool(self.rest))

    def step(
        self,
        options: Callable[[Group], AdamW],
        update_eager: Callable[[int], None],
        factors: Tensor | None = None,
    ) -> None:
        """Update every parameter.

        Args:
            options: returns the options of a group.
            update_eager: updates the item at an index and advances its ``step``.
            factors: factors on the learning rate of each item, ``[N]``.
        """
        for k in self.rest:
            self._update_eager(k, update_eager)
        for batch in self.batches:
            batch.frozen = lambda batch=batch: tuple(options(group).numbers for group in batch.groups)
            of_batch = None if factors is None else factors[batch.index(factors.device)]
            lr, decay = (lambda group: options(group).lr), (lambda group: options(group).weight_decay)
            rates, shrink = batch.factors(lr, decay, of_batch)
            if not rates.is_cpu and batch.items[0].parameter.is_cpu:  # reading them would wait for the device
                for k in batch.positions:
                    self._update_eager(k, update_eager)
            else:
                _step(batch, [options(group) for group in batch.groups], rates, shrink, self._condition)

    def _update_eager(self, k: int, update: Callable[[int], None]) -> None:
        item = self.items[k]
        saved = self._condition.save_written([item.parameter], [item.state])
        update(k)
        item.write_back()
        self._condition.restore(saved)


def _count(batch: KernelBatch, condition: StepCondition) -> Tensor:
    """Add 1 to the counter of each parameter; returns the new counts ``[N]`` on their device."""
    shared = batch.keep("counts", lambda: join([item.state["step"] for item in batch.items]))
    if shared is not None:
        proceed = condition.flag(shared.device)
        return shared.add_(1 if proceed is None else proceed)
    counters = [item.state["step"] for item in batch.items]
    condition.advance(counters)
    return torch.stack(counters)


def _step(
    batch: KernelBatch, options: Sequence[AdamW], rates: Tensor, shrink: Tensor, condition: StepCondition
) -> None:
    gradients = batch.begin()
    states = [item.state for item in batch.items]
    nesterov = {id(group): each.nesterov for group, each in zip(batch.groups, options, strict=True)}

    def plan() -> AdamPlan:
        return batch.kernels.plan_adam(
            [
                Adam(p, g, state["momentum"], state["second_moment"], nesterov[id(item.group)])
                for p, g, state, item in zip(batch.values, gradients, states, batch.items, strict=True)
            ]
        )

    kernel_plan = batch.keep("plan", plan)  # checks the tensors, before anything changes
    counts = _count(batch, condition)
    numbers = batch.constants([each.numbers for each in options])
    inputs = AdamInputs(batch.values, gradients, numbers, counts, rates, shrink, batch.items[0].scale)
    kernel_plan.step(inputs, True, condition.flag(counts.device))
    batch.finish()
