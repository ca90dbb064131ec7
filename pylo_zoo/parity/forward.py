"""Level 2: the meta-network alone, on random inputs, in torch and in JAX.

A network says itself what it is tried on: ``probe_shapes()`` names its inputs, and ``probe(inputs)`` gives its outputs
as the reference's ``forward`` names them (:mod:`pylo_zoo.nets`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def random_inputs(net: Any, seed: int) -> Arrays:
    """Inputs of the network's forward pass, in float64, standard normal."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in net.probe_shapes().items()}


def torch_forward(net: Any, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The torch side's outputs, named as the reference names them; computed in the dtype of ``net``."""
    like = next(net.parameters())
    tensors = {name: torch.as_tensor(value).to(like) for name, value in inputs.items()}
    with torch.no_grad():
        return {name: value.numpy() for name, value in net.probe(tensors).items()}
