"""The toy family in JAX, for parity: written independently of ``optimizer.py``, like an original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from pylo_zoo.reference import Specification
from pylo_zoo.reference.tensors import clip_by_global_norm
from pylo_zoo.reference.trace import of_tensor, record

from .converter import ToyArchitecture, ToyBehavior


@dataclass(frozen=True)
class ToyRule:
    """The rule; ``weights`` is the result of ``prepare`` for a checkpoint's theta, ``params`` are in JAX's layout."""

    architecture: ToyArchitecture
    behavior: ToyBehavior

    needs_loss = False
    routes = False

    def prepare(self, theta: Any, hyper: Any, dtype: str) -> Any:
        return theta

    def init(self, weights: Any, params: Any, rules: Any) -> dict[str, Any]:
        zeros = {name: jnp.zeros_like(p)[None] for name, p in params.items()}
        accumulators = {name: {"momentum": zero, "second_moment": zero} for name, zero in zeros.items()}
        return {"step": jnp.zeros((), jnp.int32), "learned": accumulators}

    def update(self, weights: Any, hyper: Any, params: Any, grads: Any, state: Any, loss: Any) -> tuple[Any, Any]:
        (beta1,), (beta2,) = self.behavior.initial_momentum_decays, self.behavior.initial_rms_decays
        moved, learned = {}, {}
        for name, g in clip_by_global_norm(grads, hyper["clip_norm"]).items():
            old, p = state["learned"][name], params[name]
            m = beta1 * old["momentum"] + (1 - beta1) * g
            v = beta2 * old["second_moment"] + (1 - beta2) * g**2
            features = jnp.stack([g, m[0]], axis=-1) / (jnp.sqrt(v[0]) + 1e-8)[..., None]
            with of_tensor(name):
                step = self.behavior.step_mult * self.forward(weights, {"features": features})["mlp"][..., 0]
                record("step", step)
            moved[name] = p - hyper["lr"] * (step + hyper["weight_decay"] * p)
            learned[name] = {"momentum": m, "second_moment": v}
        return moved, {"step": state["step"] + 1, "learned": learned}

    def forward(self, weights: Any, inputs: Any) -> dict[str, Any]:
        hidden = jnp.tanh(inputs["features"] @ weights["hidden"]["w"] + weights["hidden"]["b"])
        return {"mlp": hidden @ weights["out"]["w"] + weights["out"]["b"]}


TOY = Specification(ToyRule, ToyArchitecture, ToyBehavior, hyper={"lr": 1.0, "weight_decay": 0.0, "clip_norm": None})
