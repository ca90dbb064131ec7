"""Measures of training runs: final losses, spreads over seeds, and the steps to a target loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DIVERGENCE_RISE = 0.1
"""A run diverged if it ends above its initial loss by more than this fraction. The margin is for runs that hardly move:
the initial loss is that of one batch."""


@dataclass(frozen=True)
class RunRecord:
    """The measurements of a run.

    Attributes:
        seed: seed of weights and data.
        losses: loss before each step.
        model_seconds, optimizer_seconds: times of each step.
        evaluations: metrics on held-out data, by number of finished steps.
        stopped: why the run stopped early, or None.
        state_bytes: size of the optimizer's state.
        load: load of the machine during the run, or None if it is unknown.
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
        """The time of each step: model and optimizer, without evaluation and file output."""
        return [a + b for a, b in zip(self.model_seconds, self.optimizer_seconds, strict=True)]

    @property
    def final(self) -> Mapping[str, float]:
        """The last evaluation."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}


@dataclass(frozen=True)
class Spread:
    """Mean, minimum, maximum and sample standard deviation over seeds; ``std`` is None for one seed."""

    mean: float
    min: float
    max: float
    std: float | None
    count: int

    def overlaps(self, other: Spread) -> bool:
        """Whether the ranges overlap."""
        return self.min <= other.max and other.min <= self.max


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of ``values``, or None if it is empty or contains a value that is not finite."""
    if not values or not all(map(math.isfinite, values)):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), min(values), max(values), deviation, len(values))


def diverged(record: RunRecord, last: int) -> str | None:
    """Why a run counts as diverged, or None: its loss is not finite, or ends above the initial loss."""
    if record.stopped:
        return "the loss is not finite"
    if not record.losses:
        return "no step was made"
    if not all(math.isfinite(value) for value in (*record.losses, *record.final.values())):
        return "the loss is not finite"
    if statistics.fmean(record.losses[-last:]) > record.losses[0] + DIVERGENCE_RISE * abs(record.losses[0]):
        return "the loss ended above the initial loss"
    return None


def final_loss(record: RunRecord, last: int) -> float | None:
    """The mean loss of the last ``last`` steps, or None if the run diverged."""
    return None if diverged(record, last) else statistics.fmean(record.losses[-last:])


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The running mean over the last ``window`` values, or over fewer at the beginning."""
    means = []
    for i in range(len(values)):
        part = values[max(0, i + 1 - window) : i + 1]
        means.append(math.fsum(part) / len(part))
    return means


def steps_to(record: RunRecord, target: float, window: int) -> int | None:
    """The number of steps until the smoothed loss first reaches ``target``, or None if it never does.

    A mean over fewer than ``window`` steps does not count, because one batch may have a low loss by chance.
    """
    for i, value in enumerate(smoothed(record.losses, window)):
        if i + 1 >= window and value <= target:
            return i + 1
    return None


@dataclass(frozen=True)
class Arrival:
    """When runs reach a target loss.

    Attributes:
        steps, seconds: medians over seeds, or None if half of the seeds or more do not reach it.
        reached: number of seeds that reach it.
        of: number of seeds with a target.
        reached_steps: median over the seeds that reach it, or None.
    """

    steps: float | None
    seconds: float | None
    reached: int
    of: int
    reached_steps: float | None


def arrival(records: Sequence[RunRecord], targets: Mapping[int, float | None], window: int) -> Arrival | None:
    """When ``records`` reach the target of their seed, or None if no seed has a target."""
    results = [
        (steps_to(record, target, window), record)
        for record in records
        if (target := targets.get(record.seed)) is not None and math.isfinite(target)
    ]
    if not results:
        return None
    median_steps = statistics.median(math.inf if steps is None else steps for steps, _ in results)
    seconds = statistics.median(math.inf if steps is None else sum(each.seconds[:steps]) for steps, each in results)
    reached = [steps for steps, _ in results if steps is not None]
    finite = [value if math.isfinite(value) else None for value in (median_steps, seconds)]
    return Arrival(finite[0], finite[1], len(reached), len(results), statistics.median(reached) if reached else None)


def wins(one: Sequence[float], other: Sequence[float]) -> int:
    """The number of seeds in which ``one`` is below ``other``."""
    return sum(a < b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Band:
    """Median, minimum and maximum of the curves of several seeds at each x."""

    x: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def band(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Band:
    """The band of ``curves``, which are pairs of x and y. It has the length of the shortest; x is a median too."""
    length = min((len(x) for x, _ in curves), default=0)
    columns = [[y[i] for _, y in curves] for i in range(length)]
    return Band(
        [statistics.median(x[i] for x, _ in curves) for i in range(length)],
        [statistics.median(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
    )
