"""The MLP that runs per parameter element (SPEC §3, §4, §6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]
"""One affine map: weight ``[outputs, inputs]`` and bias ``[outputs]``."""


def mlp(layers: Sequence[Layer], x: Tensor, activation: str = "relu") -> Tensor:
    """Apply an MLP to columns of features.

    Args:
        layers: the affine maps, with the activation between them.
        x: features ``[channels, n]``, one column per element. The first layer uses only its first ``channels`` inputs:
            CELO2's vectors have fewer features than its matrices (SPEC §6).
        activation: ``"relu"`` or ``"tanh"``.

    Returns:
        Outputs ``[outputs, n]`` in ``x``'s dtype.
    """
    (weight, bias), *rest = layers
    x = torch.addmm(bias[:, None], weight[:, : x.shape[0]], x)
    for weight, bias in rest:
        x = torch.addmm(bias[:, None], weight, torch.relu_(x) if activation == "relu" else torch.tanh_(x))
    return x
