"""Whole runs, each side on its own: how far rounding carries the two apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity import bounds, cases
from pylo_zoo.parity.cases import CASES, REDUCED, Case
from pylo_zoo.parity.report import Check, Error
from pylo_zoo.parity.sides import JaxSide, TorchSide
from pylo_zoo.parity.steps import DTYPES, LAYOUTS

LEAST_STEPS = 3
LONG = 200
Trajectory = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Course:
    """A whole run: name, regime of the gradients, length, parameters and layouts."""

    name: str
    regime: str
    steps: int
    cases: Sequence[Case]
    layouts: Sequence[str]


COURSES = (
    Course("ordinary", "ordinary", 10, CASES, LAYOUTS),
    Course("spikes", "spikes", 10, CASES, LAYOUTS),
    Course("long", "ordinary", LONG, REDUCED, ("torch",)),
)


@dataclass(frozen=True)
class Original:
    """The reference's float64 run of a course, what it was given, and how far its own float32 run was off.

    Attributes:
        course: what was run.
        hyper: arguments of the optimizer.
        start: parameters before the first step, by case, in JAX layout.
        grads, losses: by step.
        truth: parameters before the first step and after each, while both dtypes are finite.
        noise: by case, the largest distance of the float32 run, as a number.
    """

    course: Course
    hyper: Mapping[str, Any]
    start: Mapping[str, np.ndarray]
    grads: Sequence[Mapping[str, np.ndarray]]
    losses: Sequence[float]
    truth: Trajectory
    noise: Mapping[str, float]

    @property
    def steps(self) -> int:
        """How many are compared."""
        return len(self.truth) - 1


def hyper_of(artifact: Artifact, course: Course) -> dict[str, Any]:
    """The optimizer's arguments: parity's, with the long run's own length where the family has to know it."""
    hyper = dict(converters.get(artifact.family).parity_hyper)
    return {**hyper, "num_steps": LONG} if "num_steps" in hyper and course.steps == LONG else hyper


def original(artifact: Artifact, theta: Mapping[str, Any], course: Course, seed: int) -> Original:
    """Run the reference along ``course``."""
    start = {case.name: value for case in course.cases for value in [cases.parameters(seed)[case.name]]}
    grads = cases.gradients(seed, course.regime, course.steps)
    losses = cases.losses(seed, course.regime, course.steps)
    hyper = hyper_of(artifact, course)
    double, single = (
        JaxSide(artifact, theta, course.cases, start, hyper, dtype).run(grads, losses) for dtype in DTYPES
    )
    steps = min(finite_steps(double), finite_steps(single))
    truth = double[: steps + 1]
    noise = {
        case.name: max(float(np.abs(b[case.name] - a[case.name]).max()) for a, b in zip(truth, single, strict=False))
        for case in course.cases
    }
    return Original(course, hyper, start, grads, losses, truth, noise)


def checks(
    artifact: Artifact, run: Original, dtypes: Sequence[str] = DTYPES, devices: Sequence[str] = ()
) -> Iterator[Check]:
    """The torch side's runs against the original's: in ``dtypes``, and in float32 by the kernels of ``devices``."""
    backends = [*((dtype, "") for dtype in dtypes), *(("float32", device) for device in devices)]
    for dtype, kernels in backends:
        for layout in run.course.layouts:
            yield judge(run, _run(artifact, run, dtype, layout, kernels), dtype, layout, kernels)


def _run(artifact: Artifact, run: Original, dtype: str, layout: str, kernels: str) -> Trajectory:
    """The torch side's run; NaN if the optimizer raises, which single steps report with its place."""
    try:
        side = TorchSide(artifact, run.course.cases, run.start, run.hyper, dtype, layout, kernels)
        return side.run(run.grads, run.losses)
    except Exception:
        return [{name: np.full_like(value, np.nan) for name, value in run.start.items()}] * len(run.truth)


def judge(run: Original, ours: Trajectory, dtype: str, layout: str, kernels: str = "") -> Check:
    """By case, the largest error of any step, relative to the parameter's largest movement.

    Compared are the steps over which the original is finite. Where those are under :data:`LEAST_STEPS`,
    the original does not move or ours is not finite, there is nothing to show parity with, and the error is infinite.
    """
    steps = run.steps
    found: dict[str, Error] = {}
    by_step = np.zeros(steps)
    for case in run.course.cases:
        a, truth = (
            np.stack([np.asarray(step[case.name], np.float64) for step in each[: steps + 1]])
            for each in (ours, run.truth)
        )
        movement = float(np.abs(truth - truth[0]).max())
        if steps < min(LEAST_STEPS, run.course.steps) or movement == 0 or not np.isfinite(a).all():
            found[case.name] = Error(float("inf"), 0.0)
            continue
        axes = tuple(range(1, truth.ndim))
        distance = np.abs(a - truth).max(axis=axes)
        by_step = np.maximum(by_step, distance[1:] / movement)
        largest = float(np.abs(truth).max())
        allowed = float(bounds.allowed(np.asarray(run.noise[case.name] / movement), dtype, 1.0 + largest / movement))
        error = float(distance.max())
        found[case.name] = Error(error / movement, allowed, bounds.ulps(error, largest, dtype))
    name, by = run.course.name, by_step.tolist()
    return Check("trajectory", dtype, layout, name, steps, found, by_step=by, kernels=kernels)


def finite_steps(trajectory: Trajectory) -> int:
    """Steps before the first one at which any parameter is not finite: a checkpoint may well diverge."""
    finite = [all(np.isfinite(value).all() for value in step.values()) for step in trajectory]
    return finite.index(False) - 1 if False in finite else len(finite) - 1
