"""Times of pairs of steps, ours and the reference's in turn, and what can be said of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

LEAST_PAIRS = 3
WARMUP = 2
"""Steps of each before the first pair: the first makes the state."""
COPIED = 64 * 1024 * 1024
"""Float32 values that the bandwidth is measured with: 256 MiB, beyond the caches of most machines."""
COPIES = 7

Clock = Callable[[Callable[[], Any]], float]
"""Runs something; the seconds that it took."""


def clock(device: str) -> Clock:
    """How time is taken on a device.

    On a GPU a step is over when its kernels are: nothing waits when it starts, and two events of the device itself
    stand around it, so that the time in which the device waits for Python counts as well.
    """
    return _by_events if torch.device(device).type == "cuda" else _by_counter


def _by_counter(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _by_events(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Times:
    """Seconds of every pair of steps that counts, in the order they were made."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]


def pairs(
    ours: Callable[[], Any], reference: Callable[[], Any], most: int, seconds: float, seconds_of: Clock = _by_counter
) -> Times:
    """Time steps in turn; who goes first alternates, so that a machine that slows down is fair to both.

    Args:
        ours, reference: one step each.
        most: pairs, at least :data:`LEAST_PAIRS`.
        seconds: for all of it; once they are over no pair is begun, unless there are fewer than the least.
        seconds_of: takes the time.
    """
    start = time.perf_counter()
    for k in range(WARMUP):
        if k == 0 or time.perf_counter() - start < seconds / 4:
            ours()
            reference()
    one: list[float] = []
    other: list[float] = []
    with without_collector():
        while len(one) < LEAST_PAIRS or (len(one) < most and time.perf_counter() - start < seconds):
            turns = [(ours, one), (reference, other)]
            for step, times in turns if len(one) % 2 == 0 else turns[::-1]:
                times.append(seconds_of(step))
    return Times(tuple(one), tuple(other))


@contextmanager
def without_collector() -> Iterator[None]:
    """Python's collector of garbage collects first, and then not until the block is over."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """So many threads for torch, and how many there are; as before after the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Spread:
    """Of some figures: median, quartiles, least and largest."""

    median: float
    lower: float
    upper: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of one figure or more; quartiles are interpolated between figures."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper, min(values), max(values))


def bandwidth(device: str, count: int = COPIED, copies: int = COPIES) -> list[float]:
    """Bytes a second that copying ``count`` float32 values moves, read and written ones together, once a copy."""
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    take = clock(device)
    with without_collector():
        return [2 * 4 * count / take(lambda: target.copy_(source)) for _ in range(copies)]
