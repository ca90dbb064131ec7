"""Compares the forward pass of the meta-network on random inputs in torch and in JAX.

A network's ``probe_shapes()`` names the inputs, and ``probe(inputs)`` returns the outputs under the names that the
reference's ``forward`` uses (:mod:`pylo_zoo.nets`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.parity.jax_mode import x64
from pylo_zoo.parity.jax_side import build_reference
from pylo_zoo.parity.steps import DTYPES, MAX_MESSAGE
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Check, Error

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """Inputs, float64 outputs of the original, and the relative error of its float32 outputs."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    noise: Mapping[str, float]


def probe(artifact: Artifact, theta: Mapping[str, Any], seed: int) -> Network:
    """Run the original's network on standard normal inputs."""
    rng = np.random.default_rng(seed)
    net: Any = artifact.net()
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in net.probe_shapes().items()}
    hyper = converters.get(artifact.family).parity_hyper
    with x64():
        double, single = (
            {name: np.asarray(value, np.float64) for name, value in outputs.items()}
            for outputs in (build_reference(artifact, theta, hyper, dtype).forward(inputs) for dtype in DTYPES)
        )
    return Network(inputs, double, {name: relative(single[name], double[name]) for name in double})


def checks(artifact: Artifact, network: Network) -> Iterator[Check]:
    """Compare the torch side's outputs with the original's in both dtypes."""
    for dtype in DTYPES:
        try:
            ours = torch_forward(artifact.net().to(getattr(torch, dtype)), network.inputs)
        except ZooError:
            raise
        except Exception as error:  # reported as a difference of every output
            raised = f"the network raised {type(error).__name__}: {' '.join(str(error).split())[:MAX_MESSAGE]}"
            errors = {name: Error(float("inf"), 0.0) for name in network.outputs}
            yield Check("network", dtype, "", "random inputs", 1, errors, broken=[raised])
            continue
        if ours.keys() != network.outputs.keys():
            raise ZooError(
                f"The network's probe() returns {sorted(ours)}, but the reference's forward() returns "
                f"{sorted(network.outputs)}.",
                "Use the same output names in both.",
            )
        errors = {
            name: Error(relative(ours[name], truth), float(bounds.allowed(np.asarray(network.noise[name]), dtype)))
            for name, truth in network.outputs.items()
        }
        yield Check("network", dtype, "", "random inputs", 1, errors)


def torch_forward(net: Any, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The torch side's outputs by name, computed in the dtype of ``net``."""
    like = next(net.parameters())
    tensors = {name: torch.as_tensor(np.array(value)).to(like) for name, value in inputs.items()}
    with torch.no_grad():
        return {name: value.numpy() for name, value in net.probe(tensors).items()}


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference relative to the largest value; infinite if shapes differ or a value is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = np.abs(ours.astype(np.float64) - theirs) / max(np.abs(theirs).max(), np.finfo(np.float64).tiny)
    return float(error.max()) if np.isfinite(error).all() else float("inf")
