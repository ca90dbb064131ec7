"""Every optimizer against trajectories of the original JAX code, in both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_data import CASES, artifact, constructor_arguments, spec, to_layout, trajectory
from margins import check, check_close
from rounding import gamma

from pylo_zoo.optim import CELO2, optimizer_class

TOLERANCE = 1e-4
"""Relative to a parameter's largest movement over the run, above the floor (golden/README.md). A weight off by one
percent exceeds 1e-3; a wrong layout exceeds a hundred times this bound."""
FLOOR = 4 * np.finfo(np.float32).eps
"""Relative to a parameter's largest value. A run and the original each round a parameter once in each of 12 steps: 24
roundings of half an eps with random signs add up to √24/2 = 2.4 eps."""

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def run(
    name: str, layout: str, device: str, declared: str | None = None, backend: str = "eager"
) -> tuple[dict[str, float], torch.optim.Optimizer]:
    """Replay a case; return each parameter's largest error above the floor, relative to its largest movement.

    ``declared`` is the layout that the groups declare, if it differs from the actual one.
    """
    data, names, steps = trajectory(name), list(spec(name)["shapes"]), spec(name)["steps"]
    kept = {each: "jax" if each == "i_batch" else layout for each in names}
    parameters = {
        each: torch.nn.Parameter(to_layout(data[f"params.0.{each}"], kept[each]).to(device)) for each in names
    }
    cls = optimizer_class(artifact(name).family)
    exact: dict[str, Any] = (
        {"ns_dtype": "float32"} if device == "cuda" and issubclass(cls, CELO2) else {}
    )  # by default, TF32
    optimizer = cls(
        [{"params": [p], "layout": declared or kept[each]} for each, p in parameters.items()],
        weights=artifact(name),
        **constructor_arguments(name),
        **exact,
        backend=backend,
    )
    errors = dict.fromkeys(names, 0.0)
    for step in range(steps):
        for each, p in parameters.items():
            p.grad = to_layout(data[f"grads.{step}.{each}"], kept[each]).to(device)
        optimizer.step(loss=torch.tensor(data["loss"][step], device=device) if "loss" in data else None)
        for each, p in parameters.items():
            expected = to_layout(data[f"params.{step + 1}.{each}"], kept[each])
            error = (p.detach().cpu() - expected).abs().max().item()
            error = max(error - FLOOR * expected.abs().max().item(), 0.0) if np.isfinite(error) else float("inf")
            errors[each] = max(errors[each], error)
    start = {each: data[f"params.0.{each}"] for each in names}
    movement = {
        each: max(np.abs(data[f"params.{step}.{each}"] - start[each]).max() for step in range(1, steps + 1))
        for each in names
    }
    return {each: errors[each] / movement[each] for each in names}, optimizer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("layout", ["jax", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_trajectories_agree_with_the_original(name: str, layout: str, backend: str, device: str) -> None:
    errors, optimizer = run(name, layout, device, backend=backend)
    for each, error in errors.items():
        check(error, TOLERANCE, each)
    data = trajectory(name)
    if "lstm.hidden" in data:
        for key, expected in (("lstm_hidden", data["lstm.hidden"]), ("lstm_cell", data["lstm.cell"])):
            ours = torch.stack([state[key] for state in optimizer.state.values()]).cpu()
            # An element is a sum of one term per step, whose roundings differ between two programs.
            check_close(ours, expected, gamma(2 * 12, torch.float32) * np.abs(expected).max(), key)


def test_there_are_13_cases() -> None:
    assert len(CASES) == 13


@pytest.mark.parametrize("name", ["celo2", "elo", "velo_small"])
def test_a_wrong_layout_is_detected(name: str) -> None:
    """Torch-layout parameters declared as JAX's: correct for rectangles, wrong for square matrices and convolutions."""
    errors, _ = run(name, "torch", "cpu", declared="jax")
    assert errors["f_square"] > 100 * TOLERANCE
    assert errors["h_conv_tie"] > 100 * TOLERANCE
