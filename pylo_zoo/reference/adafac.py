"""AdafacMLP (small_fc_lopt), μLO and ELO: one MLP over 39 features (SPEC §3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from pylo_zoo.config import AdafacBehavior, ELOBehavior, MLPArchitecture, MuLOBehavior
from pylo_zoo.reference import accumulators
from pylo_zoo.reference.accumulators import Decays
from pylo_zoo.reference.features import ADAFAC_GROUPS, all_axes, groups, layers, mlp, stack, time_features
from pylo_zoo.reference.specification import MLP_HYPER, Specification
from pylo_zoo.reference.tensors import at_least_1d, clip_by_global_norm
from pylo_zoo.reference.trace import of_tensor, record


def learned_decays(initial: tuple[float, ...], offset: Array) -> Array:
    """``1 − exp(10·(ln(1 − d0)/10 + offset))``: the decay ``initial`` with its meta-learned offset."""
    d0 = jnp.asarray(initial, offset.dtype)
    return 1 - jnp.exp(10 * (jnp.log(1 - d0) / 10 + offset))


@dataclass(frozen=True)
class Adafac:
    """The rule of AdafacMLP, μLO and ELO.

    Attributes:
        learned: whether the checkpoint has decay offsets.
        cleaned: whether ``nan_to_num`` is applied to gradients.
    """

    architecture: MLPArchitecture
    behavior: AdafacBehavior | ELOBehavior
    learned: bool
    cleaned: bool

    needs_loss = False
    routes = False

    def prepare(self, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """The MLP's layers and the effective decays."""
        b = self.behavior
        decays = [b.initial_momentum_decays, b.initial_rms_decays, b.initial_adafactor_decays]
        if self.learned:
            names = ("momentum_decays", "rms_decays", "adafactor_decays")
            decays = [learned_decays(d0, theta[name]) for d0, name in zip(decays, names, strict=True)]
        net = layers(theta["nn"]["~"], self.architecture.hidden_layers)
        return {"mlp": net, "decays": Decays.of(*decays, dtype=dtype)}

    def init(self, weights: Mapping[str, Any], params: Mapping[str, Array], rules: Mapping[str, str] | None) -> dict:
        """Zero accumulators at step 0."""
        learned = {name: accumulators.init(at_least_1d(p).shape, str(p.dtype)) for name, p in params.items()}
        return {"step": jnp.zeros((), jnp.int32), "learned": learned}

    def update(self, weights, hyper, params, grads, state, loss) -> tuple[dict, dict]:
        """One step of every tensor."""
        grads = clip_by_global_norm(grads, hyper["clip_norm"])
        if self.cleaned:
            grads = {name: jnp.nan_to_num(g) for name, g in grads.items()}
        step_mult = getattr(self.behavior, "step_mult", 1.0)  # not in ELO
        width_mult = hyper.get("width_mult", {})  # only in μLO
        time = time_features(state["step"], str(next(iter(params.values())).dtype))
        record("time_features", time)
        new_params, learned = {}, {}
        for name, old in params.items():
            p, g = at_least_1d(old), at_least_1d(grads[name])
            with of_tensor(name):
                step, learned[name] = self._step(weights, p, g, state["learned"][name], time)
                step = step * step_mult / width_mult.get(name, 1.0)
                record("step", step)
            p = p - hyper["lr"] * (step + hyper["weight_decay"] * p)
            new_params[name] = p.reshape(old.shape)
        return new_params, {"step": state["step"] + 1, "learned": learned}

    def _step(self, weights, p: Array, g: Array, acc, time: Array) -> tuple[Array, dict[str, Array]]:
        acc = accumulators.advance(acc, g, weights["decays"])
        named = groups(p, g, acc, v_eps=1e-6, diag_eps=1e-6)
        features = stack(named, ADAFAC_GROUPS, eps=1e-5, axes=all_axes(p))
        inputs = jnp.concatenate([features, jnp.broadcast_to(time, (*p.shape, 11))], axis=-1)
        out = mlp(weights["mlp"], inputs)
        direction, magnitude = out[..., 0], out[..., 1]
        record("direction", direction)
        record("magnitude", magnitude)
        return direction * jnp.exp(magnitude * self.behavior.exp_mult), acc

    def forward(self, weights, inputs) -> dict[str, Array]:
        """``features [n, 39]`` to ``mlp [n, 2]``, and the effective decays if they are learned."""
        decays = {f"{name}_decays": d for name, d in weights["decays"]._asdict().items()} if self.learned else {}
        return {"mlp": mlp(weights["mlp"], inputs["features"]), **decays}


ADAFAC_MLP = Specification(
    Adafac, MLPArchitecture, AdafacBehavior, MLP_HYPER, {"learned": True, "cleaned": False}, name="adafac-mlp"
)
MULO = Specification(
    Adafac,
    MLPArchitecture,
    MuLOBehavior,
    {**MLP_HYPER, "width_mult": {}},
    {"learned": True, "cleaned": True},
    defines_nan=True,
    name="mulo",
)
ELO = Specification(
    Adafac,
    MLPArchitecture,
    ELOBehavior,
    {**MLP_HYPER, "lr": 1e-3},
    {"learned": False, "cleaned": True},
    defines_nan=True,
    name="elo",
)
