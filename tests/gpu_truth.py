"""What the plain text makes of a kernel's task, and whether a kernel agrees.

Truth is the plain text in float64. A kernel may be as far from it as four times the plain text in float32, or as 1e-6
of the quantity's size if that is more: a step is a sum of some forty rounded products, each good to 6e-8, and kernels
only order and fold them differently. Where the last layer's terms cancel, the step is good to one rounding of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels.base import Task
from pylo_zoo.ops.accumulators import Decays, advance_all, factors
from pylo_zoo.ops.features import Inputs, columns, parameter_scale, step_of
from pylo_zoo.ops.mlp import Layer, mlp
from pylo_zoo.ops.rule import Rule

ALLOWED = 4
FLOOR = 1e-6
EPS = torch.finfo(torch.float32).eps


def inputs_of(task: Task, rule: Rule, dtype: torch.dtype, scale: float = 1.0) -> tuple[dict[str, Tensor], Inputs]:
    """The advanced accumulators and what features are made of, by the plain text in ``dtype``; the task stays."""
    g = (task.g.float() * scale).to(dtype)
    g = torch.nan_to_num(g) if task.replace_nonfinite else g
    g = g.clamp(-task.max_gradient, task.max_gradient)
    state = {name: each.to(dtype, copy=True) for name, each in task.state.items()}
    advance_all(state, g, Decays(*(decay.to(dtype) for decay in task.decays)), task.axes)
    p, m, v = task.p.to(dtype), state["momentum"], state["second_moment"]
    return state, Inputs(p, g, m, v, factors(state, task.axes), rule.rsqrt_eps, rule.diag_eps)


class Plain(NamedTuple):
    """What the plain text makes of a task."""

    state: dict[str, Tensor]
    step: Tensor
    terms: Tensor
    """Like ``step``, of the last layer's terms without their signs: how much of a direction may cancel."""


def plain(task: Task, rule: Rule, layers: Sequence[Layer], dtype: torch.dtype, scale: float = 1.0) -> Plain:
    state, inputs = inputs_of(task, rule, dtype, scale)
    names = rule.unfactored if task.axes.factored is None else rule.features
    x = columns(names, inputs, task.axes.matrix if rule.per_matrix else task.axes.all, rule.norm_eps)
    cast = [(weight.to(dtype), bias.to(dtype)) for weight, bias in layers]
    units = mlp(cast[:-1], x.clone(), rule.activation)
    units = units.relu() if rule.activation == "relu" else units.tanh()
    absolute = [(cast[-1][0].abs(), cast[-1][1].abs())]
    size = parameter_scale(inputs.p) if rule.parameter_scale else 1.0
    of_step, of_terms = mlp(cast, x, rule.activation), mlp(absolute, units.abs())
    of_terms[1] = of_step[1]
    return Plain(state, *(step_of(each, inputs.p.shape, rule.exp_mult) * size for each in (of_step, of_terms)))


def agree(what: str, got: Tensor, truth: Tensor, single: Tensor, terms: Tensor | None = None) -> None:
    """``got`` is as near to ``truth`` as float32 can be asked for; where ``single`` is not finite it is the same."""
    finite = single.isfinite()
    same = torch.equal(got.isnan(), single.isnan()) and torch.equal(got[got.isinf()], single[single.isinf()])
    assert same, f"{what}: other elements than the plain text's are not finite"
    if not truth[finite].isfinite().all() or (single[finite] - truth[finite]).norm() > 1e-3 * truth[finite].norm():
        truth = single.double()  # what float32 cannot hold
    size = truth[finite].norm()
    rounding = FLOOR * size if terms is None else max(FLOOR * size, EPS * terms[finite].norm())
    error, allowed = (got[finite] - truth[finite]).norm(), ALLOWED * (single[finite] - truth[finite]).norm()
    allowed = max(allowed, rounding)
    assert error <= allowed, f"{what}: error {error / size:.1e} of its size, {allowed / size:.1e} allowed"
