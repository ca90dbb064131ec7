"""Numbers and small tensors on a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_constants: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Fixed numbers as a vector in the dtype and on the device of ``like``; copied to the device once per process."""
    key = values, like.dtype, like.device
    if torch.compiler.is_compiling() or isinstance(like, FakeTensor):  # tensors of traces must not outlive them
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    if key not in _constants:
        _constants[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
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
    """Copy a tensor from the host to a device, through pinned memory."""
    if device.type == "cpu" or not values.is_cpu:
        return values
    return values.pin_memory().to(device, non_blocking=True)


def upload_numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that change as a vector in the dtype and on the device of ``like``."""
    return upload(torch.tensor(values, dtype=like.dtype), like.device)
