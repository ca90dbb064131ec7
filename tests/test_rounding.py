"""The suite's error bounds: float32 stays within them in any order of summation, and planted faults exceed them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import margins
import pytest
import torch
from rounding import Roundings, gamma, one_rounding, simulate, size
from test_kernels_cpu import SUBJECTS, compute_eager, copied, network, of_parameter
from torch import Tensor

from pylo_zoo.kernels.base import Task
from pylo_zoo.ops.accumulators import Decays, new_accumulators
from pylo_zoo.ops.layout import axes_of

pytest_plugins = ["pytester"]


def task(shape: tuple[int, ...] = (24, 12), zero: bool = False) -> Task:
    generator = torch.Generator().manual_seed(4)
    p = torch.randn(shape, generator=generator) * (0.0 if zero else 0.5)
    decays = Decays(torch.tensor([0.9, 0.99, 0.999]), torch.tensor([0.95]), torch.tensor([0.9, 0.99, 0.999]))
    axes = axes_of(shape, "torch")
    state = {
        name: torch.randn(each.shape, generator=generator).square() * 0.01
        for name, each in new_accumulators(p, axes).items()
    }
    return Task(p, torch.randn(shape, generator=generator), state, axes, decays, math.inf, False)


def step(name: str, of: Task, dtype: torch.dtype) -> Tensor:
    subject = SUBJECTS[name]
    return compute_eager(copied(of, dtype), subject.rule, of_parameter(network(subject, 1), 0, dtype)).step


def permuted(of: Task, order: Tensor) -> Task:
    """Rows in another order, so sums in another order."""
    state = {k: v[:, order] if v.shape[1] == len(order) else v for k, v in of.state.items()}
    return of._replace(p=of.p[order], g=of.g[order], state=state)


@pytest.mark.parametrize("name", SUBJECTS)
def test_other_orders_of_summation_stay_within_the_bound(name: str) -> None:
    inputs = task()
    simulation = simulate(lambda: [step(name, inputs, torch.float64)], draws=2)
    for seed in range(4):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        result = step(name, permuted(inputs, order), torch.float32)
        margins.check(size(result.double() - simulation.truth[0][order]), simulation.distance(0), f"order {seed}")


FAULTS = {
    "a weight off by a thousandth": ("weight", 1e-3),
    "the normalization's epsilon doubled": ("norm_eps", 2.0),
    "the second moment's epsilon a tenth": ("rsqrt_eps", 0.1),
    "the exponent's factor off by a hundredth": ("exp_mult", 1.01),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["velo", "celo2-tanh", "adafac-32"])
def test_planted_faults_exceed_the_bound(name: str, fault: str) -> None:
    inputs, subject = task(), SUBJECTS[name]
    field, factor = FAULTS[fault]
    if field == "norm_eps" or field == "rsqrt_eps":
        inputs = inputs._replace(g=inputs.g * 1e-3, state={k: v * 1e-6 for k, v in inputs.state.items()})
    simulation = simulate(lambda: [step(name, inputs, torch.float64)], draws=2)
    layers, rule = of_parameter(network(subject, 1), 0, torch.float32), subject.rule
    if field == "weight":
        layers[0][0][1] *= 1 + factor
    else:
        rule = replace(rule, **{field: getattr(rule, field) * factor})
    result = compute_eager(copied(inputs, torch.float32), rule, layers).step
    with margins.without_recording(), pytest.raises(AssertionError, match="error"):
        margins.check(size(result.double() - simulation.truth[0]), simulation.distance(0), fault)


def test_a_dropped_epsilon_of_the_parameter_scale_exceeds_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = task(zero=True)
    simulation = simulate(lambda: [step("velo", inputs, torch.float64)])
    monkeypatch.setattr("pylo_zoo.ops.step.parameter_scale", lambda p: p.square().mean().sqrt())
    with margins.without_recording(), pytest.raises(AssertionError, match="error"):
        margins.check(size(step("velo", inputs, torch.float32) - simulation.truth[0]), simulation.distance(0), "")


def test_a_unit_lost_in_a_long_sum_exceeds_the_bound() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    simulation = simulate(lambda: [x.double().square().mean()])
    margins.check(size(x.square().mean() - simulation.truth[0]), simulation.distance(0), "mean")
    with margins.without_recording(), pytest.raises(AssertionError, match="error"):
        margins.check(size(x[:-19].square().sum() / len(x) - simulation.truth[0]), simulation.distance(0), "")


def test_signs_follow_the_values() -> None:
    """The same operation on the same numbers rounds alike, so exact cancellation stays exact."""
    x = torch.rand(100, dtype=torch.float64)
    with Roundings(torch.float32, 0):
        one, other, zeros = x * 3, x * 3, x * 3 - x * 3
    with Roundings(torch.float32, 1):
        another = x * 3
    assert torch.equal(one, other)
    assert not zeros.any()
    assert not torch.equal(one, another)
    assert not torch.equal(one, x * 3)


def test_an_unknown_operation_is_an_error() -> None:
    with Roundings(torch.float32, 0), pytest.raises(LookupError, match="cumprod"):
        torch.ones(3).cumprod(0)


def test_counted_roundings() -> None:
    assert gamma(1, torch.float32) == pytest.approx(2.0**-24, rel=1e-6)
    assert gamma(3, torch.float64) > 3 * 2.0**-53
    x = torch.tensor([1.0, 1e-9, 3.0])
    assert (one_rounding(x, torch.float16) >= (x - x.half()).abs()).all()


SUITE = """
import margins, pytest, torch

def test_near():
    margins.check(0.2, 1.0, "near")

@pytest.mark.parametrize("error", [0.3, 0.7])
def test_far(error):
    margins.check_close(torch.tensor([0.1, error]), torch.zeros(2), torch.tensor([1.0, 1.0]), "far")

def test_none():
    with margins.without_recording(), pytest.raises(AssertionError):
        margins.check(float("nan"), 1.0, "")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_report_is_sorted_and_a_margin_over_a_half_fails_the_run(
    pytester: pytest.Pytester, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest("from margins_report import *")
    pytester.makepyfile(SUITE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    words = ["-n", workers, "-p", "no:cacheprovider", "-W", "ignore"]
    assert pytester.runpytest_subprocess(*words).ret == 0, "without --margins only bounds fail a run"
    done = pytester.runpytest_subprocess(*words, "--margins")
    assert done.ret == 1
    done.stdout.fnmatch_lines(
        [
            "*0.700  OVER  *test_far[[]0.7]  far",
            "*0.300  *test_far[[]0.3]  far",
            "*0.200  *test_near  near",
            "1 over 0.5*",
        ]
    )
