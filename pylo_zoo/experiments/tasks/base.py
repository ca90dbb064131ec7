"""The training task class, and helpers for the tasks in this package.

Random numbers depend only on a seed and a counter: ``batch`` returns the batch of any step without computing the
previous ones. A resumed run therefore sees the same data as an uninterrupted one, and so do two optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Tensors of one step, on the CPU; the training loop moves them."""
Metrics = dict[str, float]

_EPOCH_SALT = 0x9E3779B97F4A7C15  # odd, to spread seeds and epochs over all 64 bits


@dataclass(frozen=True)
class Task:
    """A model, its data and its loss.

    Attributes:
        name: name of the task.
        summary: one sentence about it.
        model: builds a model with weights drawn from a seed.
        batch: maps a seed and a 0-based step to the tensors that ``loss`` takes.
        loss: maps a model and a batch to the scalar to minimize.
        evaluate: metrics of a model on held-out data, by name; the first one is the task's metric.
        steps: default number of steps.
        higher_is_better: whether a higher metric is better.
        floor: the lowest possible loss, if it is known.
        lr: suggested learning rate by optimizer.
        options: the options that the task was built with.
        data: source and license of the data.
    """

    name: str
    summary: str
    model: Callable[[int], nn.Module]
    batch: Callable[[int, int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], Metrics]
    steps: int = 500
    higher_is_better: bool = False
    floor: float | None = None
    lr: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""


def generator(*numbers: int) -> torch.Generator:
    """A random generator seeded with ``numbers``. Other numbers give an unrelated generator."""
    state = 0
    for number in numbers:
        state = (state ^ (number + 1)) * _EPOCH_SALT & 0x7FFF_FFFF_FFFF_FFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state)


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Indices ``[batch_size]`` of a step's examples: each of ``count`` once per epoch, reshuffled every epoch."""
    first = step * batch_size
    positions = torch.arange(first, first + batch_size)
    indices = torch.empty(batch_size, dtype=torch.long)
    for epoch in range(first // count, (first + batch_size - 1) // count + 1):
        inside = positions // count == epoch
        indices[inside] = torch.randperm(count, generator=generator(seed, epoch))[positions[inside] % count]
    return indices


def initialize(model: nn.Module, seed: int) -> nn.Module:
    """Draw the weights of ``model``, and return it: matrices N(0, 1/fan_in), biases 0; other vectors stay unchanged.

    torch's initializers use the global generator, whose state depends on everything else in the process.
    """
    source = generator(seed, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.ndim >= 2:
                fan_in = math.prod(p.shape[1:])
                p.copy_(torch.randn(p.shape, generator=source) / math.sqrt(fan_in))
    return model
