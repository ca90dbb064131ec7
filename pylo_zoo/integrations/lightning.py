"""Lightning: a callback that passes the loss to the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pylo_zoo.integrations.micro_batches import MicroBatchLosses, find_optimizer

_Callback: Any
try:
    from lightning.pytorch import Callback as _Callback  # pyright: ignore[reportMissingImports]
except ImportError:
    from pytorch_lightning import Callback as _Callback  # pyright: ignore[reportMissingImports]


class LossCallback(_Callback):
    """Passes the mean loss of a step's micro-batches and processes to every optimizer of this package.

    Lightning passes a closure to ``step``, whose result is the last micro-batch's loss divided by
    ``accumulate_grad_batches``, of this process alone. With ``precision="16-mixed"`` or manual optimization it passes
    nothing. With this callback, ``step`` gets the right loss in each case.

    ``lightning.pytorch`` is used if it is installed, otherwise ``pytorch_lightning``.
    """

    def __init__(self) -> None:
        self._losses = MicroBatchLosses()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss.detach() / scaler.scale(torch.ones_like(loss))  # Lightning scales it before this hook
        self._losses.add(loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        ours, count, total = find_optimizer(optimizer), self._losses.count, self._losses.take()
        if ours is not None and total is not None:
            parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            ours.set_loss(trainer.strategy.reduce(total * (parts / count), reduce_op="mean"))
