"""The network as the kernels read it: padded, packed, its first layer taken apart by where its inputs come from."""

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
"""Up to so many units a layer are unrolled; more are products of matrices."""
TABLE_GROUPS = ("row", "rsqrt_row", "col", "rsqrt_col")
SINGLE = {
    "gradient", "clipped_gradient", "parameter", "second_moment", "rsqrt_second_moment", "normalized_gradient"
}  # fmt: skip
"""Feature groups of one channel; the others have three."""


class Inputs(NamedTuple):
    """Which features the kernels make for an element, and which of the network's inputs each one feeds."""

    select: tuple[int, ...]
    """Of :data:`~pylo_zoo.kernels.gpu.elements.CANDIDATES`."""
    columns: tuple[int, ...]
    again: tuple[int, ...]
    """Inputs that the last ``len(again)`` features feed besides: unfactored, ``row`` and ``col`` are both ``diag``."""


@lru_cache(maxsize=64)
def inputs_of(names: tuple[str, ...], factored: bool) -> Inputs:
    """The features of an element of a (not) factored parameter; features that are tables are left out."""
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
    """The network's inputs of each feature group."""
    columns, at = {}, 0
    for name in names:
        width = 1 if name in SINGLE else 3
        columns[name] = list(range(at, at + width))
        at += width
    return columns


def known(rule: Rule) -> bool:
    """Whether the kernels have a rule's features: any of :data:`~pylo_zoo.ops.features.FEATURES`, each once, tables of
    the factored second moment all four or, unfactored, none."""
    every = all(
        set(names) <= set(FEATURES) and len(names) == len(set(names)) for names in (rule.features, rule.unfactored)
    )
    tables = len(set(rule.unfactored) & set(TABLE_GROUPS))
    return (
        every and set(TABLE_GROUPS) <= set(rule.features) and tables in (0, 4) and rule.activation in ("relu", "tanh")
    )


class Network(NamedTuple):
    """Layers for all parameters of a call; the first axis is 1 where they share the network."""

    first: Tensor
    """``[1 or N, units, inputs]``"""
    bias: Tensor
    """``[1 or N, units]``, of the first layer"""
    deep: Tensor
    """``[1 or N, …]``: weight ``[below, units]`` and bias of each further hidden layer; then weights and biases of
    direction and magnitude."""
    hidden_layers: int

    @property
    def units(self) -> int:
        return self.first.shape[1]

    def tables(self, rule: Rule) -> Tensor:
        """The first layer's weights of features that are tables: ``[1 or N, 2 (row, col), 6, units]``."""
        columns = columns_of(rule.features)
        taken = tuple(k for name in TABLE_GROUPS for k in columns[name])
        weights = self.first.index_select(2, _indices(taken, self.first.device))
        return weights.unflatten(2, (2, 6)).permute(0, 2, 3, 1).contiguous()

    def elements(self, inputs: Inputs) -> Tensor:
        """The first layer's weights of an element's features: ``[1 or N, features, units]``."""
        weights = self.first.index_select(2, _indices(inputs.columns, self.first.device))
        if inputs.again:
            weights[:, :, -len(inputs.again) :] += self.first.index_select(2, _indices(inputs.again, self.first.device))
        return weights.transpose(1, 2).contiguous()


@lru_cache(maxsize=256)
def _indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    return upload(torch.tensor(values), device)


def width_of(hidden: int) -> int:
    """The width that kernels give a hidden layer: a power of two, 16 at least for products of matrices."""
    width = 1 << (hidden - 1).bit_length()
    return width if width <= IN_REGISTERS else max(width, 16)


def pack(layers: Sequence[Layer]) -> Network:
    """Layers with every hidden layer padded by units whose weights are zero."""
    units = width_of(max(weight.shape[-2] for weight, _ in layers[:-1]))
    (first, bias), *further = [
        (_stacked(weight, 3).float(), _stacked(bias, 2).float()) for weight, bias in layers
    ]  # fmt: skip
    packed = [
        part
        for weight, bias_of in further[:-1]
        for part in (
            _padded(weight, units, units).transpose(1, 2).flatten(1),
            pad(bias_of, (0, units - bias_of.shape[1])),
        )
    ]
    weight, bias_of = further[-1]
    packed += [_padded(weight[:, :2], 2, units).flatten(1), bias_of[:, :2]]
    many = max(part.shape[0] for part in packed)
    deep = torch.cat([part.expand(many, -1) for part in packed], 1)
    first = pad(first, (0, 0, 0, units - first.shape[1])).contiguous()
    return Network(first, pad(bias, (0, units - bias.shape[1])).contiguous(), deep, len(layers) - 1)


def _stacked(x: Tensor, ndim: int) -> Tensor:
    return (x if x.ndim == ndim else x[None]).detach()


def _padded(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    return pad(weight, (0, inputs - weight.shape[2], 0, outputs - weight.shape[1]))
