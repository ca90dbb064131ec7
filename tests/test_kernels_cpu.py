"""The CPU kernels against the plain text of :mod:`pylo_zoo.ops`, in float64 as truth and in float32 as the yardstick."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Adam, Task
from pylo_zoo.kernels.cpu import Advanced, CpuKernels, available, build, records
from pylo_zoo.ops.accumulators import Decays, advance_all, factors, new_accumulators
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.features import FEATURES, Inputs, columns, parameter_scale, step_of
from pylo_zoo.ops.layout import LAYOUTS, Axes, axes_of
from pylo_zoo.ops.mlp import Layer, mlp
from pylo_zoo.ops.rule import Rule, adafac_rule, celo2_rule, velo_rule

SHAPES = (
    *((), (1,), (7,), (1000,), (5, 3), (64, 64), (33, 127), (128, 1), (1, 128), (70, 1100)),
    *((16, 8, 3, 3), (8, 8, 3, 3), (64, 3, 3, 3), (32, 1, 3, 3), (6, 4, 5), (2, 3, 5, 5), (4, 8, 16), (3, 40, 70)),
)


@dataclass(frozen=True)
class Subject:
    """A rule with a network."""

    rule: Rule
    hidden: int
    layers: int = 2
    one_each: bool = False
    """Every parameter has a network of its own."""
    limit: float = 1000.0
    replace: bool = False


SUBJECTS = {
    "velo": Subject(velo_rule(0.001), 4, one_each=True),
    "velo-narrow": Subject(velo_rule(0.5), 3, layers=1),
    "celo2-relu": Subject(celo2_rule("relu", 0.0, False), 8),
    "celo2-tanh": Subject(celo2_rule("tanh", 0.3, True), 8, layers=3),
    "adafac-4": Subject(adafac_rule(0.001), 4, limit=math.inf),
    "adafac-16": Subject(adafac_rule(0.001), 16, limit=math.inf, replace=True),
    "adafac-32": Subject(adafac_rule(0.001), 32, limit=math.inf, replace=True),
}
REGIMES = ("ordinary", "first", "tiny", "huge", "zeros", "spikes", "nan")


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    """Compiled once, into the home that tests share."""
    if available() is not None:
        pytest.skip(str(available()))
    return CpuKernels()


def gradient(shape: Sequence[int], regime: str, generator: torch.Generator) -> Tensor:
    g = torch.randn(tuple(shape), generator=generator)
    if regime in ("tiny", "huge", "zeros"):
        return g * {"tiny": 1e-12, "huge": 1e4, "zeros": 0.0}[regime]
    if regime == "spikes":
        return torch.where(torch.rand(g.shape, generator=generator) < 0.01, g * 1e3, g * 1e-3)
    if regime == "nan":
        g.flatten()[-1] = math.nan
    return g * 0.1


def cases(subject: Subject, regime: str, kernels: CpuKernels) -> list[Task]:
    """A parameter of every shape in every layout that the kernels cover, after two ordinary steps."""
    generator = torch.Generator().manual_seed(1)
    decays = Decays(torch.tensor([0.9, 0.99, 0.999]), torch.tensor([0.95]), torch.tensor([0.9, 0.99, 0.999]))
    made = []
    for shape in SHAPES:
        for layout in LAYOUTS:
            p = torch.randn(shape or (1,), generator=generator) * 0.5
            axes = axes_of(tuple(p.shape), layout)
            state = new_accumulators(p, axes)
            for _ in range(0 if regime == "first" else 2):
                advance_all(state, gradient(p.shape, "ordinary", generator), decays, axes)
            g = gradient(p.shape, regime, generator)
            if kernels.covers(p, axes, subject.rule, subject.hidden):
                made.append(Task(p, g, state, axes, decays, subject.limit, subject.replace))
    return made


def network(subject: Subject, count: int) -> list[Layer]:
    """Weights, one set or ``count``."""
    generator = torch.Generator().manual_seed(2)
    widths = [len(FEATURES) * 2 + 2 if subject.rule.features == tuple(FEATURES) else 28]
    widths += [subject.hidden] * subject.layers + [3]
    bank = (count,) if subject.one_each else ()
    return [
        (torch.randn(*bank, b, a, generator=generator) * a**-0.5, torch.randn(*bank, b, generator=generator) * 0.3)
        for a, b in zip(widths, widths[1:], strict=False)
    ]


def of_parameter(layers: Sequence[Layer], k: int, dtype: torch.dtype) -> list[Layer]:
    return [((w[k] if w.ndim == 3 else w).to(dtype), (b[k] if b.ndim == 2 else b).to(dtype)) for w, b in layers]


def copied(task: Task, dtype: torch.dtype) -> Task:
    state = {name: each.to(dtype, copy=True) for name, each in task.state.items()}
    decays = Decays(*(each.to(dtype) for each in task.decays))
    return task._replace(p=task.p.to(dtype, copy=True), g=task.g.to(dtype), state=state, decays=decays)


@dataclass(frozen=True)
class Plain:
    """The plain text's figures of one parameter."""

    state: Mapping[str, Tensor]
    moments: Tensor
    step: Tensor
    moved: Tensor


COEFFICIENT, SHRINK = 0.1, 0.01


def plain(task: Task, rule: Rule, layers: Sequence[Layer], scale: float = 1.0) -> Plain:
    p, g, state, axes, decays, limit, replace = task
    m, v = state["momentum"], state["second_moment"]
    moments = torch.cat([p.square().mean()[None], *(f(x) for x in (m, v) for f in (mean, mean_square))])
    g = g * scale
    if replace:
        g = torch.nan_to_num(g, posinf=torch.finfo(torch.float32).max, neginf=torch.finfo(torch.float32).min)
    g = g.clamp(-limit, limit)
    advance_all(state, g, decays, axes)
    inputs = Inputs(p, g, m, v, factors(state, axes), rule.rsqrt_eps, rule.diag_eps)
    names = rule.unfactored if axes.factored is None else rule.features
    x = columns(names, inputs, axes.matrix if rule.per_matrix else axes.all, rule.norm_eps)
    step = step_of(mlp(layers, x, rule.activation), p.shape, rule.exp_mult)
    step = step * parameter_scale(p) if rule.parameter_scale else step
    return Plain(state, moments, step, p - COEFFICIENT * step - SHRINK * p)


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)


def mean_square(x: Tensor) -> Tensor:
    return mean(x.square())


def close(got: Tensor, eager: Tensor, truth: Tensor, size: Tensor, what: str) -> None:
    """``got`` has at most four times the error of eager float32, or 1e-6 of ``size``; and NaN where eager has it."""
    assert torch.equal(got.isfinite(), eager.isfinite()), what
    finite = eager.isfinite() & truth.isfinite()
    if not finite.any():
        return
    error, yardstick = ((x.double() - truth).abs()[finite].max().item() for x in (got, eager))
    bound = max(4 * yardstick, 1e-6 * size.abs()[size.isfinite()].max().item())
    assert error <= bound, f"{what}: {error:.3g}, but eager {yardstick:.3g}, bound {bound:.3g}"


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", SUBJECTS)
def test_accumulators_moments_steps_and_moves_agree(kernels: CpuKernels, name: str, regime: str) -> None:
    subject = SUBJECTS[name]
    tasks = cases(subject, regime, kernels)
    layers = network(subject, len(tasks))
    eager, truth = (
        [plain(copied(t, dtype), subject.rule, of_parameter(layers, k, dtype)) for k, t in enumerate(tasks)]
        for dtype in (torch.float32, torch.float64)
    )
    advanced = kernels.advance(tasks, subject.rule, None)
    moments, steps = kernels.moments(advanced), kernels.steps(advanced, layers)
    kernels.move(advanced, layers, [COEFFICIENT] * len(tasks), [SHRINK] * len(tasks))
    for k, (task, e, t) in enumerate(zip(tasks, eager, truth, strict=True)):
        what = f"{tuple(task.p.shape)} {task.axes}"
        for key, value in task.state.items():
            close(value, e.state[key], t.state[key], t.state[key], f"{what} {key}")
        sizes = torch.cat([t.moments[:1], t.moments[4:7].sqrt(), t.moments[4:]])  # means of m cancel: size is rms(m)
        for i in range(9):
            close(moments[k, i], e.moments[i], t.moments[i], sizes[i], f"{what} moment {i}")
        close(steps[k], e.step, t.step, t.step, f"{what} step")
        close(task.p, e.moved, t.moved, t.moved, f"{what} moved")
