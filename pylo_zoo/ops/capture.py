"""Graphs of a device's work, which one call runs again. The only module that captures CUDA graphs.

No GPU has run :class:`CudaCapture`: tests replace it with a double (tests/graph_double.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import torch


class Graph(Protocol):
    """Captured work. It reads and writes the memory that it was captured with."""

    def replay(self) -> None:
        """Queue the work on the current stream."""
        ...


class Capture(Protocol):
    """Captures work on one type of device."""

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured, by anyone."""
        ...

    def capture(self, device: torch.device, run: Callable[[], None]) -> Graph:
        """Record the work that ``run`` queues on ``device``, without executing it.

        Raises:
            Exception: whatever ``run`` raises, or the device for work that a graph cannot contain.
        """
        ...


class CudaCapture:
    """CUDA graphs. Those of one device share a memory pool, because replays follow each other on one stream."""

    def __init__(self) -> None:
        self._pools: dict[torch.device, Any] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._alive: dict[torch.device, WeakSet[torch.cuda.CUDAGraph]] = {}

    def is_capturing(self) -> bool:
        return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()

    def capture(self, device: torch.device, run: Callable[[], None]) -> Graph:
        with torch.cuda.device(device):
            if not self._alive.get(device):  # a pool ends with its last graph, and its handle cannot be used again
                self._alive[device], self._pools[device] = WeakSet(), torch.cuda.graph_pool_handle()
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            graph = torch.cuda.CUDAGraph()
            self._alive[device].add(graph)
            # "thread_local": other threads, such as data loaders, may allocate meanwhile. The outer context restores
            # the current stream even if the end of a failed capture raises.
            with (
                torch.cuda.stream(torch.cuda.current_stream(device)),
                torch.cuda.graph(
                    graph,
                    pool=self._pools[device],
                    stream=self._streams[device],
                    capture_error_mode="thread_local",
                ),
            ):
                run()
        return graph


captures: dict[str, Capture] = {"cuda": CudaCapture()}
"""By device type."""


def is_capturing() -> bool:
    """Whether the current stream of some device is being captured."""
    return any(capture.is_capturing() for capture in captures.values())
