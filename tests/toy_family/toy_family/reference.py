"""The toy family in JAX, for parity: written apart from ``optimizer.py``, as the original would have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from pylo_zoo.reference import Specification
from pylo_zoo.reference.tensors import clip_by_global_norm

from .converter import ToyArchitecture, ToyBehavior


@dataclass(frozen=True)
class ToyRule:
    """The rule; ``weights`` is what ``prepare`` makes of a checkpoint's theta, ``params`` are in JAX's layout."""

    architecture: ToyArchitecture
    behavior: ToyBehavior

    needs_loss = False
    routes = False

    def prepare(self, theta: Any, hyper: Any, dtype: str) -> Any:
        return theta

    def init(self, weights: Any, params: Any, rules: Any) -> dict[str, Any]:
        return {kind: {name: jnp.zeros_like(p) for name, p in params.items()} for kind in ("m", "v")}

    def update(self, weights: Any, hyper: Any, params: Any, grads: Any, state: Any, loss: Any) -> tuple[Any, Any]:
        (beta1,), (beta2,) = self.behavior.initial_momentum_decays, self.behavior.initial_rms_decays
        grads = clip_by_global_norm(grads, hyper["clip_norm"])
        m = {name: beta1 * state["m"][name] + (1 - beta1) * g for name, g in grads.items()}
        v = {name: beta2 * state["v"][name] + (1 - beta2) * g**2 for name, g in grads.items()}

        def moved(name: str, p: Any) -> Any:
            features = jnp.stack([grads[name], m[name]], axis=-1) / (jnp.sqrt(v[name]) + 1e-8)[..., None]
            step = self.behavior.step_mult * self.forward(weights, {"features": features})["mlp"][..., 0]
            return p - hyper["lr"] * (step + hyper["weight_decay"] * p)

        return {name: moved(name, p) for name, p in params.items()}, {"m": m, "v": v}

    def forward(self, weights: Any, inputs: Any) -> dict[str, Any]:
        hidden = jnp.tanh(inputs["features"] @ weights["hidden"]["w"] + weights["hidden"]["b"])
        return {"mlp": hidden @ weights["out"]["w"] + weights["out"]["b"]}


TOY = Specification(ToyRule, ToyArchitecture, ToyBehavior, hyper={"lr": 1.0, "weight_decay": 0.0, "clip_norm": None})
