"""What stays the same between Muon's steps: lists of parameters and state, parts, and batches for AdamW's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from pylo_zoo.kernels import products_for
from pylo_zoo.ops.apply import together
from pylo_zoo.ops.muon import Recipe, muon_together
from pylo_zoo.optim.adamw import AdamBatches, AdamW, KernelChooser
from pylo_zoo.optim.param_grad import Group, ParamGrad
from pylo_zoo.optim.precision import wide_value
from pylo_zoo.optim.state_checks import Snapshot
from pylo_zoo.optim.step_condition import StepCondition
from pylo_zoo.optim.step_plan import ParamStep

TOGETHER_ON_GPU = 1 << 27
"""Maximum number of elements of matrices stepped together on a GPU: as many as in a stack of Newton–Schulz."""

States = Sequence[dict[str, Tensor]]
FallbackStep = Callable[[Sequence[Tensor], Sequence[Tensor], States, Group], None]
"""AdamW for parameters that kernels do not support: values, gradients, states, group."""


class Matrices:
    """The parameters of one group that Muon orthogonalizes."""

    def __init__(
        self, positions: list[int], grads: Sequence[ParamGrad], states: States, condition: StepCondition
    ) -> None:
        self._condition = condition
        self.positions, self._states = positions, states
        self._params = [grads[k].parameter for k in positions]
        self._buffers = [state["momentum_buffer"] for state in states]
        self._parts = together(self._buffers, TOGETHER_ON_GPU)
        self._copied = any("master" in state for state in states)
        self._recipe: tuple[Any, Recipe] | None = None

    def step(self, gradients: Sequence[Tensor], group: Group, options: dict[str, Any]) -> None:
        """Step every parameter; ``options`` are those of :class:`~pylo_zoo.ops.muon.Recipe`."""
        if self._recipe is None or self._recipe[0] != options:
            self._recipe = options, Recipe(**options)
        rates = group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]
        for part in self._parts:
            params, g, buffers = ([tensors[k] for k in part] for tensors in (self._params, gradients, self._buffers))
            saved = self._condition.save_written(params, [self._states[k] for k in part])
            values = updated_tensors(params, [self._states[k] for k in part]) if self._copied else params
            muon_together(values, g, buffers, self._recipe[1], *rates, products_for)
            if self._copied:
                write_back(params, values)
            self._condition.restore(saved)


class Fallback:
    """The parameters of one group that AdamW updates: with kernels if they support them, else with ``step_others``."""

    def __init__(
        self,
        optimizer: KernelChooser,
        positions: list[int],
        grads: Sequence[ParamGrad],
        states: States,
        step_others: FallbackStep,
    ) -> None:
        self.positions, self._states, self._step_others = positions, states, step_others
        self._condition = optimizer._condition
        self._group = grads[positions[0]].group
        self._params = [grads[k].parameter for k in positions]
        supported = [optimizer.kernels_of(p) is not None for p in self._params]
        self._items: list[tuple[int, ParamStep]] = [
            (k, ParamStep(grads[positions[k]], _adam_state(states[k]), cast(Any, None), cast(Any, None)))
            for k, fits in enumerate(supported)
            if fits
        ]
        for _, item in self._items:
            del item.gradient
        self._others = [k for k, fits in enumerate(supported) if not fits]
        parts = together([states[k]["exp_avg"] for k in self._others])
        self._parts = [[self._others[k] for k in part] for part in parts]
        self._batches = AdamBatches(optimizer, self.items)

    @property
    def items(self) -> list[ParamStep]:
        """The parameters that kernels step."""
        return [item for _, item in self._items]

    def step(self, gradients: Sequence[Tensor], options: Callable[[Group], AdamW]) -> None:
        """Step every parameter."""
        if self._items:
            for k, item in self._items:
                item.gradient = gradients[k]
            self._batches.step(options, lambda n: self._step_some([self._items[n][0]], gradients))
            for _, item in self._items:
                del item.gradient
        for part in self._parts:
            self._step_some(part, gradients)

    def _step_some(self, part: Sequence[int], gradients: Sequence[Tensor]) -> None:
        states = [self._states[k] for k in part]
        params = [self._params[k] for k in part]
        saved = self._condition.save_written(params, states)
        values = updated_tensors(params, states)
        self._step_others(values, [gradients[k] for k in part], states, self._group)
        write_back(params, values)
        self._condition.restore(saved)


class MuonPlan:
    """The parameters of a step, by group and rule.

    It is valid while the state checks return the same snapshot (:mod:`~pylo_zoo.optim.state_checks`).
    """

    def __init__(
        self,
        snapshot: Snapshot | None,
        optimizer: Any,
        grads: Sequence[ParamGrad],
        step_others: FallbackStep,
    ) -> None:
        self.snapshot = snapshot
        self.items: list[ParamStep] = []
        """The parameters that kernels step."""
        self._groups: list[tuple[Group, Matrices | None, Fallback | None]] = []
        by_group: dict[int, tuple[Group, list[int], list[int]]] = {}
        for k, (p, _, group) in enumerate(grads):
            _, matrices, others = by_group.setdefault(id(group), (group, [], []))
            (matrices if "momentum_buffer" in optimizer.state[p] else others).append(k)
        for group, matrices, others in by_group.values():
            of_matrices, of_others = (
                [optimizer.state[grads[k].parameter] for k in positions] for positions in (matrices, others)
            )
            planned = Matrices(matrices, grads, of_matrices, optimizer._condition) if matrices else None
            fallback = Fallback(optimizer, others, grads, of_others, step_others) if others else None
            self.items += fallback.items if fallback else []
            self._groups.append((group, planned, fallback))

    def step(
        self,
        grads: Sequence[ParamGrad],
        recipe: Callable[[Group], dict[str, Any]],
        adamw: Callable[[Group], AdamW],
    ) -> None:
        """One step; ``recipe`` and ``adamw`` return the options of a group."""
        for group, matrices, fallback in self._groups:
            if matrices is not None:
                matrices.step([grads[k].gradient for k in matrices.positions], group, recipe(group))
            if fallback is not None:
                fallback.step([grads[k].gradient for k in fallback.positions], adamw)


def updated_tensors(params: Sequence[Tensor], states: States) -> list[Tensor]:
    """The tensors that a step updates: parameters, or their master copies."""
    return [wide_value(p, state) if "master" in state else p for p, state in zip(params, states, strict=True)]


def write_back(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values that are not the parameters themselves to the parameters."""
    for p, value in zip(params, values, strict=True):
        if value is not p:
            p.copy_(value)


def _adam_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the names and shapes that AdamW's kernels have; tensors share memory."""
    moments = {"momentum": state["exp_avg"][None], "second_moment": state["exp_avg_sq"][None]}
    return {**moments, **{name: state[name] for name in ("step", "master") if name in state}}


__all__ = ["MuonPlan", "updated_tensors", "write_back"]
