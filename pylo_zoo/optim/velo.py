"""VeLO (arXiv 2211.09760; SPEC §4): an LSTM a tensor writes the weights of an MLP a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.nets import Control
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.accumulators import advance_all, factors, new_accumulators
from pylo_zoo.ops.features import VELO_FEATURES, Inputs, columns, parameter_scale, step_of
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer, mlp
from pylo_zoo.ops.trace import note
from pylo_zoo.optim.base import Group, Item
from pylo_zoo.optim.controlled import MAX_GRADIENT, ControlledOptimizer, decoupled

RSQRT_EPS = 1e-6
NORM_EPS = 1e-5


class Written(NamedTuple):
    """What the LSTM wrote for one tensor: its MLP and its step size."""

    layers: list[Layer]
    lr_mult: Tensor


class VeLO(ControlledOptimizer):
    """VeLO. Needs the training loss: ``opt.step(loss)``.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        num_steps: steps that the run will take.
        lr: multiplies every step; VeLO needs no tuning, and 1 is what it was trained with.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        weights: registry name, artifact directory or loaded artifact, of family velo.
        decay, accumulate: :class:`~pylo_zoo.optim.controlled.ControlledOptimizer`.
        nonfinite, master_weights: :class:`~pylo_zoo.optim.base.LearnedOptimizer`. A loss that is not finite stays in
            the loss buffer for good: use ``nonfinite="skip"`` where one may come.

    Raises:
        ZooError: bad arguments, weights of another family, or a step without a loss.
    """

    families = ("velo",)

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        weights: str | Artifact = "velo",
        decay: str = "decoupled",
        accumulate: int | str = 1,
        nonfinite: str = "propagate",
        master_weights: bool = False,
    ) -> None:
        super().__init__(params, num_steps, lr, weight_decay, weights, decay, accumulate, nonfinite, master_weights)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return {**super().new_state(p, group, axes), **new_accumulators(p, axes)}

    def lstm_inputs(self, items: Sequence[Item], run_features: Tensor) -> Tensor:
        def row(item: Item) -> Tensor:
            of_tensor = conditioning.tensor_features(item.p, item.state["momentum"], item.state["second_moment"])
            return torch.cat([run_features, *(feature.to(run_features) for feature in of_tensor)])

        return torch.stack([row(item) for item in items])

    def contexts(self, items: Sequence[Item], control: Control) -> Sequence[Written]:
        net: Any = self._meta(control.hidden.device, control.hidden.dtype).net
        stacked = net.write(control.controls)
        note("controls", control.controls)  # pyright: ignore[reportArgumentType]
        for k, (weight, _) in enumerate(stacked):
            note(f"written/{k}", weight)

        def written(k: int, p: Tensor) -> Written:
            return Written([(w[k].to(p), b[k].to(p)) for w, b in stacked], control.lr_mult[k].to(p))

        return [written(k, item.p) for k, item in enumerate(items)]

    def update(self, item: Item, step: Tensor, context: Written) -> None:
        p, state, axes = item.p, item.state, item.axes
        g = item.g.clamp(-MAX_GRADIENT, MAX_GRADIENT)
        advance_all(state, g, item.meta.decays, axes)

        inputs = Inputs(p, g, state["momentum"], state["second_moment"], factors(state, axes), RSQRT_EPS, diag_eps=0.0)
        x = columns(VELO_FEATURES, inputs, axes.all, NORM_EPS)
        delta = step_of(mlp(context.layers, x), p.shape, self.behavior.exp_mult)
        delta *= parameter_scale(p) * self.behavior.step_mult * context.lr_mult
        note("step", delta)
        p.sub_(item.group["lr"] * (delta + decoupled(item.group) * p))
