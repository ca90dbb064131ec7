"""Hugging Face Transformers: a mixin for ``Trainer``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pylo_zoo.integrations.micro_batches import MicroBatchLosses, find_optimizer
from pylo_zoo.optim import create_optimizer
from pylo_zoo.optim.contract import ZooOptimizer
from pylo_zoo.warn import warn

_Trainer: Any = object
DEFAULT_SCHEDULE = "linear"
"""The schedule of ``TrainingArguments``, which a user may not have chosen."""


class TrainerMixin(_Trainer):
    """Runs the optimizers of this package in Hugging Face's ``Trainer``.

    ::

        class MyTrainer(TrainerMixin, transformers.Trainer):
            pass

        trainer = MyTrainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=(VeLO, {}))

    - VeLO, Celo and CeloAdam get the loss: its mean over micro-batches and processes, as ``Trainer`` reports it. Their
      ``num_steps`` is the number of steps that ``Trainer`` computed, unless the arguments have one. Their learning rate
      stays constant, because they schedule their steps themselves.
    - The optimizer is a class of this package, or a name for :func:`~pylo_zoo.optim.create_optimizer`.
      :func:`~pylo_zoo.optim.param_groups` sorts the parameters, so embeddings use AdamW under Muon and CELO2. Biases
      and norms have no weight decay, as usual in ``Trainer``. ``weight_decay`` in the arguments takes precedence over
      that of ``TrainingArguments``.
    - Everything else, including other optimizers, is as without the mixin. ``Trainer`` clips gradients to a global norm
      of 1 by default; ``max_grad_norm=0`` disables that.

    Raises:
        ZooError: an argument of the optimizer is invalid, or ``num_steps`` is unknown.
    """

    _micro_batches: MicroBatchLosses | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        chosen: Any
        chosen, options = self.optimizer_cls_and_kwargs or (None, {})
        is_ours = isinstance(chosen, str) or (isinstance(chosen, type) and issubclass(chosen, ZooOptimizer))
        if self.optimizer is not None or not is_ours:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        model = self.model if model is None else model
        self.optimizer = create_optimizer(chosen, model, self._decay_groups(model, options), **self._options(options))
        return self.optimizer

    def _decay_groups(self, model: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Parameters with and without weight decay, by name, as ``Trainer`` separates them."""
        decay = options.get("weight_decay", self.args.weight_decay)
        names = set(self.get_decay_parameter_names(model))
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [each for each in named if (each[0] in names) == decays], "weight_decay": decay * decays}
            for decays in (True, False)
        ]
        return [group for group in groups if group["params"]]

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's arguments. Only optimizers that need the loss accept ``num_steps``."""
        steps = self.state.max_steps
        return {"num_steps": steps if steps > 0 else None, **options}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        ours = find_optimizer(self.optimizer if optimizer is None else optimizer)
        if self.lr_scheduler is not None or ours is None or not ours.needs_loss:
            return super().create_scheduler(num_training_steps, optimizer)
        schedule = str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type))
        if schedule not in (DEFAULT_SCHEDULE, "constant"):
            name = type(ours).__name__
            warn(
                f"lr_scheduler_type={schedule!r} is not used, and lr stays constant: {name} schedules its steps by "
                "num_steps and the loss."
            )
        wrapper = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(wrapper, factor=1.0)
        self._created_lr_scheduler = True  # Trainer builds another one for its next call of train()
        return self.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        ours = find_optimizer(self.optimizer)
        if ours is not None:
            self._micro_batches = self._micro_batches or MicroBatchLosses()
            self._micro_batches.add(loss)  # already divided by the number of micro-batches
            if self.accelerator.sync_gradients:
                ours.set_loss(self.accelerator.reduce(self._micro_batches.take(), reduction="mean"))
        return loss
