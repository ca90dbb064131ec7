"""What parity is tried on: a table of shapes, and regimes of gradients and losses, all seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One parameter of the shape table, ``shape`` in JAX layout.

    ``torch`` is the layout that such a parameter has in torch: "torch" for weights, "torch-stacked" for stacks of
    matrices, and "jax" where torch keeps it as JAX does.
    """

    name: str
    shape: tuple[int, ...]
    torch: str = "torch"
    rule: str | None = None

    @property
    def ndim(self) -> int:
        """Axes of the parameter as the update sees it: a scalar has one."""
        return max(1, len(self.shape))


CASES = (
    Case("scalar", ()),
    Case("vector", (7,)),
    Case("vector of 1", (1,)),
    Case("wide dense", (3, 11)),
    Case("tall dense", (11, 3)),
    Case("square dense", (6, 6)),
    Case("very wide", (2, 96)),
    Case("very tall", (96, 2)),
    Case("single row", (1, 6)),
    Case("single column", (6, 1)),
    Case("single element", (1, 1)),
    Case("conv1d", (3, 4, 6)),
    Case("conv1d, all equal", (4, 4, 4)),
    Case("conv2d", (3, 3, 4, 8)),
    Case("conv2d, in = out", (3, 3, 5, 5)),
    Case("conv2d, in = kernel", (3, 3, 3, 8)),
    Case("conv2d, all equal", (3, 3, 3, 3)),
    Case("conv2d, 1 by 1", (1, 1, 6, 4)),
    Case("conv2d, depthwise", (3, 3, 1, 8)),
    Case("conv2d, wide kernel", (5, 5, 2, 3)),
    Case("conv3d", (2, 3, 3, 1, 4)),
    Case("conv3d, in = out", (2, 2, 1, 4, 4)),
    Case("conv3d, no axis of 1", (2, 2, 2, 2, 3)),
    Case("stacked experts", (2, 5, 4), torch="torch-stacked"),
    Case("square experts", (3, 4, 4), torch="torch-stacked"),
    Case("embedding", (9, 5), torch="jax", rule="adamw"),
)

REDUCED = tuple(
    case
    for case in CASES
    if case.name
    in ("scalar", "vector", "tall dense", "square dense", "conv2d, in = out", "square experts", "embedding")
)
"""For what does not depend on the shape, such as an argument of the optimizer."""


FEW = tuple(case for case in REDUCED if case.name in ("vector", "tall dense", "square experts"))
"""For what every accumulator shows by itself: unfactored, factored, and batched."""

LONG = (
    Case("long vector", (70_001,)),
    Case("long vector, learned", (70_001,), rule="learned"),
    Case("long matrix", (283, 251)),
)
"""Over 65,536 elements: several units of work of the kernels, the last one not full. The rules that route parameters
take the second vector; the first is AdamW's there."""


@dataclass(frozen=True)
class Regime:
    """How gradients and losses behave over a run of ``steps`` steps that begins at step ``start`` of its training.

    ``scale`` multiplies the parameters that it begins with.
    """

    name: str
    meaning: str
    steps: int
    start: int = 0
    scale: float = 1.0


REGIMES: Mapping[str, Regime] = MappingProxyType(
    {
        regime.name: regime
        for regime in (
            Regime("ordinary", "a direction and noise, at a scale of each tensor's own; past the end of the run", 10),
            Regime("spikes", "scales from 1e-6 to 1e3 by step, elements that are always zero, tensors of zeros", 4),
            Regime("tiny", "ordinary, times 1e-12; losses times 1e-9", 5),
            Regime("huge", "ordinary, times 1e6; losses too", 3),
            Regime("zeros", "every gradient zero, the loss constant", 3),
            Regime("single", "one non-zero element a tensor", 3),
            Regime("growing", "ordinary, eight times larger each step, from step 20,000 on", 4, start=20_000),
            Regime("zero parameters", "every parameter begins at zero, as biases do; gradients ordinary", 4, scale=0.0),
            Regime("large parameters", "parameters a thousand times larger; gradients ordinary", 3, scale=1e3),
            Regime("negative losses", "losses that cross zero and stay below it; gradients ordinary", 5),
            Regime("NaN", "one in five elements is NaN; for rules that define what happens then", 3),
        )
    }
)


def parameters(seed: int, scale: float = 1.0, table: Sequence[Case] = CASES) -> Arrays:
    """Starting values by case of ``table``, in JAX layout: normal, ``scale/sqrt(fan_in)``; float32 in float64."""
    rng = np.random.default_rng(seed)
    return {
        case.name: rounded(
            scale * rng.standard_normal(case.shape) / np.sqrt(case.shape[-2] if len(case.shape) > 1 else 1)
        )
        for case in table
    }


def rounded(value: Array | float) -> Array:
    """``value`` rounded to float32, in float64: where both dtypes can start. What float32 cannot hold is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32).astype(np.float64)


def gradients(seed: int, regime: str, steps: int, table: Sequence[Case] = CASES) -> list[Arrays]:
    """Gradients by step and case of ``table``, float32 numbers in float64."""
    rng = np.random.default_rng([seed, 1])
    scales = {case.name: 10.0 ** rng.uniform(-3, 0) for case in table}
    direction = {case.name: rng.standard_normal(case.shape) for case in table}
    found = []
    for step in range(steps):
        gradient = {
            case.name: scales[case.name] * (direction[case.name] + rng.standard_normal(case.shape)) for case in table
        }
        found.append({name: rounded(_shaped(rng, regime, step, np.asarray(g))) for name, g in gradient.items()})
    return found


def _shaped(rng: np.random.Generator, regime: str, step: int, g: Array) -> Array:
    if regime == "spikes":
        g = g * 10.0 ** rng.choice([-6, -3, 0, 0, 3], p=[0.2, 0.2, 0.25, 0.25, 0.1])
        if g.size > 1:
            g[..., 0] = 0
        return g * (rng.uniform() > 0.1)
    if regime == "single":
        keep = np.zeros(g.size)
        keep[g.size // 2] = 1
        return g * keep.reshape(g.shape)
    if regime == "NaN":
        return np.where(rng.uniform(size=g.shape) < 0.2, np.nan, g)
    return g * {"tiny": 1e-12, "huge": 1e6, "zeros": 0.0, "growing": 8.0**step}.get(regime, 1.0)


def losses(seed: int, regime: str, steps: int) -> list[float]:
    """A falling, noisy loss of each step, with one spike, that all but vanishes in the end; float32 numbers."""
    if regime == "zeros":
        return [0.5] * steps
    rng = np.random.default_rng([seed, 2])
    loss = 2.3 * 0.9 ** (10 * np.arange(steps) / max(steps, 10)) + 0.1 * rng.uniform(size=steps)
    loss[steps // 2] *= 5
    if steps >= 10:
        loss[-3:] *= 1e-6, 1e-9, 0
    if regime == "negative losses":
        loss = loss - 2.0 - np.arange(steps)
    growth = (8.0 if regime == "growing" else 1.0) ** np.arange(steps)
    return rounded(loss * growth * {"tiny": 1e-9, "huge": 1e6}.get(regime, 1.0)).tolist()
