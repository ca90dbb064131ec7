"""Failures of the Hub double, for ``hub.plant`` and for :class:`Chaos`.

A fault receives an exchange. Some change its answer and can be combined by :func:`both`; others end it.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hub_calls import Answer
from hub_double import Exchange, Fault, Request

GRACE = 0.05  # seconds that a client has to read what was sent: RST discards the rest


def both(*faults: Fault) -> Fault:
    """Apply one after the other until one of them ends the exchange."""

    def fault(exchange: Exchange) -> None:
        for each in faults:
            if not exchange.ended:
                each(exchange)

    return fault


# --- other answers -----------------------------------------------------------------------------------------------


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """Return an error without executing the request; ``Retry_After`` stands for ``Retry-After``."""
    return answer(code, json.dumps({"error": message}).encode(), **headers)


def answer(code: int, body: bytes = b"", **headers: str) -> Fault:
    """Return this answer without executing the request."""

    def fault(exchange: Exchange) -> None:
        exchange.answer = Answer(code, body, _named(headers))

    return fault


def redirect(target: str, code: int = 302) -> Fault:
    """Redirect without executing the request."""
    return answer(code, Location=target)


def applied(exchange: Exchange) -> None:
    """Execute the request; ``both(applied, status(500))`` is an error after the fact."""
    _ = exchange.answer


def headers(**changed: str) -> Fault:
    """The correct answer with other headers, ``X_Repo_Commit`` for ``X-Repo-Commit``; an empty value removes one."""

    def fault(exchange: Exchange) -> None:
        headers_by_name = {name.lower(): value for name, value in exchange.answer.headers.items()}
        headers_by_name |= {name.lower(): value for name, value in _named(changed).items()}
        exchange.answer.headers = {name: value for name, value in headers_by_name.items() if value}

    return fault


def body(other: bytes) -> Fault:
    """The correct answer with another body."""

    def fault(exchange: Exchange) -> None:
        exchange.answer.body = other

    return fault


empty = body(b"")
not_json = body(b"<html><body>It works!</body></html>")


def wrong_bytes(exchange: Exchange) -> None:
    """The correct length with a different last byte."""
    data = exchange.answer.body
    exchange.answer.body = data[:-1] + bytes([data[-1] ^ 1]) if data else data


def changed_json(change: Callable[[dict], object]) -> Fault:
    """The correct JSON answer, modified by ``change``."""

    def fault(exchange: Exchange) -> None:
        answer = json.loads(exchange.answer.body)
        change(answer)
        exchange.answer.body = json.dumps(answer).encode()

    return fault


def range_ignored(exchange: Exchange) -> None:
    """The whole file, whichever range was requested."""
    exchange.read()
    headers = {name: value for name, value in exchange.request.headers.items() if name != "range"}
    exchange.request = dataclasses.replace(exchange.request, headers=headers)  # the log keeps the original request


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


# --- connections that end ----------------------------------------------------------------------------------------


def reset(exchange: Exchange) -> None:
    """RST before the request is executed."""
    exchange.cut()


def reset_midway(count: int) -> Fault:
    """RST after ``count`` bytes of the request's body; the request is not executed."""

    def fault(exchange: Exchange) -> None:
        exchange.read(count)
        exchange.cut()

    return fault


def lost(exchange: Exchange) -> None:
    """Execute the request, then RST instead of the answer."""
    applied(exchange)
    exchange.cut()


def cut(count: int) -> Fault:
    """Execute the request, then RST after ``count`` bytes of the answer's body."""

    def fault(exchange: Exchange) -> None:
        exchange.send(count)
        time.sleep(GRACE)
        exchange.cut()

    return fault


def truncated(count: int) -> Fault:
    """Send ``count`` bytes of the answer's body, then close the connection normally."""
    return lambda exchange: exchange.send(count)


def silent(seconds: float) -> Fault:
    """Send nothing for ``seconds``, do not execute the request, then close the connection."""

    def fault(exchange: Exchange) -> None:
        exchange.read()
        exchange.hub.closing.wait(seconds)
        exchange.cut(hard=False)

    return fault


def stalled(seconds: float, count: int = 0) -> Fault:
    """Send ``count`` bytes of the answer's body, nothing for ``seconds``, then close the connection."""

    def fault(exchange: Exchange) -> None:
        exchange.send(count)
        exchange.hub.closing.wait(seconds)

    return fault


def delayed(seconds: float) -> Fault:
    """The correct answer, later."""

    def fault(exchange: Exchange) -> None:
        exchange.hub.closing.wait(seconds)

    return fault


# --- random faults -----------------------------------------------------------------------------------------------

TRANSIENT: dict[str, Fault] = {
    "500": status(500),
    "503": status(503),
    "429": status(429, Retry_After="0"),
    "reset": reset,
    "lost": lost,
    "cut": cut(1),
}


@dataclass
class Chaos:
    """Random faults: what hits a request depends on the seed, the request, and how often it was sent.

    The order of two threads therefore does not matter, and the same steps meet the same faults in every run.

    Args:
        seed: selects the faults.
        rate: the share of requests that are hit.
        most: the maximum of consecutive hits of the same request, so a client that retries more often usually succeeds.
        total: the maximum in total; no limit if None.
        kinds: the possible faults, by name.
        spared: a regular expression of paths that are never hit.
    """

    seed: int
    rate: float = 0.3
    most: int = 2
    total: int | None = None
    kinds: Mapping[str, Fault] = field(default_factory=lambda: dict(TRANSIENT))
    spared: str = r"(?!)"
    struck: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, and the name of the fault

    def __post_init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    def strike(self, request: Request) -> Fault | None:
        """The fault for this request, or None."""
        what = str(request)
        with self._lock:
            self._asked[what] += 1
            chance = random.Random(f"{self.seed} {what} {self._asked[what]}")
            spent = self._running[what] >= self.most or (self.total is not None and len(self.struck) >= self.total)
            if chance.random() >= self.rate or spent or request.like(".*", self.spared):
                self._running[what] = 0
                return None
            self._running[what] += 1
            name = chance.choice(sorted(self.kinds))
            self.struck.append((request.method, request.path, name))
            return self.kinds[name]


# For ``repo.extra_siblings``: names that lead out of any directory, or nowhere.
HOSTILE_NAMES = ("../evil", "/etc/evil", "a/../../evil", "..\\evil", "evil\n", "")
