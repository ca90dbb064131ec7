"""Steps of AdamW's kernels for parameters with separate numbers, used by tests and GPU checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels import Adam, AdamInputs, Kernels


class AdamCase(NamedTuple):
    """One parameter and the numbers of its step."""

    p: Tensor
    g: Tensor
    momentum: Tensor
    second_moment: Tensor
    step: int
    betas: tuple[float, float]
    eps: float
    eps_root: float
    coefficient: float
    shrink: float
    max_gradient: float
    nesterov: bool


def step_adam(kernels: Kernels, cases: Sequence[AdamCase], scale: Tensor | None, proceed: Tensor | None = None) -> None:
    """Step every parameter once, in place."""
    plan = kernels.plan_adam([Adam(*case[:4], case.nesterov) for case in cases])
    numbers = [(*case.betas, case.eps, case.eps_root, case.max_gradient) for case in cases]
    factors = torch.tensor([(case.coefficient, case.shrink) for case in cases], dtype=torch.float64)
    plan.step(
        AdamInputs(
            [case.p for case in cases],
            [case.g for case in cases],
            torch.tensor(numbers, dtype=torch.float64),
            torch.tensor([case.step for case in cases], device=cases[0].p.device),
            factors[:, 0],
            factors[:, 1],
            scale,
        ),
        proceed=proceed,
    )
