"""Level 3: whole trajectories of the optimizer, in torch and in JAX, over the shape table."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.optim import optimizer_class
from pylo_zoo.parity.cases import CASES, STEPS, Case
from pylo_zoo.parity.report import ROUNDING_FLOOR

TORCH_FROM_JAX = {0: (), 1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
"""Which JAX axis each torch axis is: dense (in, out) to (out, in), convolutions (*spatial, in, out) to (out, in,
*spatial). Stated here apart from ``ops.layout``, whose choice of axes is what these runs put to the test."""

LEAST_STEPS = 3

Trajectory = list[dict[str, np.ndarray]]
"""Parameters by case, in JAX layout, before the first step and after each."""


def torch_trajectory(
    artifact: Artifact, layout: str, dtype: torch.dtype, start: dict[str, np.ndarray], grads: Trajectory, losses: Any
) -> Trajectory:
    """Run the torch optimizer, keeping its parameters in ``layout`` ("torch" or "jax") where a case allows it."""
    kept = {case.name: "jax" if case.layout == "jax" else layout for case in CASES}
    parameters = {name: torch.nn.Parameter(_to(value, kept[name]).to(dtype)) for name, value in start.items()}
    optimizer = optimizer_class(artifact.family)(
        [_group(case, parameters[case.name], kept[case.name]) for case in CASES],
        weights=artifact,
        **converters.get(artifact.family).parity_hyper,
    )
    trajectory = [{name: _from(p, kept[name]) for name, p in parameters.items()}]
    for step in range(STEPS):
        for name, p in parameters.items():
            p.grad = _to(grads[step][name], kept[name]).to(dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "this run goes past its num_steps")
            optimizer.step(loss=torch.tensor(losses[step], dtype=dtype))
        trajectory.append({name: _from(p, kept[name]) for name, p in parameters.items()})
    return trajectory


def jax_trajectory(reference: Any, start: dict[str, np.ndarray], grads: Trajectory, losses: Any) -> Trajectory:
    """Run the JAX reference."""
    routed = {case.name: case.rule for case in CASES if case.rule} if reference.routes else None
    parameters, state = start, reference.init(start, routed)
    trajectory = [{name: np.asarray(value, reference.dtype) for name, value in start.items()}]
    for step in range(STEPS):
        parameters, state = reference.update(parameters, grads[step], state, losses[step])
        trajectory.append({name: np.asarray(value) for name, value in parameters.items()})
    return trajectory


def finite_steps(trajectory: Trajectory) -> int:
    """Steps before the first one at which any parameter is not finite: a checkpoint may well diverge."""
    finite = [all(np.isfinite(value).all() for value in step.values()) for step in trajectory]
    return finite.index(False) - 1 if False in finite else len(finite) - 1


def errors(ours: Trajectory, theirs: Trajectory, tolerance: float) -> dict[str, tuple[float, float]]:
    """By case, the largest error of any step and what is allowed, relative to the parameter's largest movement.

    Allowed is ``tolerance`` and the rounding of the parameter itself. Compared are the steps over which the original
    is finite. Where those are under :data:`LEAST_STEPS`, the original does not move or ours is not finite, there is
    nothing to show parity with, and the error is infinite.
    """
    steps = finite_steps(theirs)
    eps = np.finfo(theirs[0][CASES[0].name].dtype).eps
    found = {}
    for case in CASES:
        a, b = (np.stack([step[case.name] for step in run[: steps + 1]]).astype(np.float64) for run in (ours, theirs))
        movement = np.abs(b - b[0]).max()
        if steps < LEAST_STEPS or movement == 0 or not np.isfinite(a).all():
            found[case.name] = float("inf"), tolerance
            continue
        rounding = float(ROUNDING_FLOOR * eps * np.abs(b).max() / movement)
        found[case.name] = float(np.abs(a - b).max() / movement), tolerance + rounding
    return found


def _group(case: Case, parameter: torch.nn.Parameter, layout: str) -> dict[str, Any]:
    group = {"params": [parameter], "layout": layout}
    return {**group, "rule": case.rule} if case.rule else group


def _to(value: np.ndarray, layout: str) -> torch.Tensor:
    """JAX layout to ``layout``."""
    return torch.from_numpy(value.transpose(TORCH_FROM_JAX[value.ndim]).copy() if layout == "torch" else value.copy())


def _from(parameter: torch.Tensor, layout: str) -> np.ndarray:
    """``layout`` to JAX layout."""
    value = parameter.detach().numpy()
    return value.transpose(np.argsort(TORCH_FROM_JAX[value.ndim])).copy() if layout == "torch" else value.copy()
