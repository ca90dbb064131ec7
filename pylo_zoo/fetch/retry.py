"""Trying again: how often, and how long to wait in between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pylo_zoo.fetch.errors import Transient, Unavailable

Result = TypeVar("Result")


@dataclass(frozen=True)
class Policy:
    """Patience.

    Attributes:
        attempts: how often a file is asked for in all.
        unreachable: the same where nothing answers at all.
        patience: seconds after which such attempts end in any case; huggingface_hub tries for long on its own.
        backoff: seconds before the second attempt; doubled each time, of which a random half is left out.
        longest: seconds that are waited at most, whatever a server asks for.
        timeout: seconds without an answer, or without a kilobyte of one, after which an attempt is given up.
        sleep: what waits.
    """

    attempts: int = 5
    unreachable: int = 3
    patience: float = 20.0
    backoff: float = 0.5
    longest: float = 60.0
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep


def retrying(action: Callable[[], Result], what: str, policy: Policy) -> Result:
    """The result of ``action``, called again after each :class:`Transient` until patience ends.

    Args:
        action: the attempt.
        what: the thing that is fetched, for the message.
        policy: patience.

    Raises:
        Unavailable: patience has ended, or the server asks for more than there is.
    """
    number, start = 1, time.monotonic()
    while True:
        try:
            return action()
        except Transient as error:
            fault = error
        if fault.after is not None and fault.after > policy.longest:
            raise Unavailable(
                f"{what} {fault.what} and asks to wait {fault.after:,.0f} seconds.",
                "Try again after that time.",
                fault.after,
            )
        late = fault.unreachable and time.monotonic() - start > policy.patience
        if late or number >= (policy.unreachable if fault.unreachable else policy.attempts):
            tries = "" if policy.attempts == 1 else ", once" if number == 1 else f", {number} times"
            raise Unavailable(f"{what} {fault.what}{tries}.", "Try again later.", fault.after)
        pause = min(policy.backoff * 2 ** (number - 1), policy.longest) * random.uniform(0.5, 1.0)
        policy.sleep(max(pause, fault.after or 0.0))
        number += 1
