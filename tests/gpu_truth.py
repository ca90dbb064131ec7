"""The eager results for a kernel's task, and whether a kernel agrees with them.

The truth is the eager implementation in float64. A kernel may differ from it by as much as simulated float32 roundings
do (rounding.py): features are divided by their norms and summed by a network, so error bounds depend on the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import margins
import torch
from rounding import SAFETY, draws_for, simulate, size
from torch import Tensor

from pylo_zoo.kernels.base import Task
from pylo_zoo.ops.accumulators import Decays, advance_all, factors
from pylo_zoo.ops.features import Inputs, columns, parameter_scale, step_of
from pylo_zoo.ops.mlp import Layer, mlp
from pylo_zoo.ops.rule import Rule


def inputs_of(task: Task, rule: Rule, dtype: torch.dtype, scale: float = 1.0) -> tuple[dict[str, Tensor], Inputs]:
    """Advanced accumulators and feature inputs, from eager in ``dtype``; the task is not changed."""
    g = task.g.float() * scale
    g = (torch.nan_to_num(g) if task.replace_nonfinite else g).to(dtype)  # its largest value is that of float32
    g = g.clamp(-task.max_gradient, task.max_gradient)
    state = {name: each.to(dtype, copy=True) for name, each in task.state.items()}
    advance_all(state, g, Decays(*(decay.to(dtype) for decay in task.decays)), task.axes)
    p, m, v = task.p.to(dtype), state["momentum"], state["second_moment"]
    return state, Inputs(p, g, m, v, factors(state, task.axes), rule.rsqrt_eps, rule.diag_eps)


class Eager(NamedTuple):
    """What the eager implementation computes for a task."""

    state: dict[str, Tensor]
    step: Tensor


def compute_eager(task: Task, rule: Rule, layers: Sequence[Layer], dtype: torch.dtype, scale: float = 1.0) -> Eager:
    state, inputs = inputs_of(task, rule, dtype, scale)
    names = rule.unfactored if task.axes.factored is None else rule.features
    x = columns(names, inputs, task.axes.matrix if rule.per_matrix else task.axes.all, rule.norm_eps)
    cast = [(weight.to(dtype), bias.to(dtype)) for weight, bias in layers]
    step = step_of(mlp(cast, x, rule.activation), inputs.p.shape, rule.exp_mult)
    return Eager(state, step * parameter_scale(inputs.p) if rule.parameter_scale else step)


class Expected(NamedTuple):
    """A quantity in float64, its simulated roundings, and eager float32 for values that overflow float32."""

    truth: Tensor
    draws: list[Tensor]
    single: Tensor


def expected(run: Callable[[torch.dtype], dict[str, Tensor]]) -> dict[str, Expected]:
    """The result of ``run`` with its simulated roundings; ``run`` computes in the dtype it receives, from copies."""
    single = {name: each.detach().cpu() for name, each in run(torch.float32).items()}
    elements = max(each.numel() for each in single.values())
    result = simulate(lambda: [each.cpu() for each in run(torch.float64).values()], draws=draws_for(elements))
    return {
        name: Expected(result.truth[k], [draw[k] for draw in result.draws], single[name])
        for k, name in enumerate(single)
    }


def expected_of(task: Task, rule: Rule, layers: Sequence[Layer], scale: float = 1.0) -> dict[str, Expected]:
    """The state and the ``"step"`` of a task."""

    def run(dtype: torch.dtype) -> dict[str, Tensor]:
        state, step = compute_eager(task, rule, layers, dtype, scale)
        return {**state, "step": step}

    return expected(run)


def agree(what: str, got: Tensor, reference: Expected) -> None:
    """Check that ``got`` is within float32's bound, and that its elements overflow exactly if eager float32 does."""
    truth, draws, single = reference
    got = got.detach().cpu()
    finite = single.isfinite()
    same = torch.equal(got.isnan(), single.isnan()) and torch.equal(got[got.isinf()], single[single.isinf()])
    assert same, f"{what}: the non-finite elements differ from eager's"
    bound = SAFETY * max(size((draw - truth)[finite], 2) for draw in draws)
    if not truth[finite].isfinite().all() or size((single - truth)[finite], 2) > bound:
        truth = single.double()  # elements that overflow float32
    margins.check(size((got.double() - truth)[finite], 2), bound, what)
