"""Numbers and small tensors on a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.capture import is_capturing

_forbidden: ContextVar[bool] = ContextVar("forbidden", default=False)
_constants: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Fixed numbers as a vector in the dtype and on the device of ``like``; copied to the device once per process."""
    key = values, like.dtype, like.device
    if torch.compiler.is_compiling() or isinstance(like, FakeTensor):  # tensors of traces must not outlive them
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    if key not in _constants:
        uploaded = upload(torch.tensor(values, dtype=like.dtype), like.device)
        if is_capturing():  # it has no value before the first replay
            return uploaded
        _constants[key] = uploaded
    return _constants[key]


def number(value: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A number, or a tensor of one element, as a scalar in the dtype (or ``dtype``) and on the device of ``like``.

    A scalar on the host is read and passed as an argument of a kernel, because copying it would wait for the device.
    """
    dtype = dtype or like.dtype
    if isinstance(value, Tensor):
        if value.device == like.device or torch.compiler.is_compiling() or not value.is_cpu:
            return value.to(device=like.device, dtype=dtype).reshape(())
        value = value.item()
    value = value if isinstance(value, int) else float(value)
    return torch.full((), value, dtype=dtype, device=like.device)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device, through pinned memory.

    In a capture, the graph copies the same memory at each replay, so it is never used again.

    Raises:
        ZooError: the reserve of pinned memory for captures is used up.
    """
    if device.type == "cpu" or not values.is_cpu:
        return values
    if device.type == "meta":
        return values.to(device)
    if _forbidden.get():
        raise RuntimeError(f"a step of these kernels copies {values.numel()} numbers that no slot declares.")
    if is_capturing():
        return _reserve.take(values).to(device, non_blocking=True)
    _reserve.refill()
    return values.pin_memory().to(device, non_blocking=True)


@contextmanager
def without_uploads() -> Iterator[None]:
    """:func:`upload` raises ``RuntimeError``: a graph would repeat what it copies."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


class _Reserve:
    """Pinned memory for captures, which cannot allocate any. Steps outside captures refill it."""

    SIZE = 1 << 20
    ALIGNED = 64

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._taken = 0
        self._kept: list[Tensor] = []
        self._missing = 0

    def refill(self) -> None:
        size = max(self.SIZE, 2 * self._missing)
        if self._block is None or len(self._block) - self._taken < size // 2:
            self._block = torch.empty(size, dtype=torch.uint8, device="cpu").pin_memory()
            self._taken = self._missing = 0

    def take(self, values: Tensor) -> Tensor:
        """A copy of ``values`` in pinned memory that stays allocated."""
        size = values.numel() * values.element_size()
        aligned = -(-size // self.ALIGNED) * self.ALIGNED
        if self._block is None or len(self._block) - self._taken < aligned:
            self._missing += aligned
            raise ZooError(
                f"A capture needs {size} bytes of pinned memory, more than the last step prepared.",
                "Run a step outside the capture, with the same parameters and gradients, then capture again.",
            )
        if not self._taken:
            self._kept.append(self._block)
        taken = self._block[self._taken : self._taken + size]
        self._taken += aligned
        return taken.view(values.dtype).view(values.shape).copy_(values)


_reserve = _Reserve()


def upload_numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that change as a vector in the dtype and on the device of ``like``."""
    return upload(torch.tensor(values, dtype=like.dtype), like.device)
