"""The records that are passed to the CPU kernels (``plan.h``, ``network.h``, ``adam.h``, ``normalized.h``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Adam, Normalized, Task
from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.features import ADAFAC_FEATURES, CELO2_UNFACTORED_FEATURES, VELO_FEATURES
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

TASK = Struct("=6q 5q 3i 9f")
RULE = Struct("=6i 4f")
LAYER = Struct("=6q")
ADAM = Struct("=5q 9f i")
NORMALIZED = Struct("=2q 5q 4f")
LONGEST_CYCLE = 64
"""As in ``plan.h``."""
MAX_HIDDEN = 32


class Geometry(NamedTuple):
    """A parameter's shape, merged to ``[a, x, b, y, c]``: x and y are the factored axes in memory order."""

    a: int
    x: int
    b: int
    y: int
    c: int
    factored: bool
    outer_is_row: bool
    """Whether x is d1, so that ``row`` is the factor indexed by x."""


@lru_cache(maxsize=4096)
def geometry(shape: tuple[int, ...], factored: tuple[int, int] | None) -> Geometry:
    """The geometry of a parameter of ``shape``. ``factored`` is :attr:`Axes.factored` or another pair of axes."""
    if factored is None:
        return Geometry(1, 1, 1, math.prod(shape), 1, False, False)
    first, second = sorted(axis + len(shape) for axis in factored)
    merged = (math.prod(shape[:first]), shape[first], math.prod(shape[first + 1 : second]), shape[second])
    return Geometry(*merged, math.prod(shape[second + 1 :]), True, factored[0] + len(shape) == first)


@lru_cache(maxsize=4096)
def covered(shape: tuple[int, ...], axes: Axes, rule: Rule, hidden: int) -> bool:
    """Whether the kernels support this parameter, rule and number of hidden units."""
    velo = rule.features == VELO_FEATURES
    known = velo or rule.features == ADAFAC_FEATURES
    unfactored = rule.unfactored == rule.features or (velo and rule.unfactored == CELO2_UNFACTORED_FEATURES)
    if not (known and unfactored and 0 < hidden <= MAX_HIDDEN and rule.activation in ("relu", "tanh")):
        return False
    merged = geometry(shape, axes.factored)
    if math.prod(shape) == 0 or merged.c > LONGEST_CYCLE:
        return False
    if not rule.per_matrix:
        return True
    if axes.factored is None:
        return axes.matrix == axes.all
    return velo and set(axes.matrix) == set(axes.factored) and merged.b == 1


def task_records(tasks: Sequence[Task]) -> bytearray:
    """``struct Task`` of ``plan.h``, one per parameter."""
    records = bytearray(TASK.size * len(tasks))
    decays: dict[int, tuple[float, ...]] = {}
    for k, task in enumerate(tasks):
        p, g, state, axes, each, limit, replace = task
        values = decays.get(id(each))
        if values is None:
            values = decays[id(each)] = decay_values(each)
        a, x, b, y, c, factored, outer_is_row = geometry(p.shape, axes.factored)
        first, second = factor_pointers(state, factored)
        pointers = p.data_ptr(), g.data_ptr(), state["momentum"].data_ptr(), state["second_moment"].data_ptr(), first
        if 0 in pointers or (factored and not second):
            raise no_memory(p)
        TASK.pack_into(
            *(records, k * TASK.size, *pointers, second),
            *(a, x, b, y, c, factored, outer_is_row, replace, limit, *values, 0.0),
        )
    return records


def no_memory(p: Tensor) -> ZooError:
    return ZooError(f"A parameter of shape {tuple(p.shape)} has a tensor without memory.", "Allocate its memory.")


def factor_pointers(state: Mapping[str, Tensor], factored: bool) -> tuple[int, int]:
    return (state["row"].data_ptr(), state["col"].data_ptr()) if factored else (state["diag"].data_ptr(), 0)


def decay_values(decays: Decays) -> tuple[float, ...]:
    return (*decays.momentum.tolist(), *decays.rms.tolist(), *decays.adafactor.tolist())


def rule_record(rule: Rule, moments: bool) -> bytes:
    """``struct Rule`` of ``plan.h``. ``moments``: whether :meth:`CpuKernels.moments` will be called."""
    velo, tanh = rule.features == VELO_FEATURES, rule.activation == "tanh"
    flags = (velo, rule.unfactored != rule.features, rule.per_matrix, tanh, rule.parameter_scale, moments)
    return RULE.pack(*flags, rule.rsqrt_eps, rule.diag_eps, rule.norm_eps, rule.exp_mult)


def layer_records(layers: Sequence[Layer]) -> bytes:
    """``struct Layer`` of ``network.h``. A weight with 3 axes or a bias with 2 has one entry per parameter."""
    return b"".join(
        LAYER.pack(
            *(weight.data_ptr(), bias.data_ptr()),
            *(weight.stride(0) if weight.ndim == 3 else 0, bias.stride(0) if bias.ndim == 2 else 0),
            *(weight.shape[-1], weight.shape[-2]),
        )
        for weight, bias in layers
    )


def normalized_records(tasks: Sequence[Normalized]) -> bytearray:
    """``struct Normalized`` of ``normalized.h``, one per parameter, without the numbers that change."""
    records = bytearray(NORMALIZED.size * len(tasks))
    for k, (p, step, over, eps) in enumerate(tasks):
        shape = geometry(tuple(p.shape), over if len(over) == 2 else None)[:5]
        NORMALIZED.pack_into(records, k * NORMALIZED.size, p.data_ptr(), step.data_ptr(), *shape, 0.0, 0.0, eps, 0.0)
    return records


def adam_records(tasks: Sequence[Adam]) -> bytearray:
    """``struct Adam`` of ``adam.h``, one per parameter, without the numbers that change."""
    records = bytearray(ADAM.size * len(tasks))
    for k, task in enumerate(tasks):
        tensors = task[:4]
        ADAM.pack_into(
            records, k * ADAM.size, *(x.data_ptr() for x in tensors), task.p.numel(), *[0.0] * 9, task.nesterov
        )
    return records
