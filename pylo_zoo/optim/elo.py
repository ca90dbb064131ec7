"""ELO (arXiv 2506.10315; SPEC §3), for inference: AdafacMLP's step with fixed decays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.ops.accumulators import new_accumulators
from pylo_zoo.ops.layout import Axes
from pylo_zoo.optim.adafac import adafac_update
from pylo_zoo.optim.base import Group, Item, LearnedOptimizer


class ELO(LearnedOptimizer):
    """ELO. Non-finite gradients are replaced: NaN by 0, infinities by the largest finite number.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: step size.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        clip_norm: largest global norm of the gradient; None does not clip.
        weights: registry name, artifact directory or loaded artifact, of family elo.
        nonfinite, master_weights: :class:`~pylo_zoo.optim.base.LearnedOptimizer`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]`` and its factors ``row`` and ``col``,
    or ``diag`` where it is not factored.

    Raises:
        ZooError: bad arguments, or weights of another family.
    """

    families = ("elo",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        weights: str | Artifact = "elo",
        nonfinite: str = "propagate",
        master_weights: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults, weights, clip_norm, nonfinite, master_weights)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return new_accumulators(p, axes)

    def update(self, item: Item, step: Tensor, context: None) -> None:
        adafac_update(item, torch.nan_to_num(item.g), step, self.behavior.exp_mult, step_mult=1.0)
