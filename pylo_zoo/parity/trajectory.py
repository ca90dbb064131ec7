"""Whole runs of both sides, which start together and then run separately."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity import cases
from pylo_zoo.parity.cases import CASES, REDUCED, Case
from pylo_zoo.parity.jax_side import JaxSide
from pylo_zoo.parity.steps import DTYPES, LAYOUTS
from pylo_zoo.parity.torch_side import TorchSide
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Check, Error

MIN_STEPS = 3
LONG = 200
Trajectory = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class WholeRun:
    """A planned whole run: name, regime of the gradients, length, parameters and layouts."""

    name: str
    regime: str
    steps: int
    cases: Sequence[Case]
    layouts: Sequence[str]


WHOLE_RUNS = (
    WholeRun("ordinary", "ordinary", 10, CASES, LAYOUTS),
    WholeRun("spikes", "spikes", 10, CASES, LAYOUTS),
    WholeRun("long", "ordinary", LONG, REDUCED, ("torch",)),
)


@dataclass(frozen=True)
class Original:
    """The reference's float64 side of a whole run, its inputs, and the error of the reference's float32 run.

    Attributes:
        planned: the planned run.
        hyper: arguments of the optimizer.
        start: parameters before the first step, by case, in JAX layout.
        grads, losses: by step.
        truth: parameters before the first step and after each step, while both dtypes are finite.
        noise: largest absolute difference between the float32 and the float64 run, by case.
    """

    planned: WholeRun
    hyper: Mapping[str, Any]
    start: Mapping[str, np.ndarray]
    grads: Sequence[Mapping[str, np.ndarray]]
    losses: Sequence[float]
    truth: Trajectory
    noise: Mapping[str, float]

    @property
    def steps(self) -> int:
        """Number of compared steps."""
        return len(self.truth) - 1


def hyper_of(artifact: Artifact, planned: WholeRun) -> dict[str, Any]:
    """The optimizer's arguments. If the family requires ``num_steps``, the long run sets it to its length."""
    hyper = dict(converters.get(artifact.family).parity_hyper)
    return {**hyper, "num_steps": LONG} if "num_steps" in hyper and planned.steps == LONG else hyper


def original(artifact: Artifact, theta: Mapping[str, Any], planned: WholeRun, seed: int) -> Original:
    """Run the reference through the whole run ``planned`` in both dtypes."""
    start = {case.name: value for case in planned.cases for value in [cases.parameters(seed)[case.name]]}
    grads = cases.gradients(seed, planned.regime, planned.steps)
    losses = cases.losses(seed, planned.regime, planned.steps)
    hyper = hyper_of(artifact, planned)
    double, single = (
        JaxSide(artifact, theta, planned.cases, start, hyper, dtype).run(grads, losses) for dtype in DTYPES
    )
    steps = min(finite_steps(double), finite_steps(single))
    truth = double[: steps + 1]
    noise = {
        case.name: max(float(np.abs(b[case.name] - a[case.name]).max()) for a, b in zip(truth, single, strict=False))
        for case in planned.cases
    }
    return Original(planned, hyper, start, grads, losses, truth, noise)


def checks(
    artifact: Artifact, run: Original, dtypes: Sequence[str] = DTYPES, devices: Sequence[str] = ()
) -> Iterator[Check]:
    """Compare the torch side's runs in ``dtypes``, and with the kernels of ``devices`` in float32, with ``run``."""
    backends = [*((dtype, "") for dtype in dtypes), *(("float32", device) for device in devices)]
    for dtype, kernels in backends:
        for layout in run.planned.layouts:
            yield judge(run, _run(artifact, run, dtype, layout, kernels), dtype, layout, kernels)


def _run(artifact: Artifact, run: Original, dtype: str, layout: str, kernels: str) -> Trajectory:
    """The torch side's run; NaN if the optimizer raises, because single steps report the exception."""
    try:
        side = TorchSide(artifact, run.planned.cases, run.start, run.hyper, dtype, layout, kernels)
        return side.run(run.grads, run.losses)
    except Exception:
        return [{name: np.full_like(value, np.nan) for name, value in run.start.items()}] * len(run.truth)


def judge(run: Original, ours: Trajectory, dtype: str, layout: str, kernels: str = "") -> Check:
    """Compare two whole runs: the largest error of each parameter, relative to its largest movement.

    Only the steps over which the original is finite are compared. The error is infinite if these are fewer than
    :data:`MIN_STEPS`, if the original does not move, or if ``ours`` is not finite.
    """
    steps = run.steps
    errors: dict[str, Error] = {}
    by_step = np.zeros(steps)
    for case in run.planned.cases:
        a, truth = (
            np.stack([np.asarray(step[case.name], np.float64) for step in each[: steps + 1]])
            for each in (ours, run.truth)
        )
        movement = float(np.abs(truth - truth[0]).max())
        if steps < min(MIN_STEPS, run.planned.steps) or movement == 0 or not np.isfinite(a).all():
            errors[case.name] = Error(float("inf"), 0.0)
            continue
        axes = tuple(range(1, truth.ndim))
        distance = np.abs(a - truth).max(axis=axes)
        by_step = np.maximum(by_step, distance[1:] / movement)
        largest = float(np.abs(truth).max())
        allowed = float(bounds.allowed(np.asarray(run.noise[case.name] / movement), dtype, 1.0 + largest / movement))
        error = float(distance.max())
        errors[case.name] = Error(error / movement, allowed, bounds.ulps(error, largest, dtype))
    name, by = run.planned.name, by_step.tolist()
    return Check("trajectory", dtype, layout, name, steps, errors, by_step=by, kernels=kernels)


def finite_steps(trajectory: Trajectory) -> int:
    """Number of steps before any parameter is no longer finite; a checkpoint may diverge."""
    finite = [all(np.isfinite(value).all() for value in step.values()) for step in trajectory]
    return finite.index(False) - 1 if False in finite else len(finite) - 1
