"""What a training task is, and what the tasks of this package are made of.

Everything random comes from a seed and a counter: ``batch`` gives the batch of any step without those before it, so
that a run goes on after an interruption as if there had been none, and two optimizers see the same data.
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

_EPOCH_SALT = 0x9E3779B97F4A7C15  # odd, so that seeds and epochs are spread over all 64 bits


@dataclass(frozen=True)
class Task:
    """A model, its data and its loss.

    Attributes:
        name: of the task.
        summary: what it is, in a sentence.
        model: a new model, its weights drawn with the seed.
        batch: of a seed and a step (0-based) the tensors that ``loss`` gets.
        loss: of a model and a batch, to be minimised; a scalar.
        evaluate: what a model is worth on data that is held out, by name; the first one is the task's metric.
        steps: of a run, unless somebody says otherwise.
        higher_is_better: whether the metric is one to be maximised.
        floor: the least loss that can be reached, where it is known.
        lr: a starting point of the learning rate, by optimizer.
        options: what the task was made with.
        data: where its data comes from, and under which licence.
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


def generator(*words: int) -> torch.Generator:
    """A generator for the numbers ``words``: the same for the same, unrelated for others."""
    state = 0
    for word in words:
        state = (state ^ (word + 1)) * _EPOCH_SALT & 0x7FFF_FFFF_FFFF_FFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state)


def chosen(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Indices ``[batch_size]`` of a step's examples: each of ``count`` once an epoch, in another order each time."""
    first = step * batch_size
    picked = torch.arange(first, first + batch_size)
    indices = torch.empty(batch_size, dtype=torch.long)
    for epoch in range(first // count, (first + batch_size - 1) // count + 1):
        inside = picked // count == epoch
        indices[inside] = torch.randperm(count, generator=generator(seed, epoch))[picked[inside] % count]
    return indices


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """``model`` with weights drawn from the seed: matrices N(0, 1/fan_in), biases 0, other vectors as they are.

    torch's own initialisers draw from the process's generator, so that what else it was used for would show.
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
