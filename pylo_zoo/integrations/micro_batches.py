"""The loss of a step whose batch is split into micro-batches, and the optimizer inside a library's wrapper."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pylo_zoo.optim.contract import ZooOptimizer


class MicroBatchLosses:
    """The losses of one step's micro-batches.

    Attributes:
        count: number of micro-batches since the last step.
    """

    def __init__(self) -> None:
        self.count = 0
        self._total: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch, a tensor of one element, without reading it from its device."""
        loss = loss.detach()
        self._total = loss.clone() if self._total is None else self._total + loss
        self.count += 1

    def take(self) -> Tensor | None:
        """The sum of the losses, or None without any; the next micro-batch starts the next step."""
        total, self._total, self.count = self._total, None, 0
        return total


def find_optimizer(wrapper: Any) -> ZooOptimizer | None:
    """The optimizer of this package in ``wrapper``, or None. Wrappers keep it in their attribute ``optimizer``."""
    while wrapper is not None and not isinstance(wrapper, ZooOptimizer):
        wrapper = getattr(wrapper, "optimizer", None)
    return wrapper
