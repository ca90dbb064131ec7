"""Figures of merit of training runs: final losses, spreads over seeds, and the steps that a loss takes to reach."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

RISEN = 0.1
"""A run diverged that ends higher than its initial loss by more than this share of it. The initial loss is a single
batch's, hence the margin: an optimizer that has hardly moved did not diverge."""


@dataclass(frozen=True)
class Course:
    """A run as it went.

    Attributes:
        seed: of weights and data.
        losses: of every step, before it.
        model_seconds, optimizer_seconds: of every step.
        evaluations: of the data that is held out, by number of steps done.
        stopped: why the run ended before its time, or None.
        state_bytes: of the optimizer's state.
        load: of the machine meanwhile; None where it is not known.
    """

    seed: int
    losses: Sequence[float]
    model_seconds: Sequence[float] = ()
    optimizer_seconds: Sequence[float] = ()
    evaluations: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    stopped: str | None = None
    state_bytes: int = 0
    load: float | None = None

    @property
    def seconds(self) -> list[float]:
        """Of every step: model and optimizer, without looks at the data that is held out, and without writing."""
        return [a + b for a, b in zip(self.model_seconds, self.optimizer_seconds, strict=True)]

    @property
    def final(self) -> Mapping[str, float]:
        """The last evaluation."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}


@dataclass(frozen=True)
class Spread:
    """Values of several seeds: mean, least, greatest, and standard deviation (of a sample; None for one seed)."""

    mean: float
    min: float
    max: float
    std: float | None
    count: int

    def overlaps(self, other: Spread) -> bool:
        """Whether the ranges of the two have a point in common."""
        return self.min <= other.max and other.min <= self.max


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of ``values``; None where there is none, or one is not finite."""
    if not values or not all(map(math.isfinite, values)):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), min(values), max(values), deviation, len(values))


def diverged(course: Course, last: int) -> str | None:
    """Why a run counts as diverged: a number that is none, or a loss that ended above where it began; else None."""
    if course.stopped:
        return "its loss was no longer a finite number"
    if not course.losses:
        return "it made no step"
    if not all(math.isfinite(value) for value in (*course.losses, *course.final.values())):
        return "its loss was no longer a finite number"
    if statistics.fmean(course.losses[-last:]) > course.losses[0] + RISEN * abs(course.losses[0]):
        return "its loss ended above where it began"
    return None


def final_loss(course: Course, last: int) -> float | None:
    """The mean loss of the ``last`` steps; None where the run diverged."""
    return None if diverged(course, last) else statistics.fmean(course.losses[-last:])


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, ``window`` in all; of fewer at the beginning."""
    found = []
    for i in range(len(values)):
        part = values[max(0, i + 1 - window) : i + 1]
        found.append(math.fsum(part) / len(part))
    return found


def steps_to(course: Course, target: float, window: int) -> int | None:
    """Steps after which the smoothed loss is ``target`` or less for the first time; None: never.

    A mean over fewer than ``window`` steps does not count, so that one lucky batch is no arrival.
    """
    for i, value in enumerate(smoothed(course.losses, window)):
        if i + 1 >= window and value <= target:
            return i + 1
    return None


@dataclass(frozen=True)
class Arrival:
    """How many steps, and seconds, a loss took to reach: medians over seeds, None where half or more never did.

    Attributes:
        steps, seconds: these medians.
        reached: how many seeds got there; ``of`` how many.
        reached_steps: the median over those that did; None where none did.
    """

    steps: float | None
    seconds: float | None
    reached: int
    of: int
    reached_steps: float | None


def arrival(courses: Sequence[Course], targets: Mapping[int, float | None], window: int) -> Arrival | None:
    """What ``courses`` took to what each seed's target is; None where no seed has a target."""
    found = [
        (steps_to(course, target, window), course)
        for course in courses
        if (target := targets.get(course.seed)) is not None and math.isfinite(target)
    ]
    if not found:
        return None
    middle = statistics.median(math.inf if steps is None else steps for steps, _ in found)
    clock = statistics.median(math.inf if steps is None else sum(each.seconds[:steps]) for steps, each in found)
    reached = [steps for steps, _ in found if steps is not None]
    finite = [value if math.isfinite(value) else None for value in (middle, clock)]
    return Arrival(finite[0], finite[1], len(reached), len(found), statistics.median(reached) if reached else None)


def wins(one: Sequence[float], other: Sequence[float]) -> int:
    """Seeds in which ``one`` is below ``other``."""
    return sum(a < b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Band:
    """Curves of several seeds as one: at each x the median, the least and the greatest."""

    x: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def band(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Band:
    """``curves``, pairs of x and y, as a band, point by point as far as the shortest goes; x is the median, too."""
    length = min((len(x) for x, _ in curves), default=0)
    columns = [[y[i] for _, y in curves] for i in range(length)]
    return Band(
        [statistics.median(x[i] for x, _ in curves) for i in range(length)],
        [statistics.median(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
    )
