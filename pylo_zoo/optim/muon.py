"""Muon (kellerjordan.github.io/posts/muon; SPEC §7): orthogonalized momentum for matrices, AdamW for the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import Kernels, available_kernels, prepare_products, products_for
from pylo_zoo.ops.adam import adam_direction, adam_directions
from pylo_zoo.ops.apply import as_scalar, decay_and_step, decay_and_step_together, foreach
from pylo_zoo.ops.muon import Recipe, muon, muon_route
from pylo_zoo.ops.orthogonalize import Coefficients
from pylo_zoo.ops.precision import NsDtype
from pylo_zoo.optim.adamw import AdamW
from pylo_zoo.optim.checks import check_betas, check_flag, check_number, require
from pylo_zoo.optim.contract import Group, Loss, ParamGrad, ZooOptimizer
from pylo_zoo.optim.muon_plan import MuonPlan, updated_tensors, write_back
from pylo_zoo.optim.options import SharedOptions, Unpack
from pylo_zoo.optim.precision import master_copy, state_dtype
from pylo_zoo.optim.route_table import Routes, routes_of
from pylo_zoo.optim.step_plan import share_memory

_log = logging.getLogger(__name__)

RECIPE = tuple(field.name for field in fields(Recipe))
"""Group options of the update itself."""
FLAGS = ("nesterov", "use_fallback")
ALGORITHMS = {"muon": True, "adamw": False}
"""``use_muon`` by ``algorithm``, the group option of microsoft/dion's optimizers."""
FOREIGN_OPTIONS = {
    **dict.fromkeys(("mu", "muon_momentum"), "momentum"),
    **dict.fromkeys(("epsilon", "adamw_eps"), "eps"),
    **dict.fromkeys(("beta1", "beta2", "adamw_betas", "adam_betas"), "betas"),
    **dict.fromkeys(("adamw_wd", "adamw_weight_decay", "wd"), "weight_decay"),
    **dict.fromkeys(("adamw_lr", "adam_lr"), "fallback_lr_scale"),
    "muon_lr": "lr",
    "flatten": "conv_mode",
    "is_embedding": 'rule to "adamw"',
}
"""Group options of other implementations, with the option to use here. They change a step, so they are errors."""
STACK = {"conv_mode": "batched", "normalize_spatial": False}
"""Options for stacks of matrices: each matrix is orthogonalized separately."""


class Muon(ZooOptimizer):
    """Muon for matrices and convolutions, AdamW (NAdamW with ``nesterov``) for other parameters. Needs no weights.

    Options of a group and the shape decide which rule a parameter gets. ``use_fallback=True``, ``use_muon=False`` or
    ``rule="adamw"`` select AdamW, and so do shapes that are unsuitable for Newton–Schulz
    (:func:`~pylo_zoo.ops.muon.muon_route`). ``use_muon=True`` selects Muon for any shape with two or more axes, as in
    Keller Jordan's and timm's groups. ``algorithm="muon"`` and ``"adamw"``, from Dion's groups, set ``use_muon``.
    Embeddings and output heads are matrices but need AdamW: :func:`~pylo_zoo.optim.param_groups` sets their rule. The
    arguments before ``adamw_lr`` are defaults that groups may override.

    ``backend="eager"`` updates one parameter at a time. ``"fused"`` and ``"auto"`` update a group together: equal
    shapes are orthogonalized in stacks, on a GPU with Triton's products, and torch's foreach operations do the rest.
    The fallback uses the device's kernels if it has any, and foreach operations if not.

    Args:
        params: parameters, named parameters or parameter groups. A group's ``layout`` is ``"torch"`` (default),
            ``(out, in, *spatial)``, or ``"jax"``, ``(*spatial, in, out)``. To update the matrices of a stack
            ``(stack, in, out)`` separately, set ``layout="jax"``, ``conv_mode="batched"`` and
            ``normalize_spatial=False``.
        lr: step size, a number or a tensor of one element.
        weight_decay: decoupled, ``p ← p·(1 − lr·weight_decay)`` before the step; the fallback uses its own lr.
        momentum: decay of the momentum buffer, at least 0 and less than 1.
        nesterov: use Nesterov momentum, in the fallback as well.
        ns_steps: number of Newton–Schulz iterations; truncates a preset's list of triples or repeats its last triple.
        ns_coefficients: ``"original"``, ``"quintic"``, ``"polar_express"``, ``"polar_express_safer"``, one triple
            ``(a, b, c)``, or a sequence of triples (:func:`~pylo_zoo.ops.orthogonalize.resolve_coefficients`).
        eps: lower bound of the norm that a matrix is divided by; also AdamW's epsilon, outside the root.
        safety_factor: factor on that norm; 1.01 is usual with the Polar Express presets.
        adjust_lr_fn: ``"original"``, ``"match_rms_adamw"``, ``"rms_to_rms"`` or None
            (:func:`~pylo_zoo.ops.muon.lr_scale`).
        conv_mode: ``"flatten"`` for one matrix ``(out, in·spatial)``, ``"batched"`` for one ``(out, in)`` per position.
        normalize_spatial: with ``"batched"``, divide the update by the square root of the number of positions.
        ns_dtype: precision of the iterations: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, or a torch dtype: bfloat16,
            float16, float32 or float64. None is the parameters' precision, with TF32 products on GPUs that have it.
        betas: AdamW's decays.
        fallback_lr_scale: the fallback's learning rate is the group's ``lr`` times this factor.
        adamw_lr: older name for ``fallback_lr_scale = adamw_lr / lr``, with this constructor's ``lr``.
        verbose: log each parameter's rule and the reason (logger ``pylo_zoo.optim.muon``, level INFO).
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    State of a parameter, in float32 for 16- and 32-bit parameters and float64 for float64 parameters:
    ``momentum_buffer [*shape]``; in the fallback ``exp_avg`` and ``exp_avg_sq`` ``[*shape]`` and ``step``.

    Raises:
        ZooError: an argument, parameter or group is invalid.
    """

    plan_options = ("nesterov",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = False,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = "quintic",
        eps: float = 1e-7,
        safety_factor: float = 1.0,
        adjust_lr_fn: str | None = "match_rms_adamw",
        conv_mode: str = "flatten",
        normalize_spatial: bool = True,
        ns_dtype: NsDtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.95),
        fallback_lr_scale: float = 1.0,
        adamw_lr: float | None = None,
        verbose: bool = False,
        **options: Unpack[SharedOptions],
    ) -> None:
        self.verbose = verbose
        self._plan: MuonPlan | None = None
        if adamw_lr is not None:
            fallback_lr_scale = _fallback_scale(adamw_lr, lr, fallback_lr_scale)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "safety_factor": safety_factor,
            "adjust_lr_fn": adjust_lr_fn,
            "conv_mode": conv_mode,
            "normalize_spatial": normalize_spatial,
            "ns_dtype": ns_dtype,
            "betas": betas,
            "fallback_lr_scale": fallback_lr_scale,
            "use_fallback": False,
            "use_muon": None,
            "rule": None,
            "layout": "torch",
        }
        super().__init__(params, defaults, **options)

    # --- routing -------------------------------------------------------------------------------------------------

    def routes(self) -> Routes:
        """Each parameter's rule, "muon", "adamw" or "nadamw", with the reason (:func:`muon_route`).

        ``print`` shows a table.
        """
        return routes_of(self.param_groups, _rule_of)

    # --- stepping ------------------------------------------------------------------------------------------------

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        takes_muon, _ = _route(p, group)
        names = ("momentum_buffer",) if takes_muon else ("exp_avg", "exp_avg_sq")
        state = {name: torch.zeros(p.shape, dtype=state_dtype(p), device=p.device) for name in names}
        counter = {} if takes_muon else {"step": torch.zeros((), dtype=torch.int64, device=p.device)}
        return {**state, **counter, **master_copy(p, group)}

    def kernels_of(self, p: Tensor) -> Kernels | None:
        """The kernels that run AdamW for ``p``; None if torch's foreach operations do."""
        return None if self.backend == "eager" or p.dtype == torch.float64 else available_kernels(p.device)

    def _step(self, grads: Sequence[ParamGrad], loss: Loss | None) -> None:
        snapshot = self._init_state(grads)
        if self.backend == "eager" or torch.compiler.is_compiling():  # the compiler fuses, and cannot see a plan
            self._step_eager(grads)
            return
        if self._plan is None or snapshot is None or snapshot is not self._plan.snapshot:
            counted = [state for p, _, _ in grads if "step" in (state := self.state[p])]
            if counted and not self._captured_plans:
                share_memory(counted, "step")
            self._plan = MuonPlan(self._checks.check(self, grads), self, grads, _adamw_together)
        self._plan.step(grads, _recipe, _fallback_options)

    def _check_capture(self, grads: Sequence[ParamGrad], loss: Any) -> None:
        super()._check_capture(grads, loss)
        if self.backend != "eager":
            self._keep_captured(self._plan, grads)

    def _step_eager(self, grads: Sequence[ParamGrad]) -> None:
        """Without a plan: ``backend="eager"``, and compiled graphs, which see one call per group."""
        by_group: dict[int, list[ParamGrad]] = {}
        for each in grads:
            if "momentum_buffer" in self.state[each.parameter]:
                by_group.setdefault(id(each.group), []).append(each)
            else:
                self._step_fallback(each)
        for matrices in by_group.values():
            # Copies of all matrices would be large.
            parts = [[each] for each in matrices] if self._condition.is_active else [matrices]
            for part in parts:
                self._step_matrices(part, part[0].group)

    def _step_matrices(self, grads: Sequence[ParamGrad], group: Group) -> None:
        params, gradients = [p for p, _, _ in grads], [g for _, g, _ in grads]
        states = [self.state[p] for p in params]
        saved = self._condition.save_written(params, states)
        values = updated_tensors(params, states)
        buffers = [state["momentum_buffer"] for state in states]
        rates = {name: group[name] for name in ("lr", "weight_decay", "momentum", "nesterov")}
        choices = {"backend": self.backend, "products_for": products_for}
        muon(values, gradients, buffers, **rates, **_recipe(group), **choices)
        write_back(params, values)
        self._condition.restore(saved)

    def _step_fallback(self, param_grad: ParamGrad) -> None:
        p, g, group = param_grad
        saved = self._condition.save_written([p], [self.state[p]])
        values = updated_tensors([p], [self.state[p]])
        _adamw(values[0], g, self.state[p], group)
        write_back([p], values)
        self._condition.restore(saved)

    def _check_route(self, p: Tensor, group: Group) -> None:
        takes_muon, reason = _route(p, group)
        state = self.state[p]
        require(
            takes_muon == ("momentum_buffer" in state),
            f"A parameter of shape {tuple(p.shape)} changed its rule ({reason}); its state has {', '.join(state)}.",
            "Set its rule before its first step, or delete optimizer.state[p] to start again.",
        )

    # --- groups --------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        if isinstance(param_group, dict) and "algorithm" in param_group:
            param_group.setdefault("use_muon", _use_muon(param_group))
        super().add_param_group(param_group)
        if self.verbose:
            number = len(self.param_groups) - 1
            for route in (route for route in self.routes() if route.group == number):
                _log.info("%s %s: %s (%s)", route.name, route.shape, route.rule, route.reason)

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        super()._check_group(group, explicit)
        for option in sorted(explicit & FOREIGN_OPTIONS.keys()):
            note = ", the factor on lr in the fallback" if option in ("adamw_lr", "adam_lr") else ""
            raise ZooError(
                f"A parameter group has the option {option!r}, which Muon does not have here.",
                f"Set the group's {FOREIGN_OPTIONS[option]}{note}.",
            )
        check_number("fallback_lr_scale", group["fallback_lr_scale"])
        check_number("momentum", group["momentum"], below=1.0)
        check_betas("betas", group["betas"])
        for flag in (*FLAGS, "use_muon"):
            if flag != "use_muon" or group[flag] is not None:
                check_flag(flag, group[flag])
        Recipe(**{name: group[name] for name in RECIPE})
        for device in {p.device for p in group["params"]}:
            prepare_products(device)
        forced = group["use_muon"] and not group["use_fallback"]
        require(
            not forced or group["rule"] != "adamw",
            "A parameter group has use_muon=True and rule='adamw'.",
            "Remove one of them.",
        )
        for p in group["params"] if forced else ():
            require(
                p.ndim > 1 or not p.requires_grad,
                f"A parameter of shape {tuple(p.shape)} is in a group with use_muon=True.",
                "Put vectors and scalars in a group with use_muon=False.",
            )

    def _warn_about_settings(self, new: Sequence[ParamGrad]) -> None:
        matrices = [each for each in new if each.group["use_muon"] is None and _route(each.parameter, each.group)[0]]
        self._warn_about_embeddings(matrices, "Muon")

    # --- saving and loading --------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Like :meth:`ZooOptimizer.load_state_dict`; ignores a saved ``use_muon=True`` that the current group lacks.

        Older versions saved True for groups in which the shape decides.
        """
        groups = state_dict.get("param_groups", ())
        if len(groups) == len(self.param_groups):
            groups = [
                {**saved, "use_muon": None} if saved.get("use_muon") and not current["use_muon"] else saved
                for saved, current in zip(groups, self.param_groups, strict=True)
            ]
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "verbose": self.verbose}


def _route(p: Tensor, group: Mapping[str, Any]) -> tuple[bool, str]:
    use_fallback = group["use_fallback"] or group["rule"] == "adamw"
    return muon_route(p.shape, use_fallback=use_fallback, use_muon=group["use_muon"], layout=group["layout"])


def _rule_of(p: Tensor, group: Mapping[str, Any]) -> tuple[str, str]:
    takes_muon, reason = _route(p, group)
    return "muon" if takes_muon else "nadamw" if group["nesterov"] else "adamw", reason


def _use_muon(group: Group) -> bool:
    """``use_muon`` from Dion's group option ``algorithm``."""
    algorithm = group["algorithm"]
    require(
        isinstance(algorithm, str) and algorithm in ALGORITHMS,
        f"A parameter group has algorithm={algorithm!r}.",
        f"Use {' or '.join(map(repr, ALGORITHMS))}.",
    )
    use_muon = ALGORITHMS[algorithm]
    require(
        group.get("use_muon", use_muon) is use_muon,
        f"A parameter group has algorithm={algorithm!r} and use_muon={group.get('use_muon')}.",
        "Remove one of them.",
    )
    return use_muon


def _recipe(group: Group) -> dict[str, Any]:
    """The options of :class:`~pylo_zoo.ops.muon.Recipe`."""
    options = {name: group[name] for name in RECIPE}
    # Stacks are separate matrices, not positions of a convolution kernel.
    return options | STACK if group["layout"] == "torch-stacked" else options


def _fallback_options(group: Group) -> AdamW:
    lr = group["lr"] * group["fallback_lr_scale"]
    return AdamW(group["betas"], group["eps"], 0.0, lr, group["weight_decay"], nesterov=group["nesterov"])


def _adamw(p: Tensor, g: Tensor, state: dict[str, Tensor], group: Group) -> None:
    """AdamW (arXiv 1711.05101), or NAdamW: ``p ← p·(1 − lr·wd) − lr·m̂/(sqrt(v̂) + eps)``."""
    m, v = state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    beta1, beta2 = (torch.full((1,), beta, dtype=m.dtype, device=p.device) for beta in group["betas"])
    direction = adam_direction(
        m[None], v[None], g.to(m.dtype), state["step"], (beta1, beta2), group["eps"], nesterov=group["nesterov"]
    )
    lr = as_scalar(group["lr"], m.dtype) * group["fallback_lr_scale"]
    decay_and_step(p, direction.view(p.shape), lr, group["weight_decay"])


def _adamw_together(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Group
) -> None:
    """:func:`_adamw` for parameters whose moments have the same dtype and device."""
    m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    steps = [state["step"] for state in states]
    foreach._foreach_add_(steps, 1)
    grads = [g.to(m[0].dtype) for g in grads]
    counts = [int(step) for step in steps] if m[0].is_cpu else torch.stack(steps)
    directions = adam_directions(m, v, grads, counts, group["betas"], group["eps"], group["nesterov"])
    decay_and_step_together(params, directions, group["lr"] * group["fallback_lr_scale"], group["weight_decay"])


def _fallback_scale(adamw_lr: float, lr: float | Tensor, fallback_lr_scale: float) -> float:
    require(fallback_lr_scale == 1.0, "Both adamw_lr and fallback_lr_scale are set.", "Set fallback_lr_scale only.")
    check_number("adamw_lr", adamw_lr)
    check_number("lr", lr)
    require(float(lr) > 0, "adamw_lr is relative to lr, which is 0.", "Set fallback_lr_scale instead.")
    return float(adamw_lr) / float(lr)


__all__ = ["Muon", "muon", "muon_route"]
