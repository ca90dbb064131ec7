"""What parity is tried on: a table of shapes, and gradient regimes, all seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS = 10
"""Length of the runs; it goes past the ``num_steps`` of the families that have one."""


@dataclass(frozen=True)
class Case:
    """One parameter of the shape table, ``shape`` in JAX layout.

    ``layout`` is "both" where torch keeps such a parameter transposed, so that it is tried in either layout, and
    "jax" where torch keeps it as JAX does.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = "both"
    rule: str | None = None


CASES = (
    Case("scalar", ()),
    Case("vector", (7,)),
    Case("vector of 1", (1,)),
    Case("wide dense", (3, 11)),
    Case("tall dense", (11, 3)),
    Case("square dense", (6, 6)),
    Case("single row", (1, 6)),
    Case("single element", (1, 1)),
    Case("conv2d", (3, 3, 4, 8)),
    Case("conv2d, in = out", (3, 3, 5, 5)),
    Case("conv2d, in = width", (3, 3, 3, 8)),
    Case("conv2d, 1 by 1", (1, 1, 6, 4)),
    Case("conv2d, depthwise", (3, 3, 1, 8)),
    Case("conv2d, wide kernel", (5, 5, 2, 3)),
    Case("conv3d", (2, 3, 3, 1, 4)),
    Case("conv1d", (3, 4, 6)),
    Case("conv1d, all equal", (4, 4, 4)),
    Case("stacked experts", (2, 5, 4), layout="jax"),
    Case("embedding", (9, 5), layout="jax", rule="adamw"),
)

REGIMES = ("ordinary", "mixed")
"""``ordinary``: one scale a tensor. ``mixed``: from 1e-6 to spikes of 1e3, with elements that are always zero, as
behind a dead unit, and now and then a whole tensor of zeros."""


def parameters(seed: int) -> dict[str, Array]:
    """Starting values by case, in JAX layout: normal, scaled by ``1/sqrt(fan_in)``."""
    rng = np.random.default_rng(seed)
    return {
        case.name: np.asarray(rng.standard_normal(case.shape) / np.sqrt(case.shape[-2] if len(case.shape) > 1 else 1))
        for case in CASES
    }


def gradients(seed: int, regime: str) -> list[dict[str, Array]]:
    """Gradients of :data:`STEPS` steps by case: a fixed direction and noise, at a scale of the tensor's own."""
    rng = np.random.default_rng(seed)
    scales = {case.name: 10.0 ** rng.uniform(-3, 0) for case in CASES}
    direction = {case.name: rng.standard_normal(case.shape) for case in CASES}
    steps = []
    for _ in range(STEPS):
        step = {}
        for case in CASES:
            gradient = scales[case.name] * (direction[case.name] + rng.standard_normal(case.shape))
            step[case.name] = np.asarray(_mixed(rng, gradient) if regime == "mixed" else gradient)
        steps.append(step)
    return steps


def _mixed(rng: np.random.Generator, gradient: Array) -> Array:
    gradient = np.asarray(gradient * 10.0 ** rng.choice([-6, -3, 0, 0, 3], p=[0.2, 0.2, 0.25, 0.25, 0.1]))
    if gradient.size > 1:
        gradient[..., 0] = 0
    return gradient * (rng.uniform() > 0.1)


def losses(seed: int) -> Array:
    """A falling, noisy loss, ``[STEPS]``, with one spike, that all but vanishes in the end."""
    rng = np.random.default_rng(seed)
    loss = 2.3 * 0.9 ** np.arange(STEPS) + 0.1 * rng.uniform(size=STEPS)
    loss[STEPS // 2] *= 5
    loss[-3:] *= 1e-6, 1e-9, 0
    return loss
