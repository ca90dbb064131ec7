"""AdamW with fused kernels: for the parameters that CELO2 does not learn, and for celo-adam's step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from pylo_zoo.kernels import Adam, Kernels
from pylo_zoo.ops.apply import foreach
from pylo_zoo.optim.base import LearnedOptimizer, ParamStep


class AdamW(NamedTuple):
    """Options of ``p ← p − coefficient·m̂/(sqrt(v̂ + eps_root) + eps) − shrink·p`` (SPEC §5, §6)."""

    betas: tuple[float, float]
    eps: float
    eps_root: float
    coefficient: float | Tensor
    shrink: float | Tensor
    max_gradient: float = math.inf


def adam_fused(
    optimizer: LearnedOptimizer,
    items: Sequence[ParamStep],
    options: Callable[[int], AdamW],
    update_eager: Callable[[int], None],
) -> None:
    """Update items in batches with the kernels of their device, or one by one without kernels.

    Args:
        optimizer: chooses the kernels.
        items: parameters with ``momentum`` and ``second_moment`` ``[1, *shape]`` and ``step`` in their state.
        options: returns the options of the item at an index.
        update_eager: updates the item at an index and advances its ``step``.
    """
    batches: dict[int, tuple[Kernels, list[ParamStep], list[AdamW]]] = {}
    kernels_of: dict[int, Kernels | None] = {}
    for k, item in enumerate(items):
        kind, item_options = id(item.meta), options(k)  # one MetaNetwork exists per device and dtype
        if kind not in kernels_of:
            kernels_of[kind] = optimizer.kernels_of(item.parameter)
        kernels = kernels_of[kind]
        if kernels is None or _is_on_device(item_options.coefficient) or _is_on_device(item_options.shrink):
            update_eager(k)
            item.write_back()
            continue
        _, batch, batch_options = batches.setdefault(kind, (kernels, [], []))
        batch.append(item)
        batch_options.append(item_options)
    for kernels, batch, batch_options in batches.values():
        counters = [item.state["step"] for item in batch]
        foreach._foreach_add_(counters, 1)
        steps = [int(counter) for counter in counters]
        tasks = [_task(*each, kernels) for each in zip(batch, batch_options, steps, strict=True)]
        kernels.adam(tasks, batch[0].scale, checked=True)
        for item in batch:
            item.write_back()


def _is_on_device(factor: float | Tensor) -> bool:
    """Whether a factor is on an accelerator. Kernels need numbers, and reading it would wait for the device."""
    return isinstance(factor, Tensor) and factor.device.type != "cpu"


def _task(item: ParamStep, options: AdamW, step: int, kernels: Kernels) -> Adam:
    betas, eps, eps_root, coefficient, shrink, max_gradient = options
    moments = item.state["momentum"], item.state["second_moment"]
    rest = float(coefficient), float(shrink), max_gradient, False
    return Adam(*item.kernel_inputs(kernels.dtypes), *moments, step, betas, eps, eps_root, *rest)
