"""The per-parameter MLP and its input features (SPEC §2, §3, §4).

A family uses an ordered subset of the feature groups, with its epsilons and axes of the normalizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import rsqrt

from pylo_zoo.reference.accumulators import factors
from pylo_zoo.reference.trace import record

Layers = list[tuple[Array, Array]]

#: SPEC §3: 28 channels, followed by the time features.
ADAFAC_GROUPS = (
    "gradient", "parameter", "momentum", "second_moment", "normalized_momentum", "rsqrt_second_moment",
    "factored_gradient", "row", "col", "rsqrt_row", "rsqrt_col", "factored_momentum",
)  # fmt: skip
#: SPEC §4: 14 groups, 30 channels.
VELO_GROUPS = (
    "gradient", "clipped_gradient", "parameter", "momentum", "second_moment", "normalized_momentum",
    "rsqrt_second_moment", "factored_gradient", "normalized_gradient", "row", "col", "rsqrt_row", "rsqrt_col",
    "factored_momentum",
)  # fmt: skip
#: SPEC §6: the features of a vector in CELO2, 15 channels.
VECTOR_GROUPS = VELO_GROUPS[:9]

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


def normalize(x: Array, eps: float, axes: Sequence[int]) -> Array:
    """``x`` divided by its root mean square over ``axes`` (SPEC §2)."""
    return x * rsqrt(eps + jnp.mean(x * x, axis=tuple(axes), keepdims=True))


def all_axes(p: Array) -> tuple[int, ...]:
    """Every axis of ``p`` as negative indices, which are also valid with a leading axis of channels."""
    return tuple(range(-p.ndim, 0))


def matrix_axes(p: Array) -> tuple[int, ...]:
    """The last two axes of ``p``, or the one axis of a vector."""
    return all_axes(p)[-2:]


def groups(p: Array, g: Array, acc: Mapping[str, Array], *, v_eps: float, diag_eps: float = 0.0) -> dict[str, Array]:
    """All feature groups of one parameter before normalization, by name.

    Args:
        p, g: parameter and gradient ``[*shape]``.
        acc: the advanced accumulators.
        v_eps: added to the second moment under its root.
        diag_eps: added to an unfactored diag, only in ``factored_momentum``.

    Returns:
        ``[k, *shape]`` per group.
    """
    m, v = acc["momentum"], acc["second_moment"]
    rsqrt_v = rsqrt(v + v_eps)
    unfactored = {
        "gradient": g[None],
        "clipped_gradient": jnp.clip(g, -0.1, 0.1)[None],
        "parameter": p[None],
        "momentum": m,
        "second_moment": v,
        "normalized_momentum": m * rsqrt_v,
        "rsqrt_second_moment": rsqrt_v,
        "normalized_gradient": g * rsqrt_v,
    }
    return unfactored | _factored_groups(g, acc, diag_eps)


def _factored_groups(g: Array, acc: Mapping[str, Array], diag_eps: float) -> dict[str, Array]:
    m = acc["momentum"]
    if f := factors(acc, g.shape):
        row, col = jnp.broadcast_to(f.row, m.shape), jnp.broadcast_to(f.col, m.shape)
        factored_gradient = g * f.row_factor * f.col_factor
        factored_momentum = m * f.row_factor * f.col_factor
    else:
        row = col = acc["diag"]
        factored_gradient = g * rsqrt(jnp.maximum(row + 1e-9, 1e-9))
        factored_momentum = m * rsqrt(row + diag_eps)
    return {
        "factored_gradient": factored_gradient,
        "row": row,
        "col": col,
        "rsqrt_row": rsqrt(row + 1e-8),
        "rsqrt_col": rsqrt(col + 1e-8),
        "factored_momentum": factored_momentum,
    }


def stack(named: Mapping[str, Array], order: Sequence[str], eps: float, axes: Sequence[int]) -> Array:
    """The normalized groups of ``order``, concatenated with channels last: ``[*shape, channels]``."""
    normalized = {name: normalize(named[name], eps, axes) for name in order}
    for name in order:
        record(f"features/{name}", named[name])
        record(f"normalized/{name}", normalized[name])
    return jnp.moveaxis(jnp.concatenate(list(normalized.values())), 0, -1)


def time_features(t: Array, dtype: str) -> Array:
    """``tanh(t/τ − 1)``, ``[11]`` (SPEC §3)."""
    return jnp.tanh(t.astype(dtype) / jnp.asarray(TIME_SCALES, dtype) - 1)


def layers(leaves: Mapping[str, Any], hidden_layers: int, groups: int = 0) -> Layers:
    """The MLP of checkpoint leaves ``w0, b0, … wL, bL``. With ``groups``, w0 is split into as many leaves ``w0__k``."""
    leaves = dict(leaves)
    if groups:
        leaves["w0"] = jnp.concatenate([leaves[f"w0__{k}"] for k in range(groups)], axis=-2)
    return [(leaves[f"w{i}"], leaves[f"b{i}"]) for i in range(hidden_layers + 1)]


def mlp(weights: Layers, x: Array, activation: Callable[[Array], Array] = jax.nn.relu) -> Array:
    """``[*shape, channels]`` to ``[*shape, outputs]``, each hidden layer followed by ``activation``."""
    *hidden, (w, b) = weights
    for w_hidden, b_hidden in hidden:
        x = activation(x @ w_hidden + b_hidden)
    return x @ w + b
