"""Apply updates to parameters, one at a time or many together.

Many together uses ``torch._foreach_*``, as the ``foreach`` option of torch's optimizers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

foreach: Any = torch
"""torch, untyped: its stubs lack ``_foreach_*``."""
TOGETHER = {"cpu": 1 << 18}
"""Maximum number of elements stepped together, per device type, unless one parameter is larger. This limits a step's
temporaries, which are a few times as large. A CPU is not faster with more."""
TOGETHER_ELSEWHERE = 1 << 22
"""The same for other devices."""


def as_scalar(lr: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """The learning rate, normalized for arithmetic: a float as is, a one-element tensor as 0-d in ``dtype``.

    A tensor is not read back from its device, and a compiled step keeps it as a tensor.
    """
    return lr.to(dtype).reshape(()) if isinstance(lr, Tensor) else lr


def decay_and_step(p: Tensor, update: Tensor, lr: float | Tensor, weight_decay: float) -> None:
    """``p ← p·(1 − lr·weight_decay) − lr·update``, in place, rounded to ``p``'s dtype once.

    Args:
        p: ``[*shape]``.
        update: ``[*shape]``, in the dtype of the computation.
        lr: a number, or a 0-d tensor in the update's dtype (:func:`as_scalar`).
        weight_decay: decoupled weight decay.
    """
    wide = p.to(update.dtype)
    wide.mul_(1 - lr * weight_decay).sub_(lr * update)
    if wide is not p:
        p.copy_(wide)


def decay_and_step_together(
    params: Sequence[Tensor], updates: Sequence[Tensor], lr: float | Tensor, weight_decay: float
) -> None:
    """:func:`decay_and_step` for many parameters. Updates have one dtype and device, and are overwritten."""
    dtype, device = updates[0].dtype, updates[0].device
    wide = [p.to(dtype) for p in params]
    if isinstance(lr, Tensor):
        step = lr.to(device, dtype).reshape(())
        foreach._foreach_mul_(updates, step)
        foreach._foreach_mul_(wide, 1 - step * weight_decay)
        foreach._foreach_sub_(wide, updates)
    else:
        if weight_decay:
            foreach._foreach_mul_(wide, 1 - lr * weight_decay)
        foreach._foreach_sub_(wide, updates, alpha=lr)
    for p, value in zip(params, wide, strict=True):
        if value is not p:
            p.copy_(value)


def together(tensors: Sequence[Tensor], elsewhere: int = 0) -> list[list[int]]:
    """Partition the positions of ``tensors`` into lists to step together.

    The tensors of a list have one dtype and device, with equal shapes next to each other. A list has at most
    :data:`TOGETHER` elements, or ``elsewhere`` on other devices than a CPU if given, or is one tensor. Empty tensors
    are left out.
    """
    alike: dict[tuple[Any, ...], dict[tuple[int, ...], list[int]]] = {}
    for k, tensor in enumerate(tensors):
        if tensor.numel():
            shapes = alike.setdefault((tensor.dtype, tensor.device), {})
            shapes.setdefault(tuple(sorted(tensor.shape)), []).append(k)
    parts: list[list[int]] = []
    for (_, device), shapes in alike.items():
        held = most = TOGETHER.get(device.type, elsewhere or TOGETHER_ELSEWHERE)
        for k in (k for positions in shapes.values() for k in positions):
            if held + tensors[k].numel() > most:
                parts.append([])
                held = 0
            parts[-1].append(k)
            held += tensors[k].numel()
    return parts
