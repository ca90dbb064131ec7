"""The parameters for benchmarks: shapes of real models, and two extremes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pylo_zoo.errors import UsageError, did_you_mean

VALUE, GRADIENT = 0.02, 0.01
"""Standard deviations of parameters and gradients."""


@dataclass(frozen=True)
class Entry:
    """``count`` parameters of one shape, in torch's layout ``(out, in, *spatial)``.

    ``embedding`` marks a table ``(vocabulary, dim)``. Its layout is "jax", and its route is AdamW.
    """

    name: str
    shape: tuple[int, ...]
    count: int = 1
    embedding: bool = False


@dataclass(frozen=True)
class ShapeSet:
    """A named set of parameter shapes."""

    name: str
    about: str
    entries: tuple[Entry, ...]

    @property
    def tensors(self) -> int:
        return sum(entry.count for entry in self.entries)

    @property
    def parameters(self) -> int:
        return sum(entry.count * math.prod(entry.shape) for entry in self.entries)

    def make(self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Parameters:
        """Create parameters with constant gradients. Equal seeds give equal values, up to rounding to ``dtype``."""
        generator = torch.Generator().manual_seed(seed)

        def make_parameter(shape: tuple[int, ...]) -> nn.Parameter:
            value = VALUE * torch.randn(shape, generator=generator)
            p = nn.Parameter(value.to(device, dtype))
            p.grad = (GRADIENT * torch.randn(shape, generator=generator)).to(device, dtype)
            return p

        return Parameters(
            [(entry, [make_parameter(entry.shape) for _ in range(entry.count)]) for entry in self.entries]
        )


class Parameters:
    """The parameters of a shape set, by entry."""

    def __init__(self, by_entry: Sequence[tuple[Entry, list[nn.Parameter]]]) -> None:
        self.by_entry = by_entry

    def __iter__(self) -> Iterator[nn.Parameter]:
        return (p for _, params in self.by_entry for p in params)

    def groups(self, *, learned: bool = False) -> list[dict[str, Any]]:
        """Groups as in :func:`pylo_zoo.optim.param_groups`. With ``learned``, embeddings use the learned rule too."""
        tables = [p for entry, params in self.by_entry for p in params if entry.embedding]
        others = [p for entry, params in self.by_entry for p in params if not entry.embedding]
        rule = "learned" if learned else "adamw"
        groups = [{"params": tables, "layout": "jax", "rule": rule}, {"params": others, "layout": "torch"}]
        return [group for group in groups if group["params"]]


def _gpt(width: int, depth: int, vocabulary: int, context: int) -> tuple[Entry, ...]:
    """A GPT-2 decoder with biases, whose output layer is tied to the embedding."""
    return (
        Entry("tokens", (vocabulary, width), embedding=True),
        Entry("positions", (context, width), embedding=True),
        Entry("attention in", (3 * width, width), depth),
        Entry("attention out", (width, width), depth),
        Entry("MLP in", (4 * width, width), depth),
        Entry("MLP out", (width, 4 * width), depth),
        Entry("attention in bias", (3 * width,), depth),
        Entry("MLP in bias", (4 * width,), depth),
        Entry("norms, other biases", (width,), 6 * depth + 2),
    )


def _resnet18(classes: int) -> tuple[Entry, ...]:
    """ResNet-18 with a 3×3 stem for small images (arXiv 1512.03385)."""
    entries = [Entry("stem", (64, 3, 3, 3)), Entry("stage 1", (64, 64, 3, 3), 4), Entry("norms 64", (64,), 10)]
    for stage, width in enumerate((128, 256, 512), start=2):
        entries += [
            Entry(f"stage {stage} first", (width, width // 2, 3, 3)),
            Entry(f"stage {stage}", (width, width, 3, 3), 3),
            Entry(f"stage {stage} shortcut", (width, width // 2, 1, 1)),
            Entry(f"norms {width}", (width,), 10),
        ]
    return (*entries, Entry("classifier", (classes, 512)), Entry("classifier bias", (classes,)))


SHAPE_SETS: Mapping[str, ShapeSet] = {
    each.name: each
    for each in (
        ShapeSet("gpt", "a small GPT: width 320, 6 blocks, 5,376 tokens, tied output", _gpt(320, 6, 5376, 256)),
        ShapeSet("resnet18", "a ResNet-18 for 32×32 images, 10 classes: 4-d convolutions", _resnet18(10)),
        ShapeSet("square", "one 4096×4096 matrix", (Entry("weight", (4096, 4096)),)),
        ShapeSet("many", "1,000 vectors of 1,024: the cost per tensor", (Entry("vector", (1024,), 1000),)),
        ShapeSet(
            "tiny",
            "for tests only",
            (
                Entry("tokens", (12, 8), embedding=True),
                Entry("weight", (8, 8), 2),
                Entry("convolution", (4, 4, 3, 3)),
                Entry("bias", (8,), 2),
                Entry("scale", ()),
            ),
        ),
    )
}
"""All shape sets by name."""


def find_shape_set(name: str) -> ShapeSet:
    """The shape set ``name``.

    Raises:
        ZooError: it does not exist.
    """
    if name not in SHAPE_SETS:
        listing = f"Shape sets: {', '.join(SHAPE_SETS)}, all."
        raise UsageError(f"Unknown shape set {name!r}.", did_you_mean(name, SHAPE_SETS, listing))
    return SHAPE_SETS[name]
