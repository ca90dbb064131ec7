"""Learning-rate schedules: a factor for each step, of a run whose length is known."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping

from pylo_zoo.errors import ZooError

FLOOR = 0.0
"""What cosine and linear end at, for the peak."""
COOLDOWN = 0.2
"""Share of the run in which wsd goes down."""


def constant(left: float) -> float:
    """1 throughout."""
    return 1.0


def linear(left: float) -> float:
    """Down in a straight line."""
    return FLOOR + (1 - FLOOR) * left


def cosine(left: float) -> float:
    """Half a cosine (SGDR without restarts, arXiv 1608.03983)."""
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (1 - left)))


def wsd(left: float) -> float:
    """Warmup, stable, decay: 1, and down in a straight line over the last fifth (arXiv 2404.06395)."""
    return min(1.0, left / COOLDOWN)


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
}
"""What each makes of the share of the run that is left once the warmup is over, from 1 to 0."""


def factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """What the learning rate is multiplied by.

    Args:
        schedule: of :data:`SCHEDULES`.
        step: 0-based.
        steps: of the whole run.
        warmup: steps in which it rises in a straight line, the first of them above 0.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = 1 - (step - warmup) / max(steps - warmup, 1)
    return SCHEDULES[schedule](min(max(left, 0.0), 1.0))


def check(schedule: str) -> None:
    """Refuse a name that is none.

    Raises:
        ZooError: so it is.
    """
    if schedule not in SCHEDULES:
        near = difflib.get_close_matches(schedule, SCHEDULES, n=1)
        listing = f"Schedules: {', '.join(SCHEDULES)}."
        raise ZooError(
            f"There is no schedule {schedule!r}.", f"Did you mean {near[0]!r}? {listing}" if near else listing
        )
