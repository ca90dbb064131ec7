"""The fused step of an optimizer as a graph that it captures by itself and replays (``graphs="auto"``).

The first two steps of a plan launch their kernels one by one, which compiles them and builds their tables. The third
captures the same calls and replays them, and later steps only replay. What changes from step to step is read from
slots (:mod:`pylo_zoo.ops.slots`). If something else changed, steps launch their kernels until two in a row agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.ops.capture import Graph, captures, is_capturing
from pylo_zoo.ops.slots import Slots
from pylo_zoo.optim.checks import as_float
from pylo_zoo.warn import warn

if TYPE_CHECKING:
    from pylo_zoo.optim.kernel_batch import KernelBatch

MOST_CAPTURES, REPLAYS_PER_CAPTURE = 8, 100
"""A capture costs as much as many steps: a run may start with so many, and gets one more per so many replays."""
_log = logging.getLogger("pylo_zoo")


class Inputs:
    """The tensors that a step receives, during that step."""

    __slots__ = ("loss", "scale")

    def __init__(self) -> None:
        self.loss: Any = None
        self.scale: Tensor | None = None


class Captured(NamedTuple):
    """A graph and what it was captured with."""

    graph: Graph
    slots: Slots
    inputs: Inputs
    situation: Situation


class Situation(NamedTuple):
    """What a graph cannot read again: it is valid while all of this stays the same."""

    tables: tuple[object, ...]
    """The kernels' tables, compared by identity. They are kept alive, so an identity is not used twice."""
    frozen: Hashable
    """Numbers that are part of the launches."""

    def equals(self, other: Situation | None) -> bool:
        if other is None or self.frozen != other.frozen or len(self.tables) != len(other.tables):
            return False
        return all(mine is its for mine, its in zip(self.tables, other.tables, strict=True))


class GraphBudget:
    """How many graphs one optimizer may still capture, and why it stopped."""

    def __init__(self) -> None:
        self._left = MOST_CAPTURES
        self._replays = 0
        self.failed = False

    def count_replay(self) -> None:
        self._replays += 1
        if self._replays % REPLAYS_PER_CAPTURE == 0:
            self._left = min(self._left + 1, MOST_CAPTURES)

    def take(self) -> bool:
        """Whether another capture is worth its cost."""
        if self._left == 0:
            _log.info("steps change too often for CUDA graphs; the next %d launch kernels", REPLAYS_PER_CAPTURE)
        self._left -= 1
        return self._left >= 0

    def fail(self, error: Exception) -> None:
        self.failed = True
        warn(f'this optimizer steps without CUDA graphs: {error} graphs="off" silences this warning.')


class OwnGraph:
    """The graph of one plan."""

    def __init__(self) -> None:
        self._captured: Captured | None = None
        self._last: Situation | None = None

    def step(
        self,
        batches: Sequence[KernelBatch],
        dtype: torch.dtype,
        inputs: tuple[Any, Tensor | None],
        frozen: Hashable,
        budget: GraphBudget,
        update: Callable[[Any, Tensor | None], None],
    ) -> bool:
        """Replay the step, or capture and replay it.

        Args:
            batches: all parameters of the step.
            dtype: the dtype that the loss gets.
            inputs: the loss, or None if the rule does not read it, and the gradients' scale.
            frozen: numbers that are part of the launches.
            budget: the optimizer's.
            update: launches the step's kernels, given the loss and the gradients' scale.

        Returns:
            Whether the step is done. If not, the caller launches the kernels, and nothing has changed.
        """
        device = batches[0].device
        if budget.failed or device.type not in captures or is_capturing():
            return False
        if not all(batch.can_be_captured(device) for batch in batches):
            return False
        tables = tuple(batch.bind() for batch in batches)
        kinds = tuple(each is None for each in inputs)
        situation = Situation(tables, (frozen, kinds, tuple(batch.frozen() for batch in batches)))
        captured, repeated = self._captured, situation.equals(self._last)
        self._last = situation
        if captured is None or not situation.equals(captured.situation):
            self._captured = captured = None  # free its memory first
            if not repeated or not budget.take():
                return False
            captured = self._captured = _capture(batches, dtype, inputs, situation, budget, update)
            if captured is None:
                return False
        captured.inputs.loss, captured.inputs.scale = inputs
        captured.slots.fill()
        captured.inputs.loss = captured.inputs.scale = None
        captured.graph.replay()
        budget.count_replay()
        for batch in batches:
            batch.finish()
        return True


def _capture(
    batches: Sequence[KernelBatch],
    dtype: torch.dtype,
    inputs: tuple[Any, Tensor | None],
    situation: Situation,
    budget: GraphBudget,
    update: Callable[[Any, Tensor | None], None],
) -> Captured | None:
    """Capture the step, which executes nothing; None if that fails."""
    device, held = batches[0].device, Inputs()
    held.loss, held.scale = inputs
    slots = Slots(device, 4096 + 64 * sum(len(batch.items) for batch in batches))

    def run() -> None:
        with slots.recording():
            loss = None if held.loss is None else slots.add(lambda: _scalar(held.loss), (), dtype)
            scale = None if held.scale is None else slots.add(lambda: _scalar(held.scale), (), torch.float32)
            update(loss, scale)

    try:
        graph = captures[device.type].capture(device, run)
    except Exception as error:  # from torch, Triton or the driver: the step is launched instead
        for batch in batches:
            batch.release()
        budget.fail(error)
        return None
    finally:
        held.loss = held.scale = None
    for batch in batches:
        batch.release()
        batch.bind()
    return Captured(graph, slots, held, situation)


def _scalar(value: Any) -> Tensor:
    """A number or a tensor of one element as a scalar."""
    if isinstance(value, Tensor):
        return value.detach().reshape(())
    return torch.tensor(as_float(value), dtype=torch.float64)
