"""The LSTM's weights for one step over many tensors, with neighboring affine maps composed (SPEC §4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LSTMWeights(NamedTuple):
    """The weights of an LSTM of H units and I inputs, in one dtype on one device.

    The gates of all tensors are ``hidden·hidden_weightᵀ + inputs·input_weightᵀ + shared_weight·pooled + gate_bias`` in
    the order i, g, f, o. ``pooled`` is the elementwise maximum of ``relu(inputs·pooled_weightᵀ + pooled_bias)`` over
    all tensors.
    """

    pooled_weight: Tensor
    """``[H, I]``"""
    pooled_bias: Tensor
    """``[H]``"""
    hidden_weight: Tensor
    """``[4H, H]``"""
    input_weight: Tensor
    """``[4H, I]``: the product of the gates' weights and those of the input layer."""
    shared_weight: Tensor
    """``[4H, H]``: the gates' weights of the input layer's output."""
    gate_bias: Tensor
    """``[4H]``"""
    head_weight: Tensor
    """``[C + 1, H]``: of the controls, if any, and of the step size."""
    head_bias: Tensor
    """``[C + 1]``"""


def compose(
    pooled: tuple[Tensor, Tensor],
    direct: tuple[Tensor, Tensor],
    gates: tuple[Tensor, Tensor],
    heads: list[tuple[Tensor, Tensor]],
) -> LSTMWeights:
    """Compose the input layer ``direct`` with ``gates``, and concatenate ``heads``. Products are float64."""
    units = len(direct[1])
    of_inputs, of_hidden = gates[0].split(units, dim=1)
    wide = of_inputs.double()
    weight = (wide @ direct[0].double()).to(of_inputs)
    bias = (wide @ direct[1].double() + gates[1].double()).to(of_inputs)
    head_weight, head_bias = (torch.cat(each) for each in zip(*heads, strict=True))
    return LSTMWeights(*pooled, of_hidden, weight, of_inputs, bias, head_weight, head_bias)
