"""The dtype of state and arithmetic: float32 at least, with master copies of 16-bit parameters and no autocast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def state_dtype(p: Tensor) -> torch.dtype:
    """The dtype of accumulators: float64 for float64 parameters, else float32."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def needs_master(p: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether ``p`` needs a master copy: its dtype is narrower than its state's and its group sets the option."""
    return group["master_weights"] and p.dtype != state_dtype(p)


def master_copy(p: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state that ``master_weights`` adds to a 16-bit parameter: ``master [*shape]``, float32."""
    return {"master": p.detach().to(state_dtype(p)).contiguous()} if needs_master(p, group) else {}


def wide_value(p: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor ``[*shape]`` that an update reads and writes, in :func:`state_dtype`.

    It is the parameter if its dtype fits, else its master copy or a temporary copy. Where the parameter no longer
    equals its rounded master copy, other code has written to the parameter, and its value replaces the master's.
    """
    if "master" not in state:
        return p.detach().to(state_dtype(p))
    master = state["master"]
    return master.copy_(torch.where(master.to(p.dtype) == p, master, p.to(master.dtype)))


AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")


def without_autocast() -> AbstractContextManager[None]:
    """Disable autocast, so matrix products keep the update's dtype."""
    return _disabled() if any(map(torch.is_autocast_enabled, AUTOCAST_DEVICES)) else nullcontext()


@contextmanager
def _disabled() -> Iterator[None]:
    with ExitStack() as stack:
        for device_type in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield
