"""The step of a learned rule, from gradient, accumulators and network (SPEC §2–§6): one function for every family.

A parameter of many elements is taken in parts, so that features, thirty times its size, exist for one part at a time:
first every feature's mean square, summed over the parts, then features again, network and step.
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

PART = 1 << 16
"""Elements of a part: some 25 MB of features."""


def learned_step(
    p: Tensor, g: Tensor, state: Mapping[str, Tensor], decays: Decays, axes: Axes, rule: Rule, layers: Sequence[Layer]
) -> Tensor:
    """Advance the accumulators by ``g``, in place, and return the rule's step ``[*shape]``; ``p`` stays as it is.

    Args:
        p: the parameter ``[*shape]``, of one axis at least.
        g: its gradient ``[*shape]``, conditioned as the family does.
        state: its accumulators (:func:`~pylo_zoo.ops.accumulators.new_accumulators`).
        decays: their decays.
        axes: the parameter's axes.
        rule: what the features are, and how they are normalised.
        layers: the network, time features folded in (:func:`with_time`).
    """
    advance_all(state, g, decays, axes)
    whole = Inputs(p, g, state["momentum"], state["second_moment"], factors(state, axes), rule.rsqrt_eps, rule.diag_eps)
    names = rule.unfactored if axes.factored is None else rule.features
    over = axes.matrix if rule.per_matrix else axes.all
    if p.numel() <= PART or trace.is_listening() or torch.compiler.is_compiling():
        delta = step_of(
            mlp(layers, columns(names, whole, over, rule.norm_eps), rule.activation), p.shape, rule.exp_mult
        )
    else:
        delta = _in_parts(whole, names, over, rule, layers)
    return delta.mul_(parameter_scale(p)) if rule.parameter_scale else delta


def with_time(layers: Sequence[Layer], step: Tensor) -> list[Layer]:
    """Layers for features without those of time, which are the same for every element: they go into the bias."""
    (weight, bias), *rest = layers
    time = time_features(step, weight)
    return [(weight[..., : -len(time)], bias + weight[..., -len(time) :] @ time), *rest]


def _in_parts(
    whole: Inputs, names: Sequence[str], over: tuple[int, ...], rule: Rule, layers: Sequence[Layer]
) -> Tensor:
    """Direction and magnitude's step of a parameter that is taken in parts."""
    p = whole.p
    axis = max(over, key=lambda each: p.shape[each])  # one that the means go over, so that those of parts add up
    length = max(1, PART * p.shape[axis] // p.numel())
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


def _parts(whole: Inputs, axis: int, length: int) -> Iterator[Inputs]:
    """``whole`` in slices of ``length`` along ``axis``, counted from the end."""
    size = whole.p.shape[axis]
    for start in range(0, size, length):
        count = min(length, size - start)

        def cut(x: Tensor, start: int = start, count: int = count) -> Tensor:
            return x.narrow(axis, start, count) if x.shape[axis] == size else x  # or constant along this axis

        row, col, row_factor, col_factor = whole.factors
        sliced = Factors(cut(row), cut(col), cut(row_factor), None if col_factor is None else cut(col_factor))
        yield whole._replace(p=cut(whole.p), g=cut(whole.g), m=cut(whole.m), v=cut(whole.v), factors=sliced)
