"""CELO2 and CELO2-base (arXiv 2602.19142; SPEC §6): one MLP a parameter, then orthogonalization; AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.ops.accumulators import advance_all, factors, new_accumulators
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.features import (
    CELO2_UNFACTORED_FEATURES,
    VELO_FEATURES,
    Inputs,
    columns,
    normalize,
    parameter_scale,
    step_of,
)
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.orthogonalize import newton_schulz
from pylo_zoo.ops.trace import note
from pylo_zoo.optim.base import Group, Item, LearnedOptimizer, new_counter
from pylo_zoo.optim.checks import check_betas, check_number

RSQRT_EPS = 1e-8
NORM_EPS = 1e-9


class CELO2(LearnedOptimizer):
    """CELO2, or CELO2-base with ``weights="celo2-base"``.

    A parameter takes the learned rule or AdamW. A group says which by ``rule="learned"`` or ``rule="adamw"``; where it
    does not, parameters of fewer than two axes take AdamW and all others the rule, and with CELO2-base all take the
    rule. Embeddings belong to AdamW as well: :func:`~pylo_zoo.optim.param_groups` sets their rule.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: step size; the root mean square of an orthogonalized step.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        adam_lr_mult: AdamW's learning rate is ``lr · adam_lr_mult``.
        adam_betas: AdamW's decays.
        adam_eps: AdamW's epsilon, outside the root.
        clip_norm: largest global norm of the gradient; None does not clip.
        weights: registry name, artifact directory or loaded artifact, of family celo2 or celo2-base.
        adam_weight_decay: AdamW's weight decay; None follows ``weight_decay``.
        grad_clip_val: largest absolute value of a gradient's element on the learned path.
        nonfinite, master_weights: :class:`~pylo_zoo.optim.base.LearnedOptimizer`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]`` and its factors ``row`` and ``col``,
    or ``diag`` where it is not factored; under AdamW ``momentum`` and ``second_moment``, ``[1, *shape]``, and ``step``.

    Raises:
        ZooError: bad arguments, or weights of another family.
    """

    families = ("celo2", "celo2-base")
    clip_adam_gradients = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        adam_lr_mult: float = 20.0,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        clip_norm: float | None = None,
        weights: str | Artifact = "celo2",
        adam_weight_decay: float | None = None,
        grad_clip_val: float = 1000.0,
        nonfinite: str = "propagate",
        master_weights: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "adam_lr_mult": adam_lr_mult,
            "adam_betas": adam_betas,
            "adam_eps": adam_eps,
            "adam_weight_decay": adam_weight_decay,
            "grad_clip_val": grad_clip_val,
            "rule": None,
        }
        super().__init__(params, defaults, weights, clip_norm, nonfinite, master_weights)

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        super()._check_group(group, given)
        for option in ("adam_lr_mult", "adam_eps", "grad_clip_val"):
            check_number(option, group[option])
        if group["adam_weight_decay"] is not None:
            check_number("adam_weight_decay", group["adam_weight_decay"])
        check_betas("adam_betas", group["adam_betas"])

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        if self._rule(group, axes) == "learned":
            return new_accumulators(p, axes)
        moments = {name: torch.zeros_like(p)[None] for name in ("momentum", "second_moment")}
        return {**moments, "step": new_counter()}

    def update(self, item: Item, step: Tensor, context: None) -> None:
        rule = self._adamw if self._rule(item.group, item.axes) == "adamw" else self._learned
        rule(item)

    def _rule(self, group: Group, axes: Axes) -> str:
        if group["rule"] is not None:
            return group["rule"]
        return "adamw" if axes.factored is None and self.artifact.family != "celo2-base" else "learned"

    def _learned(self, item: Item) -> None:
        p, state, axes, behavior, group = item.p, item.state, item.axes, self.behavior, item.group
        g = item.g.clamp(-group["grad_clip_val"], group["grad_clip_val"])
        advance_all(state, g, item.meta.decays, axes)

        inputs = Inputs(p, g, state["momentum"], state["second_moment"], factors(state, axes), RSQRT_EPS, diag_eps=0.0)
        names = CELO2_UNFACTORED_FEATURES if axes.factored is None else VELO_FEATURES
        x = columns(names, inputs, axes.matrix, NORM_EPS)
        delta = step_of(item.meta.net(x), p.shape, behavior.exp_mult)
        if behavior.param_scale_mult:
            delta *= parameter_scale(p)
        if behavior.orthogonalize and axes.factored is not None:
            matrices = delta.movedim(axes.matrix, (-2, -1))
            coefficients = [behavior.ns_coeffs] * behavior.ns_iters
            delta = newton_schulz(matrices, coefficients, behavior.ns_eps).movedim((-2, -1), axes.matrix)
            note("orthogonalized", delta)
        delta = normalize(delta, axes.matrix, NORM_EPS) * behavior.rmsmult
        note("step", delta)
        p.sub_(group["lr"] * (delta + group["weight_decay"] * p))

    def _adamw(self, item: Item) -> None:
        p, state, group = item.p, item.state, item.group
        limit = group["grad_clip_val"]
        g = item.g.clamp(-limit, limit) if self.clip_adam_gradients else item.g
        state["step"] += 1
        beta1, beta2 = (torch.tensor([beta], dtype=p.dtype, device=p.device) for beta in group["adam_betas"])
        moments = state["momentum"], state["second_moment"]
        direction = adam_direction(*moments, g, state["step"], (beta1, beta2), group["adam_eps"])
        decay = group["weight_decay"] if group["adam_weight_decay"] is None else group["adam_weight_decay"]
        p.sub_(group["lr"] * group["adam_lr_mult"] * (direction + decay * p))
