"""The meta-network alone, on random inputs, in torch and in JAX.

A network says itself what it is tried on: ``probe_shapes()`` names its inputs, and ``probe(inputs)`` gives its outputs
as the reference's ``forward`` names them (:mod:`pylo_zoo.nets`).
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
from pylo_zoo.parity import bounds
from pylo_zoo.parity.jax_mode import x64
from pylo_zoo.parity.report import Check, Error
from pylo_zoo.parity.sides import build_reference
from pylo_zoo.parity.steps import DTYPES, LONGEST_MESSAGE

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """What the network was tried on, what the original makes of it in float64, and by output the error of its float32,
    relative to the largest value."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    noise: Mapping[str, float]


def probe(artifact: Artifact, theta: Mapping[str, Any], seed: int) -> Network:
    """Run the original's network on random inputs, standard normal."""
    rng = np.random.default_rng(seed)
    net: Any = artifact.net()
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in net.probe_shapes().items()}
    hyper = converters.get(artifact.family).parity_hyper
    with x64():
        truth, single = (
            {name: np.asarray(value, np.float64) for name, value in found.items()}
            for found in (build_reference(artifact, theta, hyper, dtype).forward(inputs) for dtype in DTYPES)
        )
    return Network(inputs, truth, {name: relative(single[name], truth[name]) for name in truth})


def checks(artifact: Artifact, network: Network) -> Iterator[Check]:
    """The torch side's outputs against the original's."""
    for dtype in DTYPES:
        try:
            ours = torch_forward(artifact.net().to(getattr(torch, dtype)), network.inputs)
        except ZooError:
            raise
        except Exception as error:  # a difference of every output
            raised = f"the network raised {type(error).__name__}: {' '.join(str(error).split())[:LONGEST_MESSAGE]}"
            errors = {name: Error(float("inf"), 0.0) for name in network.outputs}
            yield Check("network", dtype, "", "random inputs", 1, errors, broken=[raised])
            continue
        if ours.keys() != network.outputs.keys():
            raise ZooError(
                f"The network's probe() gives {sorted(ours)}, the reference's forward() {sorted(network.outputs)}.",
                "Name the outputs alike on both sides.",
            )
        errors = {
            name: Error(relative(ours[name], truth), float(bounds.allowed(np.asarray(network.noise[name]), dtype)))
            for name, truth in network.outputs.items()
        }
        yield Check("network", dtype, "", "random inputs", 1, errors)


def torch_forward(net: Any, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The torch side's outputs, named as the reference names them; computed in the dtype of ``net``."""
    like = next(net.parameters())
    tensors = {name: torch.as_tensor(np.array(value)).to(like) for name, value in inputs.items()}
    with torch.no_grad():
        return {name: value.numpy() for name, value in net.probe(tensors).items()}


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest value; infinite for another shape or what is no number."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = np.abs(ours.astype(np.float64) - theirs) / max(np.abs(theirs).max(), np.finfo(np.float64).tiny)
    return float(error.max()) if np.isfinite(error).all() else float("inf")
