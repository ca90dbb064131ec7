"""AdafacMLP, also called small_fc_lopt (arXiv 2203.11860; SPEC §3): a per-parameter MLP over 39 features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.ops.accumulators import new_accumulators
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.rule import Rule, adafac_rule
from pylo_zoo.ops.step import with_time
from pylo_zoo.optim.base import Group, Loss, ParamStep
from pylo_zoo.optim.mlp_rule import MLPRuleOptimizer, SharedMLPs
from pylo_zoo.optim.options import SharedOptions, Unpack


class AdafacLO(MLPRuleOptimizer):
    """AdafacMLP (small_fc_lopt).

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: factor on every step; the weights were trained with 1.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``. The original has none.
        clip_norm: maximum global norm of the gradient; None or infinity disables clipping.
        weights: registry name, artifact directory or loaded artifact of family adafac-mlp or mulo. It provides
            ``step_mult`` and the learned decays.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]``, and ``row`` and ``col`` if the second
    moment is factored, else ``diag``.

    Raises:
        ZooError: an argument is invalid, or the weights belong to another family.
    """

    families = ("adafac-mlp", "mulo")
    learns_step_sizes = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        weights: str | Artifact = "mulo",
        **options: Unpack[SharedOptions],
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults, weights, clip_norm, **options)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return new_accumulators(p, axes)

    @property
    def rule(self) -> Rule:
        return adafac_rule(self.behavior.exp_mult)

    def prepare(
        self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None, moments: Tensor | None = None
    ) -> SharedMLPs:
        # The time features are equal for all elements, so their share of the first layer is added to its bias.
        layers = {meta: with_time(meta.net.mlp.weights(), step) for meta in {item.meta for item in items}}  # pyright: ignore
        return SharedMLPs(items, layers, self._keep("multipliers", items, self._multipliers))

    def _multipliers(self, items: Sequence[ParamStep]) -> list[float]:
        return [self.step_mult(item) for item in items]

    def step_mult(self, item: ParamStep) -> float:
        """The factor on a parameter's step."""
        return self.behavior.step_mult
