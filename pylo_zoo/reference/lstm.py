"""The per-tensor LSTM of VeLO and Celo, and its input features (SPEC §4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import rsqrt

from pylo_zoo.reference.tensors import mean_square

FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)


# --- features ----------------------------------------------------------------------------------------------------


def loss_decays(num_steps: float, dtype: str) -> Array:
    """``exp(−1/h)`` for ten horizons h, log-spaced from 10 to ``num_steps``: ``[10]``."""
    horizons = np.logspace(1, np.log10(num_steps), 10)
    return jnp.asarray(np.exp(-1 / horizons), dtype)


def init_loss(dtype: str) -> dict[str, Array]:
    """The state before the first loss: loss_average ``[10]``, loss_minimum ``[10]``, loss_count."""
    minimum = jnp.full(10, 999999999999, dtype)
    return {"loss_average": jnp.zeros(10, dtype), "loss_minimum": minimum, "loss_count": jnp.zeros((), jnp.int32)}


def advance_loss(state: Mapping[str, Array], loss: Array, decays: Array) -> dict[str, Array]:
    """The running means and minima after one more loss, which is capped at twice the largest corrected mean."""
    average, count = state["loss_average"], state["loss_count"]
    correction = 1 - decays ** (count + 1)
    cap = jnp.where(count == 0, loss, jnp.max(average / correction))
    loss = jnp.minimum(2 * jnp.abs(cap), loss)
    average = decays * average + (1 - decays) * loss
    minimum = jnp.minimum(state["loss_minimum"], average / correction)
    return {"loss_average": average, "loss_minimum": minimum, "loss_count": count + 1}


def loss_features(state: Mapping[str, Array], decays: Array) -> Array:
    """Each mean's distance to its minimum, relative to that of the next slower mean: ``[9]``, zeros for two steps."""
    c = state["loss_average"] / (1 - decays ** state["loss_count"])
    r = state["loss_minimum"]
    ratio = (c[:-1] - r[:-1]) / jnp.maximum(1e-8, c[1:] - r[:-1])
    return jnp.where(state["loss_count"] <= 2, 0, jnp.clip(ratio - 1, -1, 1))


def fraction_features(t: Array, num_steps: Array) -> Array:
    """The position of step ``t`` in the run: ``[9]``. After the end, it is that of the last step."""
    t = jnp.minimum(t.astype(num_steps.dtype), num_steps - 1)
    return jnp.tanh(10 * (t / num_steps - jnp.asarray(FRACTIONS, num_steps.dtype)))


def tensor_features(p: Array, acc: Mapping[str, Array]) -> Array:
    """mean_rms, rank, var_m, var_rms of one tensor and its accumulators before the step: ``[1 + 5 + 3 + 3]``."""
    scale, axes = rsqrt(jnp.maximum(1e-9, mean_square(p))), tuple(range(1, p.ndim + 1))
    m, v = scale * acc["momentum"], scale * acc["second_moment"]
    mean_m = jnp.mean(m, axis=axes, keepdims=True)
    mean_rms = _log(jnp.mean(v, axis=axes))
    var_m = _log(jnp.mean((m - mean_m) ** 2, axis=axes))
    var_rms = _log(jnp.mean((v - mean_m) ** 2, axis=axes))  # mean_m, not mean_v: the weights were trained with it
    rank = jax.nn.one_hot(sum(size > 1 for size in p.shape), 5, dtype=p.dtype)
    return jnp.concatenate([mean_rms, rank, var_m, var_rms])


def _log(x: Array) -> Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10 * x)), -5, 5)


# --- network -----------------------------------------------------------------------------------------------------


def affine(leaves: Mapping[str, Array], x: Array) -> Array:
    """``x @ w + b``."""
    return x @ leaves["w"] + leaves["b"]


def lstm(rnn: Mapping[str, Any], z: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
    """One step of the LSTM for all tensors.

    Args:
        rnn: the checkpoint's ``rnn_params``.
        z: inputs per tensor ``[N, 30 or 18]``.
        hidden, cell: ``[N, H]``.

    Returns:
        The next hidden and cell ``[N, H]``.
    """
    shared = jnp.max(jax.nn.relu(affine(rnn["linear_1"], z)), axis=0)
    x = affine(rnn["linear_2"], z) + shared
    gates = affine(rnn["rnn/linear"], jnp.concatenate([x, hidden], axis=-1))
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell
