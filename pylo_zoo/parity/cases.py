"""Inputs of parity runs: a table of parameter shapes, and seeded regimes of gradients and losses."""

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
    """One parameter of the shape table; ``shape`` is in JAX layout.

    ``torch`` is the layout of this parameter in torch: "torch" for weights, "torch-stacked" for stacks of matrices, and
    "jax" if torch and JAX use the same layout.
    """

    name: str
    shape: tuple[int, ...]
    torch: str = "torch"
    rule: str | None = None

    @property
    def ndim(self) -> int:
        """Number of axes in the update, which treats a scalar as 1-d."""
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
"""For runs about something that does not depend on the shape, such as an argument of the optimizer."""

FEW = tuple(case for case in REDUCED if case.name in ("vector", "tall dense", "square experts"))
"""One unfactored, one factored and one batched parameter."""

LONG = (
    Case("long vector", (70_001,)),
    Case("long vector, learned", (70_001,), rule="learned"),
    Case("long matrix", (283, 251)),
)
"""Over 65,536 elements, so the kernels split them into several units of work, the last one partly filled. In families
that route parameters, AdamW updates the first vector and the learned rule the second."""


@dataclass(frozen=True)
class Regime:
    """A distribution of gradients and losses over a run.

    Attributes:
        meaning: description.
        steps: number of steps of the run.
        start: value of the step counter at the beginning of the run.
        scale: factor of the initial parameters.
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
            Regime("ordinary", "a direction plus noise, with a scale per tensor; runs past num_steps", 10),
            Regime("spikes", "scales from 1e-6 to 1e3 by step, elements that are always zero, tensors of zeros", 4),
            Regime("tiny", "ordinary, times 1e-12; losses times 1e-9", 5),
            Regime("huge", "ordinary, times 1e6; losses times 1e6", 3),
            Regime("zeros", "zero gradients, constant loss", 3),
            Regime("single", "one non-zero element per tensor", 3),
            Regime("growing", "ordinary, eight times larger each step, starting at step 20,000", 4, start=20_000),
            Regime("zero parameters", "ordinary gradients; every parameter starts at zero", 4, scale=0.0),
            Regime("large parameters", "ordinary gradients; parameters a thousand times larger", 3, scale=1e3),
            Regime("negative losses", "ordinary gradients; losses that fall below zero and stay there", 5),
            Regime("NaN", "one in five elements is NaN; only for rules that define the result", 3),
        )
    }
)


def parameters(seed: int, scale: float = 1.0, table: Sequence[Case] = CASES) -> Arrays:
    """Initial parameters by case, in JAX layout: normal with deviation ``scale/sqrt(fan_in)``, rounded to float32."""
    rng = np.random.default_rng(seed)
    return {
        case.name: rounded(
            scale * rng.standard_normal(case.shape) / np.sqrt(case.shape[-2] if len(case.shape) > 1 else 1)
        )
        for case in table
    }


def rounded(value: Array | float) -> Array:
    """``value`` rounded to float32, as float64, so both dtypes can represent it. Overflow becomes infinity."""
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32).astype(np.float64)


def gradients(seed: int, regime: str, steps: int, table: Sequence[Case] = CASES) -> list[Arrays]:
    """Gradients by step and case, rounded to float32."""
    rng = np.random.default_rng([seed, 1])
    scales = {case.name: 10.0 ** rng.uniform(-3, 0) for case in table}
    direction = {case.name: rng.standard_normal(case.shape) for case in table}
    by_step = []
    for step in range(steps):
        gradient = {
            case.name: scales[case.name] * (direction[case.name] + rng.standard_normal(case.shape)) for case in table
        }
        by_step.append({name: rounded(_in_regime(rng, regime, step, np.asarray(g))) for name, g in gradient.items()})
    return by_step


def _in_regime(rng: np.random.Generator, regime: str, step: int, g: Array) -> Array:
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
    """A falling, noisy loss per step with one spike and values near zero at the end, rounded to float32."""
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
