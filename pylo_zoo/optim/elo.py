"""ELO (arXiv 2506.10315; SPEC §3), for inference: AdafacMLP's step with fixed decays."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.optim.adafac import AdafacLO
from pylo_zoo.optim.base import Group, ParamStep
from pylo_zoo.optim.mlp_rule import Limits


class ELO(AdafacLO):
    """ELO. Non-finite gradients are replaced: NaN by 0, infinities by the largest finite number.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: step size.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        clip_norm: largest global norm of the gradient; None does not clip.
        weights: registry name, artifact directory or loaded artifact, of family elo.
        nonfinite, master_weights, backend: :class:`~pylo_zoo.optim.base.LearnedOptimizer`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]`` and its factors ``row`` and ``col``,
    or ``diag`` where it is not factored.

    Raises:
        ZooError: bad arguments, or weights of another family.
    """

    families = ("elo",)
    learns_step_sizes = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        weights: str | Artifact = "elo",
        nonfinite: str = "propagate",
        master_weights: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(params, lr, weight_decay, clip_norm, weights, nonfinite, master_weights, backend)

    def limits(self, group: Group) -> Limits:
        return Limits(replace_nonfinite=True)

    def step_mult(self, item: ParamStep) -> float:
        return 1.0
