"""celo-adam (arXiv 2501.12670; SPEC §5): Adam with step sizes from Celo's LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.nets import Control
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.adamw import AdamBatches, AdamW
from pylo_zoo.optim.base import Group, Loss, ParamStep
from pylo_zoo.optim.lstm_controlled import MAX_GRADIENT, LSTMControlledOptimizer, decoupled_decay
from pylo_zoo.optim.options import SharedOptions, Unpack
from pylo_zoo.optim.step_condition import new_counter

EPS = 1e-8
EPS_ROOT = 1e-10


class CeloAdam(LSTMControlledOptimizer):
    """celo-adam. Needs the training loss: ``opt.step(loss)``.

    Arguments and errors are those of :class:`~pylo_zoo.optim.velo.VeLO`; the weights are of family celo-adam.

    State of a parameter: ``momentum`` and ``second_moment`` ``[1, *shape]``, ``step``, ``lstm_hidden`` and
    ``lstm_cell`` ``[H]``.
    """

    families = ("celo-adam",)

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        weights: str | Artifact = "celo-adam",
        decay: str = "decoupled",
        accumulate: int | str = 1,
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, num_steps, lr, weight_decay, weights, decay, accumulate, **options)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        moments = {name: torch.zeros_like(p)[None] for name in ("momentum", "second_moment")}
        return {**super().new_state(p, group, axes), **moments, "step": new_counter(p.device)}

    def lstm_inputs(self, items: Sequence[ParamStep], run_features: Tensor, moments: Tensor | None) -> Tensor:
        return run_features.expand(len(items), -1)

    def contexts(self, items: Sequence[ParamStep], control: Control) -> Tensor:
        return control.lr_mult

    def _update_fused(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        assert self._plan is not None
        lr_mults: Any = self.prepare(items, step, loss)
        batches = self._plan.keep("adamw", lambda: AdamBatches(self, items, self._plan))
        factors = self.behavior.step_mult * lr_mults.double()
        batches.step(self._options, lambda k: self.update(items[k], step, lr_mults[k]), factors)

    def _options(self, group: Group) -> AdamW:
        betas = self.behavior.initial_momentum_decays[0], self.behavior.initial_rms_decays[0]
        return AdamW(betas, EPS, EPS_ROOT, group["lr"], decoupled_decay(group), MAX_GRADIENT)

    def update(self, item: ParamStep, step: Tensor, context: Tensor) -> None:
        p, state, decays = item.p, item.state, item.meta.decays
        state["step"] += 1
        g = item.g.clamp(-MAX_GRADIENT, MAX_GRADIENT)
        betas = decays.momentum, decays.rms
        direction = adam_direction(state["momentum"], state["second_moment"], g, state["step"], betas, EPS, EPS_ROOT)
        delta = self.behavior.step_mult * context.to(p) * direction
        record("step", delta)
        p.sub_(item.group["lr"] * (delta + decoupled_decay(item.group) * p))
