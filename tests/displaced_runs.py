"""Error bounds for float32 runs of an optimizer: how far simulated roundings displace them (rounding.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from contract_table import SHAPES, Entry, loss_at, make, parameters
from margins import check_close
from rounding import Simulation, simulate
from torch import Tensor, nn


def in_double(entry: Entry) -> dict[str, Any]:
    """Options that make the eager implementation compute in float64 throughout."""
    return {"backend": "eager", **({"ns_dtype": torch.float64} if entry.weights is None else {})}


def displaced(
    entry: Entry,
    steps: int,
    shapes: Any = SHAPES,
    draws: int = 4,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    **options: Any,
) -> Simulation:
    """The parameters after ``steps`` float64 steps of :func:`contract_table.train`, displaced by simulated roundings.

    Gradients are multiplied by ``scale``.
    """

    def run() -> list[nn.Parameter]:
        params = parameters(torch.float64, shapes=shapes)
        optimizer = make(entry, params, **{**in_double(entry), **options})
        for step in range(steps):
            gradients = single_gradients(params, step)
            for p, g in zip(params, gradients, strict=True):
                p.grad = g * scale
            optimizer.step(loss=loss_at(step).double())
        return params

    return simulate(run, dtype, draws)


def single_gradients(params: Sequence[Tensor], step: int) -> list[Tensor]:
    """The values of :func:`contract_table.give_gradients` in float32, widened to the parameters' dtype."""
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(p.shape, generator=generator).to(p) for p in params]


def check_same_run(one: Sequence[Tensor], other: Sequence[Tensor], of: Simulation, what: str = "") -> None:
    """Check that two runs agree: each is within the displacement of the exact run, so they are within twice that."""
    for k, (a, b) in enumerate(zip(one, other, strict=True)):
        check_close(a, b, 2 * of.distance(k), f"{what} parameter {k}".strip())
