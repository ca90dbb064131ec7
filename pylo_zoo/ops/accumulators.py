"""Accumulators of the gradient's moments, advanced in place (SPEC §1).

An accumulator has one contiguous plane per decay: ``[channels, *shape]``. In a factored second moment, the averaged
axis of ``row`` and ``col`` has size 1, so they broadcast against the parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import record


class Factors(NamedTuple):
    """The factored second moment as features read it: ``[3, *shape]`` with broadcast axes of size 1.

    For an unfactored parameter, ``row`` and ``col`` are both ``diag``, and ``col_factor`` is None.
    """

    row: Tensor
    col: Tensor
    row_factor: Tensor
    col_factor: Tensor | None


class Decays(NamedTuple):
    """Effective decays of the accumulators, one per channel: ``momentum [k]``, ``rms [1]`` and ``adafactor [3]``."""

    momentum: Tensor
    rms: Tensor
    adafactor: Tensor


def planes(values: Tensor, ndim: int) -> Tensor:
    """View ``values [channels]`` as ``[channels, 1, …]``, to broadcast against planes of ``ndim`` axes."""
    return values.view(-1, *[1] * ndim)


def advance(average: Tensor, value: Tensor, decay: Tensor) -> None:
    """``average ← decay · average + (1 − decay) · value``, in place, with one ``decay`` per plane."""
    decay = planes(decay, value.ndim)
    average.mul_(decay).addcmul_(value, 1 - decay)


def new_accumulators(p: Tensor, axes: Axes) -> dict[str, Tensor]:
    """Zeros ``momentum [3, *shape]``, ``second_moment [1, *shape]``, ``row`` and ``col``, or ``diag``, ``[3, …]``."""
    shape = tuple(p.shape)
    shapes = {"momentum": (3, *shape), "second_moment": (1, *shape)}
    if axes.factored is None:
        shapes["diag"] = (3, *shape)
    else:
        d1, d0 = axes.factored
        row, col = list(shape), list(shape)
        row[d0] = col[d1] = 1
        shapes |= {"row": (3, *row), "col": (3, *col)}
    return {name: torch.zeros(each, dtype=p.dtype, device=p.device) for name, each in shapes.items()}


def advance_all(state: Mapping[str, Tensor], gradient: Tensor, decays: Decays, axes: Axes) -> None:
    """Advance momentum, second moment and factored second moment by one gradient, in place."""
    advance(state["momentum"], gradient, decays.momentum)
    advance(state["second_moment"], gradient.square(), decays.rms)
    advance_factored(state, gradient, decays.adafactor, axes)


def advance_factored(state: Mapping[str, Tensor], gradient: Tensor, decay: Tensor, axes: Axes) -> None:
    """Advance the Adafactor-style second moment (arXiv 1804.04235) by ``gradient² + 1e-30``, in place."""
    square = gradient.square().add_(1e-30)
    if axes.factored is None:
        advance(state["diag"], square, decay)
        return
    d1, d0 = axes.factored
    advance(state["row"], square.mean(dim=d0, keepdim=True), decay)
    advance(state["col"], square.mean(dim=d1, keepdim=True), decay)


def factors(state: Mapping[str, Tensor], axes: Axes) -> Factors:
    """Row and column factors of the advanced accumulators, or the ``rsqrt`` of ``diag`` if unfactored."""
    if axes.factored is None:
        diag = state["diag"]
        return Factors(diag, diag, torch.rsqrt((diag + 1e-9).clamp(min=1e-9)), None)
    d1, _ = axes.factored
    row, col = state["row"], state["col"]
    row_factor = torch.rsqrt((row / (row.mean(dim=d1, keepdim=True) + 1e-9)).clamp(min=1e-9))
    col_factor = torch.rsqrt(col.clamp(min=1e-9))
    record("row_factor", row_factor)
    record("col_factor", col_factor)
    return Factors(row, col, row_factor, col_factor)
