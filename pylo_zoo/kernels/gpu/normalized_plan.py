"""CELO2's last pass on a GPU, as a plan for the same parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels import guard
from pylo_zoo.kernels.base import Normalized
from pylo_zoo.kernels.gpu.records import TYPES, factors_of, upload
from pylo_zoo.ops.apply import foreach, together


class Stack(NamedTuple):
    """Parameters of one shape, dtype and normalizer."""

    members: list[int]
    positions: Tensor
    """``members`` on the device."""
    over: tuple[int, ...]
    eps: float


class GpuNormalizedPlan:
    """:class:`~pylo_zoo.kernels.base.NormalizedPlan` for a GPU.

    It runs torch operations, a few per shape: Newton–Schulz, which comes before this, costs far more.
    """

    def __init__(self, tasks: Sequence[Normalized]) -> None:
        self._device = tasks[0].p.device
        self._sizes = [task.p.numel() for task in tasks]
        self._stacks: list[Stack] = []
        for part in together([task.step for task in tasks]):
            groups: dict[tuple[Any, ...], list[int]] = {}
            for k in part:
                groups.setdefault((tasks[k].p.shape, tasks[k].p.dtype, tasks[k].over, tasks[k].eps), []).append(k)
            self._stacks += [
                Stack(members, upload(torch.tensor(members), self._device), over, eps)
                for (_, _, over, eps), members in groups.items()
            ]

    def move(
        self,
        values: Sequence[Tensor],
        steps: Sequence[Tensor],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        guard.check_steps(values, steps, self._sizes, tuple(TYPES), self._device)
        guard.check_numbers("coefficient", coefficient, len(values))
        guard.check_numbers("shrink", shrink, len(values))
        guard.check_proceed(proceed, self._device)
        rates, decays = factors_of(coefficient, self._device), factors_of(shrink, self._device)
        for members, positions, over, eps in self._stacks:
            chosen = [values[k] for k in members]
            _move_stacked(chosen, [steps[k] for k in members], rates[positions], decays[positions], over, eps, proceed)


def _move_stacked(
    values: Sequence[Tensor],
    deltas: Sequence[Tensor],
    coefficient: Tensor,
    shrink: Tensor,
    over: tuple[int, ...],
    eps: float,
    proceed: Tensor | None,
) -> None:
    """CELO2's last pass for parameters of one shape, dtype and normalizer. ``coefficient`` and ``shrink``: ``[N]``."""
    steps, old = torch.stack(list(deltas)), torch.stack(list(values))
    wide = old.float()
    scales = torch.rsqrt(eps + steps.square().mean(dim=over, keepdim=True))
    column = (-1, *[1] * (steps.ndim - 1))
    moved = wide - steps.mul_(scales * coefficient.view(column)).add_(wide * shrink.view(column))
    if proceed is not None:
        moved = torch.where(proceed.view([1] * moved.ndim) != 0, moved.to(old.dtype), old)
    foreach._foreach_copy_(list(values), moved.unbind())
