"""The step of a learned rule, from gradient, accumulators and network (SPEC §2–§6): one function for every family.

Features take thirty times the memory of a parameter, so a large parameter is processed in parts: a first pass sums each
feature's mean square over the parts, a second one computes the features again, the network and the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pylo_zoo.ops import trace
from pylo_zoo.ops.accumulators import Decays, Factors, advance_all, factors
from pylo_zoo.ops.features import FEATURES, Inputs, columns, mean_square, parameter_scale, step_of, time_features
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer, mlp
from pylo_zoo.ops.rule import Rule

PART, PART_ELSEWHERE = 1 << 16, 1 << 22
"""Elements of a part on a CPU, about 25 MB of features that stay in its cache; and on an accelerator, 1.6 GB."""


def learned_step(
    p: Tensor, g: Tensor, state: Mapping[str, Tensor], decays: Decays, axes: Axes, rule: Rule, layers: Sequence[Layer]
) -> Tensor:
    """Advance the accumulators by ``g``, in place, and return the rule's step ``[*shape]``. ``p`` is not modified.

    Args:
        p: the parameter ``[*shape]``, with at least one axis.
        g: its gradient ``[*shape]``, after the family's preprocessing.
        state: its accumulators (:func:`~pylo_zoo.ops.accumulators.new_accumulators`).
        decays: decays of the accumulators.
        axes: the parameter's axes.
        rule: the features, their normalization and the scale of the step.
        layers: the network, with time features folded into its bias (:func:`with_time`).
    """
    advance_all(state, g, decays, axes)
    whole = Inputs(p, g, state["momentum"], state["second_moment"], factors(state, axes), rule.rsqrt_eps, rule.diag_eps)
    names = rule.unfactored if axes.factored is None else rule.features
    over = axes.matrix if rule.per_matrix else axes.all
    if p.numel() <= _part(p) or trace.is_listening() or torch.compiler.is_compiling():
        delta = step_of(
            mlp(layers, columns(names, whole, over, rule.norm_eps), rule.activation), p.shape, rule.exp_mult
        )
    else:
        delta = _in_parts(whole, names, over, rule, layers)
    return delta.mul_(parameter_scale(p)) if rule.parameter_scale else delta


def with_time(layers: Sequence[Layer], step: Tensor) -> list[Layer]:
    """Fold the time features, which are the same for every element, into the first layer's bias."""
    (weight, bias), *rest = layers
    time = time_features(step, weight)
    return [(weight[..., : -len(time)], bias + weight[..., -len(time) :] @ time), *rest]


def _in_parts(
    whole: Inputs, names: Sequence[str], over: tuple[int, ...], rule: Rule, layers: Sequence[Layer]
) -> Tensor:
    """The step of a large parameter, computed in parts, before the parameter scale."""
    p = whole.p
    axis = max(over, key=lambda each: p.shape[each])  # an axis of the means, so the parts' means add up
    length = max(1, _part(p) * p.shape[axis] // p.numel())
    means: dict[str, Tensor] = {}
    for part in _parts(whole, axis, length):
        share = part.p.shape[axis] / p.shape[axis]
        for name in names:
            mean = mean_square(FEATURES[name](part), over) * share
            means[name] = means[name] + mean if name in means else mean
    delta = torch.empty_like(p)
    for part, out in zip(_parts(whole, axis, length), delta.split(length, dim=axis), strict=True):
        x = columns(names, part, over, rule.norm_eps, means)
        out.copy_(step_of(mlp(layers, x, rule.activation), out.shape, rule.exp_mult))
    return delta


def _part(p: Tensor) -> int:
    return PART if p.is_cpu else PART_ELSEWHERE


def _parts(whole: Inputs, axis: int, length: int) -> Iterator[Inputs]:
    """``whole`` in slices of ``length`` along ``axis``, a negative index."""
    size = whole.p.shape[axis]
    for start in range(0, size, length):
        count = min(length, size - start)

        def cut(x: Tensor, start: int = start, count: int = count) -> Tensor:
            return x.narrow(axis, start, count) if x.shape[axis] == size else x  # else it is constant along this axis

        row, col, row_factor, col_factor = whole.factors
        sliced = Factors(cut(row), cut(col), cut(row_factor), None if col_factor is None else cut(col_factor))
        yield whole._replace(p=cut(whole.p), g=cut(whole.g), m=cut(whole.m), v=cut(whole.v), factors=sliced)
