"""The computed operations of Newton–Schulz are those of the code, and the documented table shows them."""

from __future__ import annotations

import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pylo_zoo.ops.iteration import iterate
from pylo_zoo.ops.precision import PRECISIONS
from pylo_zoo.ops.product import TorchProducts

ROOT = Path(__file__).parent.parent
PARTS = runpy.run_path(str(ROOT / "benchmarks" / "newton_schulz_parts.py"))


class Counting(TorchProducts):
    """Counts operations, of a symmetric result in tiles those of its lower triangle."""

    def __init__(self, tile: int, ratio: float) -> None:
        super().__init__(PRECISIONS["float32"], torch.device("cpu"))
        self.ratio, self.side, self.tile, self.operations = ratio, 1, tile, 0

    def symmetric(self, x: Tensor, y: Tensor, out: Tensor, *more: Any, **options: Any) -> Tensor:
        n, k = x.shape
        tiles = math.ceil(n / self.tile)
        self.operations += tiles * (tiles + 1) // 2 * self.tile**2 * 2 * k
        return out

    def apply(self, q: Tensor, x: Tensor, out: Tensor, beta: float) -> Tensor:
        self.operations += 2 * q.shape[0] ** 2 * x.shape[1]
        return out


def counted(shape: Sequence[int], steps: int, tile: int, ratio: float) -> float:
    """Operations of :func:`iterate`, in n³."""
    products = Counting(tile, ratio)
    iterate(torch.empty(*shape), [(1.0, 1.0, 1.0)] * steps, products)
    return products.operations / shape[0] ** 3


@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (64, 256), (32, 48)])
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
@pytest.mark.parametrize("tile", [8, 32])
def test_operations_are_those_of_the_iteration(shape: tuple[int, int], steps: int, tile: int) -> None:
    computed = PARTS["count"](*shape, steps, tile)
    assert computed == PARTS["count"](*shape[::-1], steps, tile)
    plain, gram = counted(shape, steps, tile, math.inf), counted(shape, steps, tile, 0.0)
    assert computed.halves == pytest.approx(plain)
    assert computed.both == pytest.approx(min(plain, gram))
    assert computed.products == pytest.approx(counted(shape, steps, min(shape), math.inf))


def test_the_operations_of_gpt2_are_within_the_bar() -> None:
    total, square = PARTS["totals"](PARTS["GPT2_355M"]), PARTS["totals"]({(1024, 1024): 24})
    assert total.both / total.products <= 0.65
    assert square.halves / square.products <= 0.85
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "\n".join(PARTS["computed"]()) in page
