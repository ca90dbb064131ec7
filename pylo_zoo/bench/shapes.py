"""The parameters that steps are timed on: sets of shapes, as real models have them, and two extremes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pylo_zoo.errors import ZooError

VALUE, GRADIENT = 0.02, 0.01
"""Standard deviations of parameters and gradients."""


@dataclass(frozen=True)
class Entry:
    """Parameters of one shape, in torch's layout ``(out, in, *spatial)``.

    ``embedding`` is a table ``(vocabulary, dim)``: layout "jax", and AdamW's where an optimizer routes.
    """

    name: str
    shape: tuple[int, ...]
    count: int = 1
    embedding: bool = False


@dataclass(frozen=True)
class ShapeSet:
    """Shapes with names and counts."""

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
        """New parameters with gradients that stay as they are; the same for the same seed, up to rounding."""
        generator = torch.Generator().manual_seed(seed)

        def one(shape: tuple[int, ...]) -> nn.Parameter:
            value = VALUE * torch.randn(shape, generator=generator)
            p = nn.Parameter(value.to(device, dtype))
            p.grad = (GRADIENT * torch.randn(shape, generator=generator)).to(device, dtype)
            return p

        return Parameters([(entry, [one(entry.shape) for _ in range(entry.count)]) for entry in self.entries])


class Parameters:
    """What a shape set makes."""

    def __init__(self, made: Sequence[tuple[Entry, list[nn.Parameter]]]) -> None:
        self.made = made

    def __iter__(self) -> Iterator[nn.Parameter]:
        return (p for _, params in self.made for p in params)

    def groups(self, *, learned: bool = False) -> list[dict[str, Any]]:
        """Groups as :func:`pylo_zoo.optim.param_groups` makes them; ``learned`` gives embeddings to the rule, too."""
        tables = [p for entry, params in self.made for p in params if entry.embedding]
        others = [p for entry, params in self.made for p in params if not entry.embedding]
        rule = "learned" if learned else "adamw"
        found = [{"params": tables, "layout": "jax", "rule": rule}, {"params": others, "layout": "torch"}]
        return [group for group in found if group["params"]]


def _gpt(width: int, depth: int, vocabulary: int, context: int) -> tuple[Entry, ...]:
    """A decoder with biases, its output layer tied to the embedding (GPT-2)."""
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
    """ResNet-18 with the 3×3 stem of small images (arXiv 1512.03385)."""
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
        ShapeSet("many", "1,000 vectors of 1,024: the cost of a tensor", (Entry("vector", (1024,), 1000),)),
        ShapeSet(
            "tiny",
            "for tests: nothing that one would time",
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
"""Every shape set by name."""


def find_shape_set(name: str) -> ShapeSet:
    """The shape set called ``name``.

    Raises:
        ZooError: there is none.
    """
    if name not in SHAPE_SETS:
        near = difflib.get_close_matches(name.lower(), SHAPE_SETS, n=1)
        listing = f"Shape sets: {', '.join(SHAPE_SETS)}; or all."
        raise ZooError(f"There is no shape set {name!r}.", f"Did you mean {near[0]!r}? {listing}" if near else listing)
    return SHAPE_SETS[name]
