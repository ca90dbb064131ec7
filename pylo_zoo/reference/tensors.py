"""Operations on whole tensors that several families use."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from pylo_zoo.reference.trace import record


def at_least_1d(x: Array) -> Array:
    """A 0-d tensor as shape ``(1,)`` (SPEC §1), any other unchanged."""
    return jnp.atleast_1d(x)


def clip_by_global_norm(grads: Mapping[str, Array], clip_norm: Array | None) -> dict[str, Array]:
    """Scale all gradients so that their global norm is at most ``clip_norm``. None disables clipping."""
    if clip_norm is None:
        return dict(grads)
    norm = jnp.sqrt(sum((jnp.sum(g * g) for g in grads.values()), start=jnp.zeros_like(clip_norm)))
    scale = jnp.minimum(1, clip_norm / norm)
    return {name: g * scale for name, g in grads.items()}


def mean_square(p: Array) -> Array:
    """``mean(p²)`` over all axes."""
    return jnp.mean(p * p)


def parameter_scale(p: Array) -> Array:
    """``sqrt(mean(p²) + 1e-9)`` over all axes."""
    scale = jnp.sqrt(mean_square(p) + 1e-9)
    record("parameter_scale", scale)
    return scale
