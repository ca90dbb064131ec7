"""The network in the kernels' format: padded and packed, with the first layer split by the origin of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pylo_zoo.kernels.gpu.elements import CANDIDATES
from pylo_zoo.kernels.gpu.records import upload
from pylo_zoo.ops.features import FEATURES
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

IN_REGISTERS = 8
"""Layers of up to this many units are unrolled in registers. Wider ones use matrix products."""
TABLE_GROUPS = ("row", "rsqrt_row", "col", "rsqrt_col")
SINGLE = {
    "gradient", "clipped_gradient", "parameter", "second_moment", "rsqrt_second_moment", "normalized_gradient"
}  # fmt: skip
"""Feature groups of one channel; the others have three."""


class Inputs(NamedTuple):
    """The features that the kernels compute per element, and the network inputs that they feed."""

    select: tuple[int, ...]
    """Channels of :data:`~pylo_zoo.kernels.gpu.elements.CANDIDATES`."""
    columns: tuple[int, ...]
    """The network input of each channel."""
    second_columns: tuple[int, ...]
    """The second network input of the last channels: without factors, ``row`` and ``col`` are both ``diag``."""


@lru_cache(maxsize=64)
def inputs_of(names: tuple[str, ...], factored: bool) -> Inputs:
    """The features per element of a factored or unfactored parameter, without those that are tables."""
    columns = columns_of(names)
    elements = [name for name in names if name not in TABLE_GROUPS]
    diag = [] if factored else [name for name in TABLE_GROUPS[:2] if name in names]
    select = [k for name in elements for k in CANDIDATES[name]]
    select += [k for name in diag for k in CANDIDATES[name.replace("row", "diag")]]
    return Inputs(
        tuple(select),
        tuple(k for name in [*elements, *diag] for k in columns[name]),
        tuple(k for name in diag for k in columns[name.replace("row", "col")]),
    )


def columns_of(names: Sequence[str]) -> dict[str, list[int]]:
    """The network inputs of each feature group."""
    columns, start = {}, 0
    for name in names:
        width = 1 if name in SINGLE else 3
        columns[name] = list(range(start, start + width))
        start += width
    return columns


def is_supported(rule: Rule) -> bool:
    """Whether the kernels support a rule: features of :data:`~pylo_zoo.ops.features.FEATURES`, each once, with all of
    :data:`TABLE_GROUPS`, or if unfactored, all or none."""
    names_are_known = all(
        set(names) <= set(FEATURES) and len(names) == len(set(names)) for names in (rule.features, rule.unfactored)
    )
    tables = len(set(rule.unfactored) & set(TABLE_GROUPS))
    return (
        names_are_known
        and set(TABLE_GROUPS) <= set(rule.features)
        and tables in (0, 4)
        and rule.activation in ("relu", "tanh")
    )


class Network(NamedTuple):
    """The layers for all parameters of a call. The first axis has size 1 if they share the network."""

    first: Tensor
    """``[1 or N, units, inputs]``"""
    bias: Tensor
    """``[1 or N, units]``, of the first layer"""
    deep: Tensor
    """``[1 or N, …]``: weight ``[inputs, units]`` and bias of each further hidden layer, then weights and biases of
    direction and magnitude; zeros up to a multiple of 4."""
    hidden_layers: int

    @property
    def units(self) -> int:
        return self.first.shape[1]

    def tables(self, rule: Rule) -> Tensor:
        """The first layer's weights for features that are tables: ``[1 or N, 2 (row, col), 6, units]``."""
        columns = columns_of(rule.features)
        table_columns = tuple(k for name in TABLE_GROUPS for k in columns[name])
        weights = self.first.index_select(2, _indices(table_columns, self.first.device))
        return weights.unflatten(2, (2, 6)).permute(0, 2, 3, 1).contiguous()

    def elements(self, inputs: Inputs) -> Tensor:
        """The first layer's weights for features per element: ``[1 or N, features, units]``."""
        weights = self.first.index_select(2, _indices(inputs.columns, self.first.device))
        if inputs.second_columns:
            second = self.first.index_select(2, _indices(inputs.second_columns, self.first.device))
            weights[:, :, -len(inputs.second_columns) :] += second
        return weights.transpose(1, 2).contiguous()


@lru_cache(maxsize=256)
def _indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    return upload(torch.tensor(values), device)


def width_of(hidden: int) -> int:
    """The padded width of a hidden layer: a power of two, at least 4, or 16 for matrix products."""
    width = max(1 << (hidden - 1).bit_length(), 4)
    return width if width <= IN_REGISTERS else max(width, 16)


def pack(layers: Sequence[Layer]) -> Network:
    """Pack layers, and pad every hidden layer with units whose weights are zero."""
    units = width_of(max(weight.shape[-2] for weight, _ in layers[:-1]))
    (first, bias), *further = [
        (_batched(weight, 3).float(), _batched(bias, 2).float()) for weight, bias in layers
    ]  # fmt: skip
    packed = [
        part
        for weight, layer_bias in further[:-1]
        for part in (
            _padded(weight, units, units).transpose(1, 2).flatten(1),
            pad(layer_bias, (0, units - layer_bias.shape[1])),
        )
    ]
    weight, layer_bias = further[-1]
    packed += [_padded(weight[:, :2], 2, units).flatten(1), layer_bias[:, :2]]
    networks = max(part.shape[0] for part in packed)
    deep = torch.cat([part.expand(networks, -1) for part in packed], 1)
    deep = pad(deep, (0, -deep.shape[1] % 4))  # so that vector loads are aligned
    first = pad(first, (0, 0, 0, units - first.shape[1])).contiguous()
    return Network(first, pad(bias, (0, units - bias.shape[1])).contiguous(), deep, len(layers) - 1)


def _batched(x: Tensor, ndim: int) -> Tensor:
    return (x if x.ndim == ndim else x[None]).detach()


def _padded(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    return pad(weight, (0, inputs - weight.shape[2], 0, outputs - weight.shape[1]))
