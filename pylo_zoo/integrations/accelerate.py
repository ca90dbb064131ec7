"""Hugging Face Accelerate: the loss for an optimizer that ``accelerator.prepare`` has wrapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.integrations.micro_batches import MicroBatchLosses, find_optimizer


class StepLoss:
    """Passes the mean loss of a step's micro-batches and processes to an optimizer.

    Call :meth:`add` after each ``accelerator.backward(loss)``, before ``optimizer.step()``. Accelerate's wrapper skips
    ``step`` while gradients accumulate, and hides ``set_loss``.

    Args:
        accelerator: the ``accelerate.Accelerator``.
        optimizer: the result of ``accelerator.prepare``, or the optimizer itself.

    Raises:
        ZooError: ``optimizer`` is not one of this package.
    """

    def __init__(self, accelerator: Any, optimizer: Any) -> None:
        found = find_optimizer(optimizer)
        if found is None:
            raise ZooError(
                f"StepLoss received {type(optimizer).__name__}, which contains no optimizer of pylo_zoo.",
                "Pass the optimizer that accelerator.prepare returned.",
            )
        self._accelerator, self._optimizer = accelerator, found
        self._losses = MicroBatchLosses()

    def add(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch; sets the optimizer's loss if the next ``step`` is not skipped.

        Args:
            loss: mean loss of this process's micro-batch, as passed to ``accelerator.backward``, a tensor of one
                element.
        """
        self._losses.add(loss)
        if self._accelerator.sync_gradients:
            count, total = self._losses.count, self._losses.take()
            assert total is not None
            self._optimizer.set_loss(self._accelerator.reduce(total / count, reduction="mean"))
