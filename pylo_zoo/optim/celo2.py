"""CELO2 and CELO2-base (arXiv 2602.19142; SPEC §6): a per-parameter MLP with orthogonalization; AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import Normalized, NormalizedPlan, ScratchBuffer, products_for
from pylo_zoo.ops.accumulators import new_accumulators
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.features import mean_square, normalize
from pylo_zoo.ops.layout import Axes, axes_of
from pylo_zoo.ops.orthogonalize import newton_schulz_all
from pylo_zoo.ops.precision import NsDtype, check_ns_dtype
from pylo_zoo.ops.product import torch_products
from pylo_zoo.ops.rule import Rule, celo2_rule
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.adamw import AdamBatches, AdamW
from pylo_zoo.optim.base import Group, Loss, ParamStep
from pylo_zoo.optim.checks import check_betas, check_limit, check_number
from pylo_zoo.optim.contract import ParamGrad
from pylo_zoo.optim.kernel_batch import KernelBatch
from pylo_zoo.optim.mlp_rule import Limits, MLPRuleOptimizer, Network, Networks, SharedMLPs
from pylo_zoo.optim.options import SharedOptions, Unpack
from pylo_zoo.optim.route_table import Routes, routes_of
from pylo_zoo.optim.step_condition import new_counter

NORM_EPS = 1e-9
FOREIGN_OPTIONS = frozenset(["use_muon", "use_fallback", "algorithm", "is_embedding"])
"""Group options that select AdamW in other optimizers; here ``rule`` does."""


class CELO2(MLPRuleOptimizer):
    """CELO2, or CELO2-base with ``weights="celo2-base"``.

    A group selects the learned rule or AdamW with ``rule="learned"`` or ``rule="adamw"``. Without it, CELO2 updates
    parameters of fewer than two axes with AdamW and all others with the learned rule; CELO2-base uses the learned rule
    for all. Embeddings need AdamW as well: :func:`~pylo_zoo.optim.param_groups` sets their rule.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        lr: step size: the root mean square of an orthogonalized step.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        adam_lr_mult: AdamW's learning rate is ``lr · adam_lr_mult``.
        adam_betas: AdamW's decays.
        adam_eps: AdamW's epsilon, outside the root.
        clip_norm: maximum global norm of the gradient; None or infinity disables clipping.
        weights: registry name, artifact directory or loaded artifact of family celo2 or celo2-base.
        adam_weight_decay: AdamW's weight decay; None uses ``weight_decay``.
        grad_clip_val: maximum absolute value of a gradient's elements under the learned rule; may be infinite.
        ns_dtype: precision of the Newton–Schulz iterations: ``"float32"``, ``"tf32"`` or ``"bfloat16"``. None is what
            the original does: the parameters' precision, with TF32 products on GPUs that have it. Groups may override
            it.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    State of a parameter, learned rule: ``momentum [3, *shape]``, ``second_moment [1, *shape]``, and ``row`` and ``col``
    if the second moment is factored, else ``diag``. AdamW: ``momentum`` and ``second_moment`` ``[1, *shape]``, and
    ``step``.

    Raises:
        ZooError: an argument is invalid, or the weights belong to another family.
    """

    families = ("celo2", "celo2-base")
    clip_adam_gradients = False
    plan_options = ("grad_clip_val",)

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
        ns_dtype: NsDtype = None,
        **options: Unpack[SharedOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "adam_lr_mult": adam_lr_mult,
            "adam_betas": adam_betas,
            "adam_eps": adam_eps,
            "adam_weight_decay": adam_weight_decay,
            "grad_clip_val": grad_clip_val,
            "ns_dtype": ns_dtype,
            "rule": None,
        }
        super().__init__(params, defaults, weights, clip_norm, **options)
        self._derive()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._derive()

    def _derive(self) -> None:
        """Set the attributes that are not pickled."""
        self._scratch = ScratchBuffer()
        self._learns_all = converters.get(self.artifact.family).learns_all

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        super()._check_group(group, explicit)
        for option in sorted(explicit & FOREIGN_OPTIONS):
            raise ZooError(
                f"A parameter group has {option}={group[option]!r}, which {type(self).__name__} does not support.",
                'Set the group\'s rule to "adamw" or "learned".',
            )
        for option in ("adam_lr_mult", "adam_eps"):
            check_number(option, group[option])
        check_limit("grad_clip_val", group["grad_clip_val"])
        check_ns_dtype(group["ns_dtype"])
        if group["adam_weight_decay"] is not None:
            check_number("adam_weight_decay", group["adam_weight_decay"])
        check_betas("adam_betas", group["adam_betas"])

    def routes(self) -> Routes:
        """Each parameter's rule, "learned" or "adamw", with the reason. ``print`` shows a table."""
        return routes_of(self.param_groups, self._route)

    def _route(self, p: Tensor, group: Mapping[str, Any]) -> tuple[str, str]:
        if group["rule"] is not None:
            return group["rule"], "set by its group"
        axes = axes_of(tuple(p.shape) or (1,), group["layout"])
        if self._learns_all:
            reason = f"{self.artifact.family} updates every parameter"
        else:
            reason = "a vector or scalar" if axes.factored is None else "two or more axes"
        return self._rule(group, axes), reason

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        if self._rule(group, axes) == "learned":
            return new_accumulators(p, axes)
        moments = {name: torch.zeros_like(p)[None] for name in ("momentum", "second_moment")}
        return {**moments, "step": new_counter(p.device)}

    def _warn_about_settings(self, new: Sequence[ParamGrad]) -> None:
        if not self._learns_all:
            learned = [
                each for each in new if self._rule(each.group, self._axes_of(each.parameter, each.group)) == "learned"
            ]
            self._warn_about_embeddings(learned, "the learned rule")

    @property
    def rule(self) -> Rule:
        return celo2_rule(self.behavior.mlp_activation, self.behavior.exp_mult, self.behavior.param_scale_mult)

    def limits(self, group: Group) -> Limits:
        return Limits(group["grad_clip_val"])

    def prepare(
        self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None, moments: Tensor | None = None
    ) -> SharedMLPs:
        layers = {meta: meta.net.mlp.weights() for meta in {item.meta for item in items}}  # pyright: ignore
        return SharedMLPs(items, layers, [1.0] * len(items))

    def update(self, item: ParamStep, step: Tensor, context: Network) -> None:
        if self._rule(item.group, item.axes) == "adamw":
            self._adamw(item)
        else:
            super().update(item, step, context)

    def _update_fused(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        assert self._plan is not None
        adamw, learned = self._plan.keep("routes", lambda: self._split(items))
        if adamw:
            batches = self._plan.keep("adamw", lambda: AdamBatches(self, adamw, self._plan))
            batches.step(self._options, lambda k: self._adamw(adamw[k]))
        if learned:
            super()._update_fused(learned, step, loss)

    def _split(self, items: Sequence[ParamStep]) -> tuple[list[ParamStep], list[ParamStep]]:
        """The parameters with AdamW, and those with the learned rule."""
        split: dict[str, list[ParamStep]] = {"adamw": [], "learned": []}
        for item in items:
            split[self._rule(item.group, item.axes)].append(item)
        return split["adamw"], split["learned"]

    def _move(self, batch: KernelBatch, networks: Networks) -> None:
        layers, _ = networks.select(batch)
        proceed = self._proceed(batch)
        deltas = self._orthogonalize(batch.items, batch.kernels.steps(batch.advanced, layers, self._scratch, proceed))

        def plan() -> NormalizedPlan:
            triples = zip(batch.values, deltas, batch.items, strict=True)
            tasks = [Normalized(p, delta, item.axes.matrix, NORM_EPS) for p, delta, item in triples]
            return batch.kernels.plan_normalized(tasks)

        rates, shrink = batch.factors(lambda group: group["lr"], self.decay, self._rmsmult(batch))
        batch.keep("normalized", plan).move(batch.values, deltas, rates, shrink, proceed)

    def _rmsmult(self, batch: KernelBatch) -> Tensor:
        factor = self.behavior.rmsmult
        return batch.keep("rmsmult", lambda: torch.full((len(batch.items),), factor, dtype=torch.float64))

    def _rule(self, group: Mapping[str, Any], axes: Axes) -> str:
        if group["rule"] is not None:
            return group["rule"]
        return "adamw" if axes.factored is None and not self._learns_all else "learned"

    def apply(self, item: ParamStep, delta: Tensor) -> None:
        (delta,) = self._orthogonalize([item], [delta])
        delta = normalize(delta, mean_square(delta, item.axes.matrix), NORM_EPS)
        super().apply(item, delta.mul_(self.behavior.rmsmult))

    def _orthogonalize(self, items: Sequence[ParamStep], deltas: Sequence[Tensor]) -> list[Tensor]:
        """Orthogonalize the steps of two or more axes, if the checkpoint does so; equal shapes are stacked."""
        steps, behavior = list(deltas), self.behavior
        by_precision: dict[NsDtype, list[int]] = {}
        for k, item in enumerate(items):
            if behavior.orthogonalize and item.axes.factored is not None:
                by_precision.setdefault(item.group.get("ns_dtype"), []).append(k)
        choose = torch_products if self.backend == "eager" else products_for
        for ns_dtype, chosen in by_precision.items():
            matrices = [deltas[k].movedim(items[k].axes.matrix, (-2, -1)) for k in chosen]
            triples = [behavior.ns_coeffs] * behavior.ns_iters
            results = newton_schulz_all(matrices, triples, behavior.ns_eps, dtype=ns_dtype, products_for=choose)
            for k, matrix in zip(chosen, results, strict=True):
                steps[k] = matrix.movedim((-2, -1), items[k].axes.matrix)
                record("orthogonalized", steps[k])
        return [step.contiguous() for step in steps]

    def _options(self, group: Group) -> AdamW:
        lr = group["lr"] * group["adam_lr_mult"]
        decay = group["weight_decay"] if group["adam_weight_decay"] is None else group["adam_weight_decay"]
        limit = group["grad_clip_val"] if self.clip_adam_gradients else math.inf
        return AdamW(group["adam_betas"], group["adam_eps"], 0.0, lr, decay, limit)

    def _adamw(self, item: ParamStep) -> None:
        p, state, options = item.p, item.state, self._options(item.group)
        g = Limits(options.max_gradient).condition(item.g)
        state["step"] += 1
        beta1, beta2 = (torch.full((1,), beta, dtype=p.dtype, device=p.device) for beta in options.betas)
        moments = state["momentum"], state["second_moment"]
        direction = adam_direction(*moments, g, state["step"], (beta1, beta2), options.eps)
        p.sub_(options.lr * direction + options.lr * options.weight_decay * p)
