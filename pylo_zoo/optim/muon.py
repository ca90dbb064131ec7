"""Muon (kellerjordan.github.io/posts/muon; SPEC §7): orthogonalized momentum for matrices, AdamW for the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.adam import adam_direction, adam_directions
from pylo_zoo.ops.apply import as_scalar, decay_and_step, decay_and_step_together, foreach, together
from pylo_zoo.ops.muon import BACKENDS, Recipe, muon, muon_route
from pylo_zoo.ops.orthogonalize import Coefficients
from pylo_zoo.optim.checks import check_betas, check_flag, check_number, require
from pylo_zoo.optim.contract import Group, Loss, ParamGrad, ZooOptimizer, master_copy, state_dtype, wide_value
from pylo_zoo.optim.route_table import Routes, routes_of

_log = logging.getLogger(__name__)

RECIPE = tuple(field.name for field in fields(Recipe))
"""The options that say how an update is made."""
FLAGS = ("nesterov", "use_fallback")
ALGORITHMS = {"muon": True, "adamw": False}
"""``use_muon`` for the ``algorithm`` of a group of microsoft/dion's optimizers."""
PEERS = {
    **dict.fromkeys(("mu", "muon_momentum"), "momentum"),
    **dict.fromkeys(("epsilon", "adamw_eps"), "eps"),
    **dict.fromkeys(("beta1", "beta2", "adamw_betas", "adam_betas"), "betas"),
    **dict.fromkeys(("adamw_wd", "adamw_weight_decay", "wd"), "weight_decay"),
    **dict.fromkeys(("adamw_lr", "adam_lr"), "fallback_lr_scale"),
    "muon_lr": "lr",
    "flatten": "conv_mode",
    "is_embedding": 'rule to "adamw"',
}
"""Options of other implementations' groups, with ours for each. They change a step, so none is ignored silently."""
STACK = {"conv_mode": "batched", "normalize_spatial": False}
"""How a stack of matrices is orthogonalized: each alone."""


class Muon(ZooOptimizer):
    """Muon for matrices and convolutions, AdamW (NAdamW with ``nesterov``) for everything else. It needs no weights.

    Which parameter takes what is decided by its group and its shape: ``use_fallback=True``, ``use_muon=False`` or
    ``rule="adamw"`` in a group give it to AdamW, and so do shapes that Newton–Schulz does not suit
    (:func:`~pylo_zoo.ops.muon.muon_route`). ``use_muon=True`` gives parameters of two axes or more to Muon, whatever
    their shape, as in Keller Jordan's and timm's groups; ``algorithm="muon"`` and ``"adamw"``, of Dion's groups, are
    read as ``use_muon``. Embeddings and output heads are matrices that belong to AdamW too:
    :func:`~pylo_zoo.optim.param_groups` sets the embeddings' rule. Every argument but ``adamw_lr``, ``verbose``,
    ``nonfinite`` and ``backend`` is a default that a group may replace.

    Args:
        params: parameters, named parameters or parameter groups. A group's ``layout`` is ``"torch"``, the default,
            ``(out, in, *spatial)``, or ``"jax"``, ``(*spatial, in, out)``. Stacked weights ``(stack, in, out)`` are
            ``"jax"``, with ``conv_mode="batched"`` and ``normalize_spatial=False`` for each matrix its own update.
        lr: step size, a number or a tensor of one element.
        weight_decay: decoupled: ``p ← p·(1 − lr·weight_decay)`` before the step, in the fallback with its own lr.
        momentum: decay of the momentum buffer, at least 0 and under 1.
        nesterov: look one step ahead, in the fallback as well.
        ns_steps: Newton–Schulz iterations; they cut a preset's list of triples or repeat its last.
        ns_coefficients: ``"original"``, ``"quintic"``, ``"polar_express"``, ``"polar_express_safer"``, one triple
            ``(a, b, c)``, or a sequence of triples (:func:`~pylo_zoo.ops.orthogonalize.resolve_coefficients`).
        eps: smallest norm that a matrix is divided by; also AdamW's epsilon, outside the root.
        safety_factor: multiplies that norm; 1.01 is usual with the Polar Express presets.
        adjust_lr_fn: ``"original"``, ``"match_rms_adamw"``, ``"rms_to_rms"`` or None
            (:func:`~pylo_zoo.ops.muon.lr_scale`).
        conv_mode: ``"flatten"``, one matrix ``(out, in·spatial)``, or ``"batched"``, one ``(out, in)`` a position.
        normalize_spatial: under ``"batched"``, divide the update by the root of the number of positions.
        ns_dtype: dtype of the iterations: bfloat16, float16, float32 or float64.
        betas: AdamW's decays.
        fallback_lr_scale: the fallback's learning rate is its group's ``lr`` times this, so that schedulers reach it.
        adamw_lr: the older way to say ``fallback_lr_scale = adamw_lr / lr``, with this constructor's ``lr``.
        verbose: log where each parameter goes, and why, a line each at level INFO of ``pylo_zoo.optim.muon``.
        nonfinite: ``"propagate"``, ``"skip"`` or ``"raise"`` (:class:`~pylo_zoo.optim.contract.ZooOptimizer`).
        master_weights: keep float32 copies of 16-bit parameters, ``master [*shape]`` (the same).
        backend: ``"eager"`` steps one parameter at a time, ``"fused"`` those of a group together: equal shapes are
            orthogonalized in stacks, and torch's operations over lists do the rest. Both have the same state, and agree
            to rounding; ``"auto"`` is ``"fused"``.

    State of a parameter, in float32 for 16- and 32-bit parameters and float64 for float64 ones: ``momentum_buffer
    [*shape]``; in the fallback ``exp_avg`` and ``exp_avg_sq`` ``[*shape]`` and ``step``.

    Raises:
        ZooError: an argument, parameter or group cannot be.
    """

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
        ns_dtype: torch.dtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.95),
        fallback_lr_scale: float = 1.0,
        adamw_lr: float | None = None,
        verbose: bool = False,
        nonfinite: str = "propagate",
        master_weights: bool = False,
        backend: str = "auto",
    ) -> None:
        require(backend in BACKENDS, f"backend is {backend!r}.", f"Use one of {', '.join(BACKENDS)}.")
        self.verbose = verbose
        self.backend = backend
        if adamw_lr is not None:
            fallback_lr_scale = _scale_of(adamw_lr, lr, fallback_lr_scale)
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
        super().__init__(params, defaults, nonfinite, master_weights)

    # --- routing -------------------------------------------------------------------------------------------------

    def routes(self) -> Routes:
        """Where every parameter goes, by group: ``rule`` is "muon", "adamw" or "nadamw"; why, as :func:`muon_route`.

        ``print`` shows a table.
        """
        return routes_of(self.param_groups, _rule_of)

    # --- stepping ------------------------------------------------------------------------------------------------

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        takes_muon, _ = _route(p, group)
        names = ("momentum_buffer",) if takes_muon else ("exp_avg", "exp_avg_sq")
        state = {name: torch.zeros(p.shape, dtype=state_dtype(p), device=p.device) for name in names}
        counter = {} if takes_muon else {"step": torch.tensor(0, device="cpu")}
        return {**state, **counter, **master_copy(p, group)}

    def _step(self, due: Sequence[ParamGrad], loss: Loss | None) -> None:
        self._prime(due)
        parts: list[tuple[list[ParamGrad], list[ParamGrad]]] = []
        for k, each in enumerate(due):
            if k == 0 or each.group is not due[k - 1].group:
                parts.append(([], []))
            matrices, others = parts[-1]
            (matrices if "momentum_buffer" in self.state[each.parameter] else others).append(each)
        for matrices, others in parts:
            if matrices:
                self._muon(matrices, matrices[0].group)
            if others:
                self._fallback(others, others[0].group)

    def _muon(self, due: Sequence[ParamGrad], group: Group) -> None:
        options = {name: group[name] for name in ("lr", "weight_decay", "momentum", "nesterov", *RECIPE)}
        if group["layout"] == "torch-stacked":  # matrices of their own, not positions of a kernel
            options |= STACK
        buffers = [self.state[p]["momentum_buffer"] for p, _, _ in due]
        values = [_value(p, self.state[p]) for p, _, _ in due]
        muon(values, [g for _, g, _ in due], buffers, **options, backend=self.backend)
        _written([p for p, _, _ in due], values)

    def _fallback(self, due: Sequence[ParamGrad], group: Group) -> None:
        states = [self.state[p] for p, _, _ in due]
        values = [_value(p, state) for (p, _, _), state in zip(due, states, strict=True)]
        gradients = [g for _, g, _ in due]
        if self.backend == "eager" or torch.compiler.is_compiling():  # it fuses by itself, and cannot read counters
            for value, g, state in zip(values, gradients, states, strict=True):
                _adamw(value, g, state, group)
        else:
            for some in together([state["exp_avg"] for state in states]):
                mine = [values[k] for k in some], [gradients[k] for k in some], [states[k] for k in some]
                _adamw_together(*mine, group)
        _written([p for p, _, _ in due], values)

    def _check_side(self, p: Tensor, group: Group) -> None:
        takes_muon, reason = _route(p, group)
        state = self.state[p]
        require(
            takes_muon == ("momentum_buffer" in state),
            f"A parameter of shape {tuple(p.shape)} has changed sides ({reason}); its state has {', '.join(state)}.",
            "Route parameters before their first step, or delete optimizer.state[p] to start again.",
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

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        super()._check_group(group, given)
        for option in sorted(given & PEERS.keys()):
            scale = ": the fallback's learning rate is lr times that" if option in ("adamw_lr", "adam_lr") else ""
            raise ZooError(
                f"A parameter group has the option {option!r}, which Muon does not have here.",
                f"Set the group's {PEERS[option]}{scale}.",
            )
        check_number("fallback_lr_scale", group["fallback_lr_scale"])
        check_number("momentum", group["momentum"], below=1.0)
        check_betas("betas", group["betas"])
        for flag in (*FLAGS, "use_muon"):
            if flag != "use_muon" or group[flag] is not None:
                check_flag(flag, group[flag])
        Recipe(**{name: group[name] for name in RECIPE})
        forced = group["use_muon"] and not group["use_fallback"]
        require(
            not forced or group["rule"] != "adamw",
            "A parameter group has use_muon=True and rule='adamw'.",
            "Set one of them.",
        )
        for p in group["params"] if forced else ():
            require(
                p.ndim > 1 or not p.requires_grad,
                f"A parameter of shape {tuple(p.shape)} is in a group with use_muon=True.",
                "Muon takes matrices: put vectors and scalars in a group with use_muon=False.",
            )

    def _advise(self, new: Sequence[ParamGrad]) -> None:
        matrices = [each for each in new if each.group["use_muon"] is None and _route(each.parameter, each.group)[0]]
        self._advise_on_embeddings(matrices, "Muon")

    # --- saving and loading --------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`ZooOptimizer.load_state_dict`; a saved ``use_muon=True`` counts if the group here has it too.

        Older versions saved True for groups that left the choice to the shape.
        """
        groups = state_dict.get("param_groups", ())
        if len(groups) == len(self.param_groups):
            groups = [
                {**saved, "use_muon": None} if saved.get("use_muon") and not mine["use_muon"] else saved
                for saved, mine in zip(groups, self.param_groups, strict=True)
            ]
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = {"verbose": self.verbose, "backend": self.backend}
        return {**super().__getstate__(), **own}  # pyright: ignore[reportAttributeAccessIssue]


def _route(p: Tensor, group: Mapping[str, Any]) -> tuple[bool, str]:
    use_fallback = group["use_fallback"] or group["rule"] == "adamw"
    return muon_route(p.shape, use_fallback=use_fallback, use_muon=group["use_muon"], layout=group["layout"])


def _rule_of(p: Tensor, group: Mapping[str, Any]) -> tuple[str, str]:
    takes_muon, reason = _route(p, group)
    return "muon" if takes_muon else "nadamw" if group["nesterov"] else "adamw", reason


def _use_muon(group: Group) -> bool:
    """What ``algorithm``, the word of Dion's groups, means here."""
    algorithm = group["algorithm"]
    require(
        isinstance(algorithm, str) and algorithm in ALGORITHMS,
        f"A parameter group has algorithm={algorithm!r}.",
        f"Muon reads {' and '.join(map(repr, ALGORITHMS))}; it does not implement others.",
    )
    use_muon = ALGORITHMS[algorithm]
    require(
        group.get("use_muon", use_muon) is use_muon,
        f"A parameter group has algorithm={algorithm!r} and use_muon={group.get('use_muon')}.",
        "Set one of them.",
    )
    return use_muon


def _value(p: Tensor, state: dict[str, Tensor]) -> Tensor:
    """What a step writes: the parameter, or its master copy."""
    return wide_value(p, state) if "master" in state else p


def _written(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        if value is not p:
            p.copy_(value)


def _adamw(p: Tensor, g: Tensor, state: dict[str, Tensor], group: Group) -> None:
    """AdamW (arXiv 1711.05101), or NAdamW: ``p ← p·(1 − lr·wd) − lr·m̂/(sqrt(v̂) + eps)``."""
    m, v = state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    beta1, beta2 = (torch.tensor([beta], dtype=m.dtype, device=p.device) for beta in group["betas"])
    direction = adam_direction(
        m[None], v[None], g.to(m.dtype), state["step"], (beta1, beta2), group["eps"], nesterov=group["nesterov"]
    )
    lr = as_scalar(group["lr"], m.dtype) * group["fallback_lr_scale"]
    decay_and_step(p, direction.view(p.shape), lr, group["weight_decay"])


def _adamw_together(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Group
) -> None:
    """:func:`_adamw` on parameters whose moments are of one dtype, on one device."""
    m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    steps = [state["step"] for state in states]
    foreach._foreach_add_(steps, 1)
    grads = [g.to(m[0].dtype) for g in grads]
    counts = [int(step) for step in steps]
    directions = adam_directions(m, v, grads, counts, group["betas"], group["eps"], group["nesterov"])
    decay_and_step_together(params, directions, group["lr"] * group["fallback_lr_scale"], group["weight_decay"])


def _scale_of(adamw_lr: float, lr: float | Tensor, fallback_lr_scale: float) -> float:
    require(fallback_lr_scale == 1.0, "Both adamw_lr and fallback_lr_scale are given.", "Give fallback_lr_scale alone.")
    check_number("adamw_lr", adamw_lr)
    check_number("lr", lr)
    require(float(lr) > 0, "adamw_lr is a ratio to lr, and lr is 0.", "Give fallback_lr_scale instead.")
    return float(adamw_lr) / float(lr)


__all__ = ["Muon", "muon", "muon_route"]
