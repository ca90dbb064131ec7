"""CELO2, CELO2-base and ELO-CELO2: one MLP over 30 features, orthogonalization, and AdamW for vectors (SPEC §6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pylo_zoo.config import CELO2Architecture, CELO2BaseBehavior, CELO2Behavior
from pylo_zoo.reference import accumulators
from pylo_zoo.reference.accumulators import Decays, average
from pylo_zoo.reference.features import (
    VECTOR_GROUPS,
    VELO_GROUPS,
    Layers,
    groups,
    layers,
    matrix_axes,
    mlp,
    normalize,
    stack,
)
from pylo_zoo.reference.specification import MLP_HYPER, Specification
from pylo_zoo.reference.tensors import at_least_1d, clip_by_global_norm, parameter_scale
from pylo_zoo.reference.trace import of_tensor, record

NORM_EPS = 1e-9


def orthogonalize(x: Array, coefficients: tuple[float, float, float], iterations: int, eps: float) -> Array:
    """Newton–Schulz over the last two axes of ``x [*batch, rows, cols]``, on the smaller side."""
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True)) + eps)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


@dataclass(frozen=True)
class CELO2Rule:
    """The rule of CELO2, CELO2-base and ELO-CELO2.

    Attributes:
        vectors: the default rule of 0-d and 1-d parameters, "learned" or "adamw".
        clip_adamw: whether AdamW's gradients are clipped, too.
    """

    architecture: CELO2Architecture
    behavior: CELO2Behavior
    vectors: str
    clip_adamw: bool

    needs_loss = False
    routes = True

    def prepare(self, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """The MLP for matrices, the same MLP with the inputs of vectors, and the decays."""
        leaves, hidden = theta["ff_mod_stack"]["~"], self.architecture.ff_hidden_layers
        b = self.behavior
        decays = (b.initial_momentum_decays, b.initial_rms_decays, b.initial_adafactor_decays)
        return {
            "mlp": layers(leaves, hidden, groups=len(VELO_GROUPS)),
            "mlp_unfactored": layers(leaves, hidden, groups=len(VECTOR_GROUPS)),
            "decays": Decays.of(*decays, dtype=dtype),
        }

    def init(self, weights: Mapping[str, Any], params: Mapping[str, Array], rules: Mapping[str, str] | None) -> dict:
        """Zero accumulators at step 0, grouped by each tensor's rule."""
        state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32), "learned": {}, "adamw": {}}
        for name, p in params.items():
            rule = (rules or {}).get(name, "learned" if p.ndim > 1 else self.vectors)
            if rule == "learned":
                state[rule][name] = accumulators.init(at_least_1d(p).shape, str(p.dtype))
            else:
                state[rule][name] = {"momentum": jnp.zeros_like(p)[None], "second_moment": jnp.zeros_like(p)[None]}
        return state

    def update(self, weights, hyper, params, grads, state, loss) -> tuple[dict, dict]:
        """One step of every tensor."""
        grads = clip_by_global_norm(grads, hyper["clip_norm"])
        limit = hyper["grad_clip_val"]
        clipped = {name: jnp.clip(g, -limit, limit) for name, g in grads.items()}
        new_params, new_state = {}, {"step": state["step"] + 1, "learned": {}, "adamw": {}}
        for name, acc in state["learned"].items():
            p, g = at_least_1d(params[name]), at_least_1d(clipped[name])
            with of_tensor(name):
                step, new_state["learned"][name] = self._step(weights, p, g, acc)
            p = p - hyper["lr"] * (step + hyper["weight_decay"] * p)
            new_params[name] = p.reshape(params[name].shape)
        for name, acc in state["adamw"].items():
            g = clipped[name] if self.clip_adamw else grads[name]
            with of_tensor(name):
                new_params[name], new_state["adamw"][name] = _adamw(hyper, params[name], g, acc, new_state["step"])
        return new_params, new_state

    def _step(self, weights, p: Array, g: Array, acc) -> tuple[Array, dict[str, Array]]:
        b, axes = self.behavior, matrix_axes(p)
        acc = accumulators.advance(acc, g, weights["decays"])
        named = groups(p, g, acc, v_eps=1e-8)
        if p.ndim > 1:
            out = self._mlp(weights["mlp"], stack(named, VELO_GROUPS, NORM_EPS, axes))
        else:
            out = self._mlp(weights["mlp_unfactored"], stack(named, VECTOR_GROUPS, NORM_EPS, axes))
        direction, magnitude = out[..., 0], out[..., 1]
        record("direction", direction)
        record("magnitude", magnitude)
        step = direction * jnp.exp(magnitude * b.exp_mult)
        if b.param_scale_mult:
            step = step * parameter_scale(p)
        if b.orthogonalize and p.ndim > 1:
            step = orthogonalize(step, b.ns_coeffs, b.ns_iters, b.ns_eps)
            record("orthogonalized", step)
        step = b.rmsmult * normalize(step, NORM_EPS, axes)
        record("step", step)
        return step, acc

    def _mlp(self, net: Layers, features: Array) -> Array:
        return mlp(net, features, {"relu": jax.nn.relu, "tanh": jnp.tanh}[self.behavior.mlp_activation])

    def forward(self, weights, inputs) -> dict[str, Array]:
        """``features [n, 30]`` to ``mlp [n, 3]``, ``features_unfactored [n, 15]`` to ``mlp_unfactored [n, 3]``."""
        return {
            "mlp": self._mlp(weights["mlp"], inputs["features"]),
            "mlp_unfactored": self._mlp(weights["mlp_unfactored"], inputs["features_unfactored"]),
        }


def _adamw(hyper, p: Array, g: Array, acc, count: Array) -> tuple[Array, dict[str, Array]]:
    """AdamW's step number ``count`` (from 1) with decoupled decay. Accumulators are ``[1, *shape]``."""
    beta1, beta2 = hyper["adam_betas"]
    decay = hyper["weight_decay"] if hyper["adam_weight_decay"] is None else hyper["adam_weight_decay"]
    m = average(acc["momentum"], g, beta1)
    v = average(acc["second_moment"], g * g, beta2)
    m_hat, v_hat = m[0] / (1 - beta1**count), v[0] / (1 - beta2**count)
    record("m_hat", m_hat)
    record("v_hat", v_hat)
    direction = m_hat / (jnp.sqrt(v_hat) + hyper["adam_eps"])
    record("direction", direction)
    p = p - hyper["lr"] * hyper["adam_lr_mult"] * (direction + decay * p)
    return p, {"momentum": m, "second_moment": v}


HYPER = {
    **MLP_HYPER,
    "lr": 1e-3,
    "adam_lr_mult": 20.0,
    "adam_betas": (0.9, 0.95),
    "adam_eps": 1e-8,
    "adam_weight_decay": None,
    "grad_clip_val": 1000.0,
}
ELO_HYPER = {**HYPER, "weight_decay": 0.1, "clip_norm": 1.0, "adam_lr_mult": 1.0}

VECTORS_ADAMW = {"vectors": "adamw", "clip_adamw": False}
VECTORS_LEARNED = {"vectors": "learned", "clip_adamw": False}
VECTORS_CLIPPED_ADAMW = {"vectors": "adamw", "clip_adamw": True}
_RULE, _SIZES = CELO2Rule, CELO2Architecture

CELO2 = Specification(_RULE, _SIZES, CELO2Behavior, HYPER, VECTORS_ADAMW, name="celo2")
CELO2_BASE = Specification(_RULE, _SIZES, CELO2BaseBehavior, HYPER, VECTORS_LEARNED, name="celo2-base")
ELO_CELO2 = Specification(_RULE, _SIZES, CELO2Behavior, ELO_HYPER, VECTORS_CLIPPED_ADAMW, name="elo-celo2")
