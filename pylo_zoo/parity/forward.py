"""Level 2: the meta-network alone, on random inputs, in torch and in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pylo_zoo.nets import ADAFAC_CHANNELS, VELO_CHANNELS, AdafacNet, CELO2Net, CeloAdamNet, ELONet, VeLONet
from pylo_zoo.ops.features import CELO2_UNFACTORED_FEATURES
from pylo_zoo.ops.mlp import mlp

TENSORS = 5
ELEMENTS = 64
UNFACTORED_CHANNELS = 15
assert len(CELO2_UNFACTORED_FEATURES) == 9  # 15 channels

Arrays = dict[str, np.ndarray]


def random_inputs(net: nn.Module, seed: int) -> Arrays:
    """Inputs of the network's forward pass, in float64, standard normal."""
    rng = np.random.default_rng(seed)
    if isinstance(net, VeLONet | CeloAdamNet):
        hidden = net.architecture.lstm_hidden_size
        width = net.controller.direct.weight.shape[1]
        shapes = {"lstm_inputs": (TENSORS, width), "hidden": (TENSORS, hidden), "cell": (TENSORS, hidden)}
        if isinstance(net, VeLONet):
            shapes["features"] = (ELEMENTS, VELO_CHANNELS)
    elif isinstance(net, CELO2Net):
        shapes = {"features": (ELEMENTS, VELO_CHANNELS), "features_unfactored": (ELEMENTS, UNFACTORED_CHANNELS)}
    else:
        shapes = {"features": (ELEMENTS, ADAFAC_CHANNELS)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def torch_forward(net: nn.Module, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The torch side's outputs, named as the reference names them; computed in the dtype of ``net``."""
    like = next(net.parameters())
    tensors = {name: torch.as_tensor(value).to(like) for name, value in inputs.items()}
    run = next(run for kind, run in _FORWARD.items() if isinstance(net, kind))
    with torch.no_grad():
        return {name: value.numpy() for name, value in run(net, tensors).items()}


def _controller(net: Any, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    control = net(x["lstm_inputs"], x["hidden"], x["cell"])
    outputs = {"hidden": control.hidden, "cell": control.cell, "lr_mult": control.lr_mult}
    if control.controls is None:
        return outputs
    layers = net.write(control.controls)
    written = [mlp([(w[k], b[k]) for w, b in layers], x["features"].T.contiguous()).T for k in range(TENSORS)]
    return {**outputs, "controls": control.controls, "mlp": torch.stack(written)}


def _celo2(net: Any, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: net(x[of].T).T for name, of in (("mlp", "features"), ("mlp_unfactored", "features_unfactored"))}


def _elo(net: Any, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"mlp": net(x["features"].T).T}


def _adafac(net: Any, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    decays = net.decays()
    named = {"momentum_decays": decays.momentum, "rms_decays": decays.rms, "adafactor_decays": decays.adafactor}
    return {**_elo(net, x), **named}


_FORWARD: dict[type | tuple[type, ...], Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    (VeLONet, CeloAdamNet): _controller,
    CELO2Net: _celo2,
    AdafacNet: _adafac,
    ELONet: _elo,
}
