"""The peak memory of each optimizer's step in a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pylo_zoo.experiments import peak_memory, tasks
from pylo_zoo.experiments.train import recipes
from pylo_zoo.fetch import Access

LIMIT = 300
"""Time limit of the measuring process in seconds."""
METHODS = {
    "cuda": "torch.cuda.max_memory_allocated over the third step, minus the memory allocated before it",
    "linux": "the kernel's peak resident memory (VmHWM) over the third step in a separate process, minus the resident "
    "memory before it; not meaningful below 1 MB",
    "none": "not measured on this system",
}
"""The texts of :func:`pylo_zoo.experiments.peak_memory.method`."""


@dataclass(frozen=True)
class Peak:
    """The peak memory of a step in bytes, or None if it was not measured, and the method or reason."""

    bytes: int | None
    method: str


def measured(task: str, options: Mapping[str, Any], optimizer: str, device: str) -> Peak:
    """Measure the peak of the optimizer's third step on ``task`` in a separate process.

    If the process fails, ``bytes`` is None.
    """
    peak = peak_memory.in_fresh_process(of_third_step, device, task, dict(options), optimizer, limit=LIMIT)
    method = METHODS[peak_memory.method(device)]
    failed = peak is None and method != METHODS["none"]
    return Peak(peak, "the measuring process failed" if failed else method)


def recorded(entry: Mapping[str, Any]) -> Peak | None:
    """The peak in a report's ``entry`` of an optimizer, or None if it must be measured again."""
    peak = Peak(entry["peak_bytes"], entry["peak_method"])
    return peak if peak.bytes is not None or peak.method == METHODS["none"] else None


def of_third_step(device: str, task_name: str, options: Mapping[str, Any], optimizer_name: str) -> int | None:
    """The peak of the third step, when the optimizer's state and the gradients exist already."""
    task = tasks.make(task_name, options)
    recipe = recipes.find_recipe(optimizer_name, access=Access(offline=True))
    model = task.model(0).to(device)
    optimizer = recipe.make(model, steps=100)
    peak = None
    for step in range(3):
        optimizer.zero_grad()
        loss = task.loss(model, tuple(each.to(device) for each in task.batch(0, step)))
        loss.backward()
        value = loss.item()
        del loss
        closures = [lambda value=value: value] if recipe.needs_loss else []
        peak = peak_memory.of_step(partial(optimizer.step, *closures), device)
    return peak
