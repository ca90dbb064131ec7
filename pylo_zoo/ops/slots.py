"""Numbers that change between the replays of an optimizer's own graph.

A graph freezes what it was captured with. :func:`live` marks values that a step computes on the host, or receives as
another tensor each time. Inside :meth:`Slots.recording`, it returns a part of a table on the device. Before each
replay, :meth:`Slots.fill` computes the values again and copies all of them there at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.ops import transfer

_ALIGNED = 16
_recorded: ContextVar[Slots | None] = ContextVar("slots", default=None)


class Slot(NamedTuple):
    """One part of the table."""

    read: Callable[[], Tensor]
    on_device: Tensor
    on_host: Tensor


class Slots:
    """The changing inputs of one graph, in a table on its device.

    Args:
        device: the graph's device.
        capacity: size of the table in bytes.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device = device
        self._table = torch.empty(capacity, dtype=torch.uint8, device=device)
        self._staged = torch.zeros(capacity, dtype=torch.uint8, device="cpu")
        self._used = 0
        self._slots: list[Slot] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Make :func:`live` add slots; other uploads raise."""
        token = _recorded.set(self)
        try:
            with transfer.without_uploads():
                yield
        finally:
            _recorded.reset(token)

    def add(self, read: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * torch.empty((), dtype=dtype, device="meta").element_size()
        start, end = self._used, self._used + -(-size // _ALIGNED) * _ALIGNED
        if end > len(self._table):
            raise RuntimeError(f"the inputs of the graph need more than {len(self._table)} bytes")
        self._used = end
        parts = [table[start : start + size].view(dtype).view(shape) for table in (self._table, self._staged)]
        self._slots.append(Slot(read, *parts))
        return parts[0]

    def fill(self) -> None:
        """Compute every value, and copy those on the host with one upload."""
        elsewhere = []
        for slot in self._slots:
            value = slot.read()
            if value.is_cpu:
                slot.on_host.copy_(value)
            else:
                elsewhere.append((slot.on_device, value))
        if len(elsewhere) < len(self._slots):
            staged = self._staged[: self._used].pin_memory()  # new memory: the last copy may not have run yet
            self._table[: self._used].copy_(staged, non_blocking=True)
        for target, value in elsewhere:
            target.copy_(value, non_blocking=True)


def live(
    read: Callable[[], Tensor], shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``read()`` on ``device`` in ``dtype``, contiguous. Each replay of an optimizer's own graph reads it again.

    Args:
        read: returns a tensor ``[*shape]`` on the host or on a device. It must not refer to a step's tensors that later
            steps replace. It does not run during a capture.
        shape: the shape of all results.
        device: where the result is.
        dtype: dtype of the result.
    """
    slots = _recorded.get()
    if slots is not None and device == slots._device:
        return slots.add(read, shape, dtype)
    value = read().detach()
    if value.is_cpu:
        return transfer.upload(value.to(dtype).contiguous(), device)
    return value.to(device, dtype, non_blocking=True).contiguous()
