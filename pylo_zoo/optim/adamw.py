"""AdamW by fused kernels: for the parameters that CELO2 leaves to it, and under celo-adam's step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels import Adam, Kernels
from pylo_zoo.optim.base import Item, LearnedOptimizer


class AdamW(NamedTuple):
    """``p ← p − coefficient·m̂/(sqrt(v̂ + eps_root) + eps) − shrink·p`` (SPEC §5, §6)."""

    betas: tuple[float, float]
    eps: float
    eps_root: float
    coefficient: float | Tensor
    shrink: float | Tensor
    max_gradient: float = math.inf


def adam_fused(
    optimizer: LearnedOptimizer,
    items: Sequence[Item],
    options: Callable[[int], AdamW],
    plain: Callable[[int], None],
) -> None:
    """Step every item whose device has kernels with these, many at a time, and the others by ``plain``.

    Args:
        optimizer: whose backend decides.
        items: parameters, with ``momentum`` and ``second_moment`` ``[1, *shape]`` and ``step`` in their state.
        options: of the item at a position.
        plain: the plain step of the item at a position, which counts ``step`` itself.
    """
    launches: dict[torch.device, tuple[Kernels, list[Item], list[Adam]]] = {}
    for k, item in enumerate(items):
        kernels, asked = optimizer.kernels_of(item.parameter), options(k)
        on_device = any(isinstance(x, Tensor) and x.device.type != "cpu" for x in (asked.coefficient, asked.shrink))
        if kernels is None or on_device:  # kernels take numbers, and a device is not asked for them
            plain(k)
            item.written()
            continue
        _, taken, tasks = launches.setdefault(item.parameter.device, (kernels, [], []))
        taken.append(item)
        tasks.append(_task(item, asked, kernels))
    for kernels, taken, tasks in launches.values():
        kernels.adam(tasks, taken[0].scale)
        for item in taken:
            item.written()


def _task(item: Item, asked: AdamW, kernels: Kernels) -> Adam:
    item.state["step"] += 1
    p, g = item.taken(kernels.dtypes)
    return Adam(
        p,
        g,
        item.state["momentum"],
        item.state["second_moment"],
        step=int(item.state["step"]),
        betas=asked.betas,
        eps=asked.eps,
        eps_root=asked.eps_root,
        coefficient=float(asked.coefficient),
        shrink=float(asked.shrink),
        max_gradient=asked.max_gradient,
        nesterov=False,
    )
