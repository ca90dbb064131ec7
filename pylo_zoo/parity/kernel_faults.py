"""Faults planted in the fused kernels, which every proof must catch on every compared device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.kernels import Adam, AdamInputs, AdamPlan, Kernels, Normalized
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.parity import plan
from pylo_zoo.parity.controls import ALREADY_WRONG
from pylo_zoo.parity.explain import first_difference
from pylo_zoo.parity.sides import Tamper
from pylo_zoo.parity.steps import ReferenceRun, compare
from pylo_zoo.report.records import Control


class FaultyKernels:
    """Wraps a device's kernels; a subclass overrides methods with faulty ones."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)


class _OtherSign(FaultyKernels):
    def _negated(self, layers: Sequence[Layer]) -> list[Layer]:
        *hidden, (weight, bias) = layers
        weight, bias = weight.clone(), bias.clone()
        weight.select(-2, 0).neg_()
        bias.select(-1, 0).neg_()
        return [*hidden, (weight, bias)]

    def move(self, advanced: Any, layers: Sequence[Layer], *arguments: Any, **options: Any) -> None:
        self.kernels.move(advanced, self._negated(layers), *arguments, **options)

    def steps(self, advanced: Any, layers: Sequence[Layer], *arguments: Any, **options: Any) -> list[Tensor]:
        return self.kernels.steps(advanced, self._negated(layers), *arguments, **options)


class _Unmoved(FaultyKernels, ABC):
    """Kernels that do not update some elements."""

    @abstractmethod
    def elements(self, p: Tensor) -> slice:
        """The elements of the flattened parameter that are not updated."""

    def restoring(self, parameters: Sequence[Tensor], move: Callable[[], None]) -> None:
        before = [(p.view(-1)[self.elements(p)], p.view(-1)[self.elements(p)].clone()) for p in parameters]
        move()
        for elements, values in before:
            elements.copy_(values)

    def move(self, advanced: Any, *arguments: Any, **options: Any) -> None:
        self.restoring(advanced.values, lambda: self.kernels.move(advanced, *arguments, **options))

    def move_normalized(self, tasks: Sequence[Normalized], *factors: Any, **options: Any) -> None:
        self.restoring([task.p for task in tasks], lambda: self.kernels.move_normalized(tasks, *factors, **options))

    def plan_adam(self, tasks: Sequence[Adam]) -> AdamPlan:
        return _UnmovedAdam(self, self.kernels.plan_adam(tasks))


class _UnmovedAdam:
    """An AdamW plan of :class:`_Unmoved` kernels."""

    def __init__(self, kernels: _Unmoved, plan: AdamPlan) -> None:
        self._kernels, self._plan = kernels, plan

    def step(self, inputs: AdamInputs, checked: bool = False, proceed: Tensor | None = None) -> None:
        self._kernels.restoring(inputs.values, lambda: self._plan.step(inputs, checked, proceed))


class _LastElement(_Unmoved):
    def elements(self, p: Tensor) -> slice:
        return slice(p.numel() - 1, None)


class _LastUnit(_Unmoved):
    def elements(self, p: Tensor) -> slice:
        return slice(p.numel() - p.numel() % 4096 if p.numel() > 1 << 16 else p.numel(), None)


class _ZeroParameters(_Unmoved):
    def elements(self, p: Tensor) -> slice:
        return slice(p.numel() if bool(p.any()) else 0, None)


class KernelFault(NamedTuple):
    """A fault of the kernels; ``run`` shows it, and it applies to families that have the quantity ``needs``."""

    name: str
    description: str
    tamper: Tamper
    run: str = "ordinary"
    needs: str = ""


FAULTS = (
    KernelFault("weights", "the weights of the direction have the opposite sign", _OtherSign, needs="magnitude"),
    KernelFault("last element", "the last element of each parameter is not updated", _LastElement),
    KernelFault(
        "zero parameters",
        "parameters that are all zero are not updated",
        _ZeroParameters,
        "zero parameters",
        "parameter_scale",
    ),
    KernelFault("long tensors", "the end of tensors over 65,536 elements is not updated", _LastUnit, plan.LONG_RUN),
)
"""The faults that every proof plants in the kernels of each device."""


def run(artifact: Artifact, device: str, references: Mapping[str, ReferenceRun], *, right: bool) -> Iterator[Control]:
    """Plant each of :data:`FAULTS` in the kernels of ``device``; other arguments as in :func:`.controls.run`."""
    for name, description, tamper, in_run, needs in FAULTS:
        control = f"{name}, {device} kernels", description
        if not right:
            yield Control(*control, "not applicable", ALREADY_WRONG)
            continue
        if needs and not any(quantity == needs for _, quantity in references["ordinary"].ledger.keys):
            yield Control(*control, "not applicable", f"this family has no {needs}")
            continue
        reference = references[in_run].first(1)
        difference = first_difference([compare(artifact, reference, "float32", "torch", kernels=device, tamper=tamper)])
        if difference is None or difference.misfit is not None:  # an exception does not show that numbers are compared
            yield Control(*control, "missed", "nothing" if difference is None else difference.misfit or "")
            continue
        link = next(link for link in difference.chain if link.quantity == difference.quantity)
        yield Control(*control, "caught", difference.quantity, difference.case, link.error, link.allowed)
