"""AdafacMLP, also called small_fc_lopt (arXiv 2203.11860; SPEC §3): one MLP a parameter over 39 features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.ops.accumulators import advance_all, factors, new_accumulators
from pylo_zoo.ops.features import ADAFAC_FEATURES, Inputs, columns, step_of, time_columns
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import note
from pylo_zoo.optim.base import Group, Item, LearnedOptimizer

RSQRT_EPS = 1e-6
NORM_EPS = 1e-5
DIAG_EPS = 1e-6


class AdafacLO(LearnedOptimizer):
    """AdafacMLP (small_fc_lopt).

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: multiplies every step; 1 is what the weights were trained with.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``. The original has none.
        clip_norm: largest global norm of the gradient; None does not clip.
        weights: registry name, artifact directory or loaded artifact, of family adafac-mlp or mulo; ``step_mult``
            and the learned decays come from it.
        nonfinite, master_weights: :class:`~pylo_zoo.optim.base.LearnedOptimizer`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]`` and its factors ``row`` and ``col``,
    or ``diag`` where it is not factored.

    Raises:
        ZooError: bad arguments, or weights of another family.
    """

    families = ("adafac-mlp", "mulo")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        weights: str | Artifact = "mulo",
        nonfinite: str = "propagate",
        master_weights: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults, weights, clip_norm, nonfinite, master_weights)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return new_accumulators(p, axes)

    def update(self, item: Item, step: Tensor, context: None) -> None:
        adafac_update(item, item.g, step, self.behavior.exp_mult, self.behavior.step_mult)


def adafac_update(item: Item, g: Tensor, step: Tensor, exp_mult: float, step_mult: float) -> None:
    """The update that AdafacMLP, μLO and ELO have in common (SPEC §3), in place.

    Args:
        item: the parameter, its state and group.
        g: its gradient, conditioned as the family does, ``[*shape]``.
        step: 0-based step of the run, for the time features.
        exp_mult: multiplies the magnitude in ``direction · exp(magnitude · exp_mult)``.
        step_mult: multiplies the step.
    """
    p, state, axes, group = item.p, item.state, item.axes, item.group
    advance_all(state, g, item.meta.decays, axes)

    inputs = Inputs(p, g, state["momentum"], state["second_moment"], factors(state, axes), RSQRT_EPS, DIAG_EPS)
    x = torch.cat([columns(ADAFAC_FEATURES, inputs, axes.all, NORM_EPS), time_columns(step, p.numel(), p)])
    delta = step_mult * step_of(item.meta.net(x), p.shape, exp_mult)
    note("step", delta)
    p.sub_(group["lr"] * (delta + group["weight_decay"] * p))
