"""Timing of pairs of steps, one of the optimizer and one of the reference, and its statistics."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

MIN_PAIRS = 3
WARMUP = 2
"""Steps of each optimizer before the first pair. The first step creates the state."""
COPIED = 64 * 1024 * 1024
"""Float32 values to copy for the bandwidth: 256 MiB, more than the caches of most machines hold."""
COPIES = 7

Clock = Callable[[Callable[[], Any]], float]
"""Runs a function and returns its time in seconds."""


def clock(device: str) -> Clock:
    """The clock for a device.

    On a GPU, the clock synchronizes and then times from one CUDA event to another around the step. The time in which
    the device waits for Python counts.
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
    """Seconds of each timed pair of steps, in order."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]


def pairs(
    ours: Callable[[], Any], reference: Callable[[], Any], most: int, seconds: float, seconds_of: Clock = _by_counter
) -> Times:
    """Time pairs of steps. The order within a pair alternates, so a machine that slows down affects both equally.

    Args:
        ours, reference: run one step.
        most: maximum number of pairs, at least :data:`MIN_PAIRS`.
        seconds: time limit. After it no pair starts, except to reach :data:`MIN_PAIRS`.
        seconds_of: the clock.
    """
    start = time.perf_counter()
    for k in range(WARMUP):
        if k == 0 or time.perf_counter() - start < seconds / 4:
            ours()
            reference()
    our_times: list[float] = []
    reference_times: list[float] = []
    with without_collector():
        while len(our_times) < MIN_PAIRS or (len(our_times) < most and time.perf_counter() - start < seconds):
            turns = [(ours, our_times), (reference, reference_times)]
            for step, times in turns if len(our_times) % 2 == 0 else turns[::-1]:
                times.append(seconds_of(step))
    return Times(tuple(our_times), tuple(reference_times))


@contextmanager
def without_collector() -> Iterator[None]:
    """Collect garbage once, then disable Python's collector in the block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Set the number of torch threads in the block, and yield it; None keeps the current number."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count or previous)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(previous)


@dataclass(frozen=True)
class Spread:
    """Median, quartiles, minimum (``least``) and maximum (``most``)."""

    median: float
    lower: float
    upper: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of one or more values, with interpolated quartiles."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper, min(values), max(values))


def bandwidth(device: str, count: int = COPIED, copies: int = COPIES) -> list[float]:
    """The bandwidth of each copy of ``count`` float32 values, in bytes read and written per second."""
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds_of = clock(device)
    with without_collector():
        return [2 * 4 * count / seconds_of(lambda: target.copy_(source)) for _ in range(copies)]
