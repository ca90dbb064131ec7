"""Updates on their way to the parameters, one at a time or many together.

Together means torch's operations over lists, ``torch._foreach_*``, which the ``foreach`` forms of torch's own
optimizers run: some calls a list instead of some a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

foreach: Any = torch
"""Where the operations over lists are; no stub of torch's names them."""
TOGETHER = {"cpu": 1 << 18}
"""Values that are stepped together at most, unless one parameter is larger, by device: a step's temporaries, some times
as large, stay small, and a CPU gains nothing from more."""
TOGETHER_ELSEWHERE = 1 << 22
"""The same on other devices."""


def as_scalar(lr: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A learning rate to reckon with: a number as it is, a tensor of one element without axes and in ``dtype``.

    Nothing is read back from a device, and a compiled step sees a tensor where the caller keeps one.
    """
    return lr.to(dtype).reshape(()) if isinstance(lr, Tensor) else lr


def decay_and_step(p: Tensor, update: Tensor, lr: float | Tensor, weight_decay: float) -> None:
    """``p ← p·(1 − lr·weight_decay) − lr·update``, in place, rounded to ``p``'s dtype once.

    Args:
        p: ``[*shape]``.
        update: ``[*shape]``, in the dtype that the step is computed in.
        lr: a number, or a tensor without axes in the update's dtype (:func:`as_scalar`).
        weight_decay: decoupled: it does not pass through the update.
    """
    wide = p.to(update.dtype)
    wide.mul_(1 - lr * weight_decay).sub_(lr * update)
    if wide is not p:
        p.copy_(wide)


def decay_and_step_together(
    params: Sequence[Tensor], updates: Sequence[Tensor], lr: float | Tensor, weight_decay: float
) -> None:
    """:func:`decay_and_step` on parameters whose updates, which are lost, are of one dtype, on one device."""
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


def together(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Positions of tensors to step together: of one dtype and device, equal shapes next to each other.

    Each part has as many values as :data:`TOGETHER` says at most, or is one tensor. Empty tensors are in none.
    """
    alike: dict[tuple[Any, ...], dict[tuple[int, ...], list[int]]] = {}
    for k, tensor in enumerate(tensors):
        if tensor.numel():
            shapes = alike.setdefault((tensor.dtype, tensor.device), {})
            shapes.setdefault(tuple(sorted(tensor.shape)), []).append(k)
    parts: list[list[int]] = []
    for (_, device), shapes in alike.items():
        held = most = TOGETHER.get(device.type, TOGETHER_ELSEWHERE)
        for k in (k for positions in shapes.values() for k in positions):
            if held + tensors[k].numel() > most:
                parts.append([])
                held = 0
            parts[-1].append(k)
            held += tensors[k].numel()
    return parts
