"""Steps with ``proceed`` (:meth:`pylo_zoo.kernels.base.KernelPlan.advance`), for the kernels of any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from adam_cases import AdamCase, step_adam
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Kernels, Normalized, ScratchBuffer, Task
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

Made = tuple[list[Task], Rule, Sequence[Layer]]


def step_everything(kernels: Kernels, case: Made, proceed: Tensor | None) -> list[Tensor]:
    """One step with each kernel that writes parameters or state, and all tensors that they write."""
    tasks, rule, layers = case
    factors = [0.1 / (k + 1) for k in range(len(tasks))], [0.01 * k for k in range(len(tasks))]
    advanced = kernels.advance(tasks, rule, None, proceed=proceed)
    kernels.move(advanced, layers, *factors, proceed)
    steps = kernels.steps(advanced, layers, ScratchBuffer(), proceed)
    other = [task.p * 2 for task in tasks]
    normalized = [Normalized(p, step.clone(), (-1,), 1e-9) for p, step in zip(other, steps, strict=True)]
    kernels.move_normalized(normalized, *factors, proceed)
    adam = [task.p * 3 for task in tasks]
    moments = [[torch.ones_like(p, dtype=torch.float32)[None] for _ in range(2)] for p in adam]
    cases = [
        AdamCase(p, task.g, m, v, 1, (0.9, 0.95), 1e-8, 0.0, 0.1, 0.01, 1.0, False)
        for p, task, (m, v) in zip(adam, tasks, moments, strict=True)
    ]
    step_adam(kernels, cases, None, proceed)
    state = [tensor for task in tasks for tensor in (task.p, *task.state.values())]
    return [*state, *other, *adam, *(each for pair in moments for each in pair)]


def check_proceed(kernels: Kernels, make: Callable[[], Made], device: str) -> None:
    """1 equals None bit for bit, and with 0 nothing changes."""
    flags = {value: torch.tensor([value], dtype=torch.int32, device=device) for value in (0, 1)}
    always, with_one = (step_everything(kernels, make(), each) for each in (None, flags[1]))
    assert all(map(_same, always, with_one))
    case = make()
    before = [tensor.clone() for task in case[0] for tensor in (task.p, *task.state.values())]
    values = [task.p.clone() for task in case[0]]
    before += [p * 2 for p in values] + [p * 3 for p in values]
    before += [torch.ones_like(p, dtype=torch.float32)[None] for p in values for _ in range(2)]
    after = step_everything(kernels, case, flags[0])
    assert all(map(_same, before, after))
    assert not any(map(_same, before, always))  # so each of them would have changed


def check_refused(kernels: Kernels, make: Callable[[], Made], device: str) -> None:
    """Another dtype, number of elements or device is an error, before anything is written."""
    wrong = [
        torch.ones(1, dtype=torch.int64, device=device),
        torch.ones(2, dtype=torch.int32, device=device),
        torch.ones(1, dtype=torch.int32, device="meta"),
    ]
    for proceed in wrong:
        tasks, rule, layers = make()
        written = [tensor for task in tasks for tensor in (task.p, *task.state.values())]
        advanced, factors = kernels.advance(tasks, rule, None), ([0.1] * len(tasks), [0.0] * len(tasks))
        before = [tensor.clone() for tensor in written]
        p = tasks[0].p
        normalized = [Normalized(p, torch.ones_like(p, dtype=torch.float32), (-1,), 1e-9)]
        moment = torch.ones_like(p, dtype=torch.float32)[None]
        adam = [AdamCase(p, p, moment, moment, 1, (0.9, 0.95), 1e-8, 0.0, 0.1, 0.0, 1.0, False)]
        calls: list[Callable[[], object]] = [
            lambda c=(tasks, rule), wrong=proceed: kernels.advance(*c, None, proceed=wrong),
            lambda c=(advanced, layers, *factors), wrong=proceed: kernels.move(*c, wrong),
            lambda c=(advanced, layers), wrong=proceed: kernels.steps(*c, ScratchBuffer(), wrong),
            lambda c=normalized, wrong=proceed: kernels.move_normalized(c, [0.1], [0.0], wrong),
            lambda c=adam, wrong=proceed: step_adam(kernels, c, None, wrong),
        ]
        for k, call in enumerate(calls):
            try:
                call()
            except ZooError:
                continue
            raise AssertionError(f"call {k} accepts {proceed}")
        assert all(map(_same, before, written))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
