"""ELO (arXiv 2506.10315; SPEC §3), for inference: AdafacMLP's step with fixed decays."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.optim.adafac import AdafacLO
from pylo_zoo.optim.base import Group, ParamStep
from pylo_zoo.optim.mlp_rule import Limits
from pylo_zoo.optim.options import SharedOptions, Unpack


class ELO(AdafacLO):
    """ELO. In gradients, NaN becomes 0 and infinities become the largest finite number.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: step size.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        clip_norm: maximum global norm of the gradient; None or infinity disables clipping.
        weights: registry name, artifact directory or loaded artifact of family elo.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]``, and ``row`` and ``col`` if the second
    moment is factored, else ``diag``.

    Raises:
        ZooError: an argument is invalid, or the weights belong to another family.
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
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, lr, weight_decay, clip_norm, weights, **options)

    def limits(self, group: Group) -> Limits:
        return Limits(replace_nonfinite=True)

    def step_mult(self, item: ParamStep) -> float:
        return 1.0
