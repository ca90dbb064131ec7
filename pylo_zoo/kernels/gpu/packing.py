"""Packing a network with two launches: :func:`~pylo_zoo.kernels.gpu.network.pack` runs once, on positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels.gpu.network import Network, pack
from pylo_zoo.kernels.gpu.plan import BatchPlan
from pylo_zoo.ops.capture import is_capturing
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule
from pylo_zoo.ops.transfer import upload


class Packed(NamedTuple):
    """A network in the kernels' format, and its first layer's weights for tables, or None."""

    network: Network
    tables: Tensor | None


class Packer:
    """Gathers the numbers of layers of known shapes.

    Args:
        layers: layers; only their shapes matter.
        rule: their rule.
        tables: whether weights for tables are needed.
        device: the kernels' device.
    """

    def __init__(self, layers: Sequence[Layer], rule: Rule, tables: bool, device: torch.device) -> None:
        positions, next_one = [], 1
        for weight, bias in layers:
            (outputs, inputs), many = weight.shape[-2:], bias.shape[-1]
            of_weight = torch.arange(next_one, next_one + outputs * inputs).view(outputs, inputs).float()
            next_one += outputs * inputs
            positions.append((of_weight, torch.arange(next_one, next_one + many).float()))
            next_one += many
        network = pack(positions)
        parts = [network.first, network.bias, network.deep, *([network.tables(rule)] if tables else [])]
        self._shapes = [part.shape[1:] for part in parts]
        self._sizes = [-(-part.numel() // 4) * 4 for part in parts]
        padded = [
            torch.nn.functional.pad(part.flatten(), (0, size - part.numel()))
            for part, size in zip(parts, self._sizes, strict=True)
        ]
        self._hidden_layers = network.hidden_layers
        self._index = upload(torch.cat(padded).long(), device)
        self._zero = torch.zeros(1, 1, dtype=torch.float32, device=device)

    def pack(self, layers: Sequence[Layer]) -> Packed:
        """The network. Its parts are views of one tensor ``[1 or N, …]``."""
        flat = [
            part.detach().float().reshape(-1, size)
            for weight, bias in layers
            for part, size in ((weight, weight.shape[-2] * weight.shape[-1]), (bias, bias.shape[-1]))
        ]
        many = max(part.shape[0] for part in flat)
        joined = torch.cat([part.expand(many, -1) for part in (self._zero, *flat)], 1).index_select(1, self._index)
        first, bias, deep, *tables = (
            part[:, : shape.numel()].view(-1, *shape) if many == 1 else part[:, : shape.numel()].unflatten(1, shape)
            for part, shape in zip(joined.split(self._sizes, 1), self._shapes, strict=True)
        )
        return Packed(Network(first, bias, deep, self._hidden_layers), tables[0] if tables else None)


def packer_of(plan: BatchPlan, layers: Sequence[Layer], rule: Rule) -> Packer:
    """The packer for layers of these shapes; kept by the plan."""
    key = tuple((weight.shape[-2:], bias.shape[-1:]) for weight, bias in layers)
    packer = plan.packers.get(key)
    if packer is None:
        packer = Packer(layers, rule, plan.joined.has_tables, plan.joined.device)
        if not is_capturing():
            plan.packers[key] = packer
    return packer
