"""Learning-rate schedules: the factor of the learning rate at each step of a run of known length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pylo_zoo.errors import UsageError, did_you_mean

FLOOR = 0.0
"""Final factor of cosine and linear."""
COOLDOWN = 0.2
"""Fraction of the run in which wsd decays."""


def constant(left: float) -> float:
    """Always 1."""
    return 1.0


def linear(left: float) -> float:
    """Linear decay."""
    return FLOOR + (1 - FLOOR) * left


def cosine(left: float) -> float:
    """Cosine decay (SGDR without restarts, arXiv 1608.03983)."""
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (1 - left)))


def wsd(left: float) -> float:
    """Warmup, stable, decay: 1, then linear decay over the last fifth (arXiv 2404.06395)."""
    return min(1.0, left / COOLDOWN)


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
}
"""Each schedule maps the remaining fraction of the run after warmup, from 1 to 0, to a factor."""


def factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """The factor of the learning rate.

    Args:
        schedule: a name in :data:`SCHEDULES`.
        step: 0-based step.
        steps: steps of the whole run.
        warmup: steps of linear warmup; the factor of the first one is above 0.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = 1 - (step - warmup) / max(steps - warmup, 1)
    return SCHEDULES[schedule](min(max(left, 0.0), 1.0))


def check(schedule: str) -> None:
    """Check the name of a schedule.

    Raises:
        ZooError: no schedule has this name.
    """
    if schedule not in SCHEDULES:
        listing = f"Schedules: {', '.join(SCHEDULES)}."
        raise UsageError(f"Unknown schedule {schedule!r}.", did_you_mean(schedule, SCHEDULES, listing))
