"""The stage that VeLO, Celo and CeloAdam share: an LSTM over all tensors, before the update (SPEC §4, §5)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.nets import Control
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import note
from pylo_zoo.optim.base import Group, Item, LearnedOptimizer, Loss

MAX_GRADIENT = 1000.0
"""Gradients are clipped to this, element by element, before the update (SPEC §4)."""


class ControlledOptimizer(LearnedOptimizer):
    """Base of the optimizers whose step sizes an LSTM chooses from the loss and the fraction of training done.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        num_steps: steps that the run will take. Later steps go on with the last step's fraction, and warn once.
        lr: multiplies every step; 1 is what the weights were trained with.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        weights: registry name, artifact directory or loaded artifact.

    State of a parameter beside its accumulators: ``lstm_hidden`` and ``lstm_cell`` ``[H]``; of the run: ``step``,
    ``loss_average [10]`` and ``loss_minimum [10]``.
    """

    run_keys = ("step", "loss_average", "loss_minimum")
    needs_loss: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor,
        weight_decay: float,
        weights: str | Artifact,
    ) -> None:
        if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
            raise ZooError(
                f"num_steps is {num_steps!r}.", "Give the steps that the run will take, a whole number such as 10_000."
            )
        defaults = {"lr": lr, "weight_decay": weight_decay, "num_steps": int(num_steps)}
        super().__init__(params, defaults, weights)

    def add_param_group(self, param_group: Group) -> None:
        planned = self.param_groups[0]["num_steps"] if self.param_groups else self.defaults["num_steps"]
        if param_group.setdefault("num_steps", planned) != planned:
            raise ZooError(
                f"A parameter group has num_steps={param_group['num_steps']}, the run {planned}.",
                "num_steps belongs to the run: give it to the constructor alone.",
            )
        super().add_param_group(param_group)

    @property
    def num_steps(self) -> int:
        """Steps that the run was planned to take."""
        return self.param_groups[0]["num_steps"]

    @abstractmethod
    def lstm_inputs(self, items: Sequence[Item], run_features: Tensor) -> Tensor:
        """The LSTM's inputs ``[N, inputs]``, from ``run_features [18]``: nine of the fraction, nine of the loss."""

    @abstractmethod
    def contexts(self, items: Sequence[Item], control: Control) -> Sequence[Any]:
        """What :meth:`update` needs of the LSTM's outputs, one entry a parameter."""

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        controller: Any = self._meta(torch.device("cpu"), p.dtype).net.controller
        hidden, cell = controller.initial_hidden[0], controller.initial_cell[0]
        return {name: value.clone().to(p.device) for name, value in (("lstm_hidden", hidden), ("lstm_cell", cell))}

    def new_run_state(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        average = torch.zeros(conditioning.LOSS_DECAYS, device=device, dtype=dtype)
        minimum = torch.full_like(average, conditioning.LOSS_MINIMUM_START)
        return {**super().new_run_state(device, dtype), "loss_average": average, "loss_minimum": minimum}

    def prepare(self, items: Sequence[Item], step: Tensor, loss: Loss | None) -> Sequence[Any]:
        run = self.param_groups[0]
        average, minimum = run["loss_average"], run["loss_minimum"]
        if not step < self.num_steps:
            self._warn_once("horizon", f"this run goes past its num_steps={self.num_steps}; the fraction stays.")
        t = step.to(average.device)
        bugged = getattr(self.behavior, "use_bugged_loss_features", False)
        decays = conditioning.loss_decays(10 if bugged else self.num_steps, average)
        conditioning.advance_loss(average, minimum, t, torch.as_tensor(loss).detach().to(average).squeeze(), decays)
        fraction = conditioning.fraction_features(t.clamp(max=self.num_steps - 1), self.num_steps, average)
        losses = conditioning.loss_features(average, minimum, t + 1, decays)
        note("fraction_features", fraction)
        note("loss_features", losses)

        meta = self._meta(average.device, average.dtype)
        hidden, cell = (torch.stack([item.state[name].to(average) for item in items]) for name in _LSTM_STATE)
        inputs = self.lstm_inputs(items, torch.cat([fraction, losses]))
        control = meta.net(inputs, hidden, cell)
        note("lstm_inputs", inputs)
        note("lr_mult", control.lr_mult)
        if not getattr(self.behavior, "use_bugged_next_lstm_state", False):
            for item, next_hidden, next_cell in zip(items, control.hidden, control.cell, strict=True):
                item.state["lstm_hidden"].copy_(next_hidden)
                item.state["lstm_cell"].copy_(next_cell)
        return self.contexts(items, control)


_LSTM_STATE = ("lstm_hidden", "lstm_cell")
