"""Running averages and the factored second moment (SPEC §1).

An accumulator has one plane per decay: ``[k, *shape]``. ``shape`` has at least one axis: a 0-d parameter is passed with
shape ``(1,)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import rsqrt

from pylo_zoo.reference.trace import record


class Decays(NamedTuple):
    """The effective decays: momentum ``[3]``, rms ``[1]``, adafactor ``[3]``."""

    momentum: Array
    rms: Array
    adafactor: Array

    @classmethod
    def of(cls, momentum: Any, rms: Any, adafactor: Any, dtype: str) -> Decays:
        """Decays in ``dtype``, with those of the second moments clipped to [0, 1]."""
        momentum, rms, adafactor = (jnp.asarray(d, dtype) for d in (momentum, rms, adafactor))
        return cls(momentum, jnp.clip(rms, 0, 1), jnp.clip(adafactor, 0, 1))


class Factors(NamedTuple):
    """A factored second moment, every field broadcastable to ``[3, *shape]``."""

    row: Array
    col: Array
    row_factor: Array
    col_factor: Array


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """``(d0, d1)``, the largest and the second largest axis. Of equal axes, the later is d0. None for fewer axes."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-1]), int(order[-2])


def average(old: Array, new: Array, decay: Array) -> Array:
    """``d·old + (1 − d)·new`` per channel: old ``[k, *s]``, new ``[*s]`` or ``[k, *s]``, decay ``[k]``."""
    d = decay.reshape(-1, *(1,) * (old.ndim - 1))
    return d * old + (1 - d) * new


def init(shape: Sequence[int], dtype: str) -> dict[str, Array]:
    """Zeros: momentum ``[3, *shape]``, second_moment ``[1, *shape]``, and row and col, or diag ``[3, *shape]``.

    ``row`` lacks axis d0 and ``col`` lacks axis d1.
    """
    shapes = {"momentum": (3, *shape), "second_moment": (1, *shape)}
    if axes := factored_axes(shape):
        shapes["row"], shapes["col"] = ((3, *np.delete(shape, axis).tolist()) for axis in axes)
    else:
        shapes["diag"] = (3, *shape)
    return {name: jnp.zeros(each, dtype) for name, each in shapes.items()}


def advance(acc: Mapping[str, Array], g: Array, decays: Decays) -> dict[str, Array]:
    """The accumulators after gradient ``g [*shape]``."""
    new = {
        "momentum": average(acc["momentum"], g, decays.momentum),
        "second_moment": average(acc["second_moment"], g * g, decays.rms),
    }
    s = g * g + 1e-30
    if axes := factored_axes(g.shape):
        d0, d1 = axes
        new["row"] = average(acc["row"], jnp.mean(s, axis=d0), decays.adafactor)
        new["col"] = average(acc["col"], jnp.mean(s, axis=d1), decays.adafactor)
    else:
        new["diag"] = average(acc["diag"], s, decays.adafactor)
    return new


def factors(acc: Mapping[str, Array], shape: Sequence[int]) -> Factors | None:
    """Row, column and their factors for a parameter of ``shape``. None if it is not factored."""
    axes = factored_axes(shape)
    if axes is None:
        return None
    d0, d1 = (axis + 1 for axis in axes)  # after the axis of the decays
    row, col = jnp.expand_dims(acc["row"], d0), jnp.expand_dims(acc["col"], d1)
    relative = row / (jnp.mean(row, axis=d1, keepdims=True) + 1e-9)
    row_factor, col_factor = rsqrt(jnp.maximum(relative, 1e-9)), rsqrt(jnp.maximum(col, 1e-9))
    record("row_factor", row_factor)
    record("col_factor", col_factor)
    return Factors(row, col, row_factor, col_factor)
