"""Faults planted in the fused kernels, which every proof must catch on every device that has kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.kernels import Adam, Kernels, Normalized, ScratchBuffer
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.parity import plan
from pylo_zoo.parity.explain import first_difference
from pylo_zoo.parity.report import Control
from pylo_zoo.parity.sides import Tamper
from pylo_zoo.parity.steps import Walk, compare


class Altered:
    """A device's kernels with a fault: a subclass replaces methods, and the rest is theirs."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)


class _OtherSign(Altered):
    def _wrong(self, layers: Sequence[Layer]) -> list[Layer]:
        *others, (weight, bias) = layers
        weight, bias = weight.clone(), bias.clone()
        weight.select(-2, 0).neg_()
        bias.select(-1, 0).neg_()
        return [*others, (weight, bias)]

    def move(self, advanced: Any, layers: Sequence[Layer], coefficient: Any, shrink: Any) -> None:
        self.kernels.move(advanced, self._wrong(layers), coefficient, shrink)

    def steps(self, advanced: Any, layers: Sequence[Layer], room: ScratchBuffer) -> list[Tensor]:
        return self.kernels.steps(advanced, self._wrong(layers), room)


class _Unmoved(Altered, ABC):
    """Elements that are not moved."""

    advanced: Sequence[Tensor] = ()

    @abstractmethod
    def elements(self, p: Tensor) -> slice:
        """The elements, of the flattened parameter."""

    def _undone(self, parameters: Sequence[Tensor], move: Callable[[], None]) -> None:
        kept = [(p.view(-1)[self.elements(p)], p.view(-1)[self.elements(p)].clone()) for p in parameters]
        move()
        for elements, values in kept:
            elements.copy_(values)

    def advance(self, tasks: Sequence[Any], *more: Any) -> Any:
        self.advanced = [task.p for task in tasks]
        return self.kernels.advance(tasks, *more)

    def move(self, *arguments: Any) -> None:
        self._undone(self.advanced, lambda: self.kernels.move(*arguments))

    def move_normalized(self, tasks: Sequence[Normalized], *factors: Any) -> None:
        self._undone([task.p for task in tasks], lambda: self.kernels.move_normalized(tasks, *factors))

    def adam(self, tasks: Sequence[Adam], scale: Tensor | None) -> None:
        self._undone([task.p for task in tasks], lambda: self.kernels.adam(tasks, scale))


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
    """A fault of the kernels; ``run`` shows it, ``needs`` is a quantity without which there is none."""

    name: str
    what: str
    tamper: Tamper
    run: str = "ordinary"
    needs: str = ""


FAULTS = (
    KernelFault("weights", "the weights of the direction have the other sign", _OtherSign, needs="magnitude"),
    KernelFault("last element", "the last element of each parameter does not move", _LastElement),
    KernelFault(
        "zero parameters", "parameters of zero do not move", _ZeroParameters, "zero parameters", "parameter_scale"
    ),
    KernelFault("long tensors", "the end of tensors of over 65,536 elements does not move", _LastUnit, plan.LONG_RUN),
)
"""What every run plants in the kernels of each device."""


def run(artifact: Artifact, device: str, walks: Mapping[str, Walk], *, right: bool) -> Iterator[Control]:
    """Plant each of :data:`FAULTS` in the kernels of ``device``; other arguments as in :func:`.controls.run`."""
    for name, what, tamper, in_run, needs in FAULTS:
        title = f"{name}, {device} kernels"
        if not right:
            yield Control(title, what, "not applicable", "the torch side is wrong without it")
            continue
        if needs and not any(quantity == needs for _, quantity in walks["ordinary"].ledger.keys):
            yield Control(title, what, "not applicable", f"this family has no {needs}")
            continue
        walked = walks[in_run].first(1)
        shown = first_difference([compare(artifact, walked, "float32", "torch", kernels=device, tamper=tamper)])
        if shown is None:
            yield Control(title, what, "missed", "nothing")
            continue
        link = next(link for link in shown.chain if link.quantity == shown.quantity)
        yield Control(title, what, "caught", shown.quantity, shown.case, link.error, link.allowed)
