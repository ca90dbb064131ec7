"""Retries: how many attempts, and how long to wait between them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pylo_zoo.errors import count
from pylo_zoo.fetch.errors import Transient, Unavailable

Result = TypeVar("Result")


@dataclass(frozen=True)
class Policy:
    """Retries and timeouts.

    Attributes:
        attempts: maximum attempts per file.
        unreachable: maximum attempts if the server does not answer.
        patience: seconds after which no more attempts are made on an unreachable server; huggingface_hub's own
            retries can make a single attempt long.
        backoff: seconds before the second attempt; it doubles each time, with random jitter of up to half.
        longest: longest wait in seconds, even if the server requests more.
        timeout: seconds without an answer, or with less than a kilobyte of it, after which an attempt is aborted.
        sleep: the function that waits.
    """

    attempts: int = 5
    unreachable: int = 3
    patience: float = 20.0
    backoff: float = 0.5
    longest: float = 60.0
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep


def retrying(action: Callable[[], Result], what: str, policy: Policy) -> Result:
    """Return the result of ``action``; call it again after each :class:`Transient` as ``policy`` allows.

    Args:
        action: one attempt.
        what: the thing that is fetched, for the error message.
        policy: how often and how long to retry.

    Raises:
        Unavailable: no attempts are left, or the server requests a longer wait than ``policy.longest``.
    """
    number, start = 1, time.monotonic()
    while True:
        try:
            return action()
        except Transient as error:
            fault = error
        if fault.after is not None and fault.after > policy.longest:
            raise Unavailable(
                f"{what} {fault.what} and requests a wait of {count(round(fault.after), 'second')}.",
                "Try again after that time.",
                fault.after,
            )
        late = fault.unreachable and time.monotonic() - start > policy.patience
        if late or number >= (policy.unreachable if fault.unreachable else policy.attempts):
            if fault.host is not None:
                raise Unavailable(
                    f"{fault.host} {fault.what} in {count(number, 'attempt')}, so {what} could not be fetched.",
                    "Check the network connection.",
                    fault.after,
                )
            tries = "" if policy.attempts == 1 else ", once" if number == 1 else f", {number} times"
            raise Unavailable(f"{what} {fault.what}{tries}.", "Try again later.", fault.after)
        pause = min(policy.backoff * 2 ** (number - 1), policy.longest) * random.uniform(0.5, 1.0)
        policy.sleep(max(pause, fault.after or 0.0))
        number += 1
