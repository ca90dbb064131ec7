"""The golden trajectories (tests/golden/README.md), and artifacts converted from their checkpoints."""

from __future__ import annotations

import functools
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Published checkpoints (tests/checkpoints/README.md)."""
CELO = CHECKPOINTS / "celo" / "theta.state"
CELO_ADAM = CHECKPOINTS / "celo-adam" / "theta.state"

CASES = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))

CONSTRUCTOR = ("lr", "weight_decay", "adam_lr_mult", "adam_eps", "clip_norm", "num_steps", "adam_betas")


def theta_path(name: str) -> Path:
    own = GOLDEN / name / "theta.state"
    return own if own.exists() else CELO


@functools.cache
def spec(name: str) -> dict[str, Any]:
    """``case.json`` of a case."""
    return json.loads((GOLDEN / name / "case.json").read_text())


@functools.cache
def trajectory(name: str) -> dict[str, np.ndarray]:
    """``trajectory.safetensors`` of a case, in JAX layout; scalars are 0-d."""
    arrays = load_file(GOLDEN / name / "trajectory.safetensors")
    return {key: value.reshape(()) if key.endswith(".a_scalar") else value for key, value in arrays.items()}


@functools.cache
def artifact(name: str) -> Artifact:
    """The case's converted checkpoint, with the fields that only ``case.json`` states."""
    case = spec(name)
    family = converters.get(case["family"].replace("_", "-"))
    stated = {**case, **case["config"]}
    settings = {field.name: stated[field.name] for field in fields(family.behavior) if field.name in stated}
    return convert(family.name, source=theta_path(name), settings=settings)


def constructor_arguments(name: str) -> dict[str, Any]:
    """The case's hyperparameters as constructor arguments."""
    return {key: spec(name)[key] for key in CONSTRUCTOR if key in spec(name)}


def to_layout(array: np.ndarray, layout: str) -> Tensor:
    """JAX layout to ``layout``: dense (in, out) to (out, in), convolutions (h, w, in, out) to (out, in, h, w)."""
    if layout == "torch" and array.ndim in (2, 4):
        array = array.transpose((1, 0) if array.ndim == 2 else (3, 2, 0, 1))
    return torch.from_numpy(np.array(array, order="C"))
