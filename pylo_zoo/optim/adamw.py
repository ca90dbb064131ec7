"""AdamW by fused kernels: for the parameters that CELO2 leaves to it, and under celo-adam's step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from pylo_zoo.kernels import Adam, Kernels
from pylo_zoo.ops.apply import foreach
from pylo_zoo.optim.base import LearnedOptimizer, ParamStep


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
    items: Sequence[ParamStep],
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
    launches: dict[int, tuple[Kernels, list[ParamStep], list[AdamW]]] = {}
    known: dict[int, Kernels | None] = {}
    for k, item in enumerate(items):
        kind, asked = id(item.meta), options(k)  # of a device and dtype
        if kind not in known:
            known[kind] = optimizer.kernels_of(item.parameter)
        kernels = known[kind]
        if kernels is None or _is_elsewhere(asked.coefficient) or _is_elsewhere(asked.shrink):
            plain(k)
            item.write_back()
            continue
        _, taken, of_taken = launches.setdefault(kind, (kernels, [], []))
        taken.append(item)
        of_taken.append(asked)
    for kernels, taken, of_taken in launches.values():
        counters = [item.state["step"] for item in taken]
        foreach._foreach_add_(counters, 1)
        steps = [int(counter) for counter in counters]
        tasks = [_task(*each, kernels) for each in zip(taken, of_taken, steps, strict=True)]
        kernels.adam(tasks, taken[0].scale, checked=True)
        for item in taken:
            item.write_back()


def _is_elsewhere(factor: float | Tensor) -> bool:
    """Whether a factor is on a device, which is not asked for it: kernels take numbers."""
    return isinstance(factor, Tensor) and factor.device.type != "cpu"


def _task(item: ParamStep, asked: AdamW, step: int, kernels: Kernels) -> Adam:
    betas, eps, eps_root, coefficient, shrink, max_gradient = asked
    moments = item.state["momentum"], item.state["second_moment"]
    rest = float(coefficient), float(shrink), max_gradient, False
    return Adam(*item.kernel_inputs(kernels.dtypes), *moments, step, betas, eps, eps_root, *rest)
