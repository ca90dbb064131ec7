"""VeLO, Celo and celo-adam: a per-tensor LSTM controls a per-parameter rule (SPEC §4, §5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pylo_zoo.config import CeloAdamBehavior, CeloBehavior, ControllerArchitecture, HyperNetArchitecture, VeLOBehavior
from pylo_zoo.reference import accumulators
from pylo_zoo.reference.accumulators import Decays, average
from pylo_zoo.reference.features import VELO_GROUPS, Layers, all_axes, groups, layers, mlp, stack
from pylo_zoo.reference.lstm import (
    advance_loss,
    affine,
    fraction_features,
    init_loss,
    loss_decays,
    loss_features,
    lstm,
    tensor_features,
)
from pylo_zoo.reference.specification import REQUIRED, Specification
from pylo_zoo.reference.tensors import at_least_1d, parameter_scale
from pylo_zoo.reference.trace import of_tensor, record

GRADIENT_LIMIT = 1000.0


@dataclass(frozen=True)
class Controller(ABC):
    """The LSTM stage, which the three families share. Tensors are stacked in the sorted order of their names.

    A family adds ``init_tensor`` and ``step``, the rule of one tensor, and ``write`` if it has an MLP.
    """

    architecture: Any
    behavior: Any

    needs_loss = True
    routes = False
    bugged_lstm_state = False
    bugged_loss_features = False

    def prepare(self, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """The LSTM, its initial state, and the decays of the loss features."""
        horizon = 10 if self.bugged_loss_features else hyper["num_steps"]
        state, decays = theta["lstm_init_state"], loss_decays(horizon, dtype)
        return {"rnn": theta["rnn_params"], "lstm_init": state, "loss_decays": decays}

    def init(self, weights: Mapping[str, Any], params: Mapping[str, Array], rules: Mapping[str, str] | None) -> dict:
        """Zero accumulators at step 0, the state before the first loss, the checkpoint's LSTM state per tensor."""
        hidden, cell = (jnp.tile(weights["lstm_init"][leaf], (len(params), 1)) for leaf in ("hidden", "cell"))
        tensors = {name: self.init_tensor(at_least_1d(p)) for name, p in params.items()}
        loss = init_loss(str(hidden.dtype))
        return {"step": jnp.zeros((), jnp.int32), "lstm_hidden": hidden, "lstm_cell": cell, "learned": tensors, **loss}

    def update(self, weights, hyper, params, grads, state, loss) -> tuple[dict, dict]:
        """One step of every tensor."""
        t, names = state["step"], sorted(params)
        losses = advance_loss(state, loss, weights["loss_decays"])
        progress = [fraction_features(t, hyper["num_steps"]), loss_features(losses, weights["loss_decays"])]
        record("fraction_features", progress[0])
        record("loss_features", progress[1])
        old = [(at_least_1d(params[name]), state["learned"][name]) for name in names]
        z = self.lstm_inputs(jnp.concatenate(progress), old)
        control = self.run_lstm(weights, z, state["lstm_hidden"], state["lstm_cell"])
        nets = self.write(weights, control)
        record("lstm_inputs", z)
        record("lr_mult", control["lr_mult"])
        if nets:
            record("controls", control["controls"])
        for k, (w, _) in enumerate(nets):
            record(f"written/{k}", w.mT)  # in torch's layout, for the comparison

        new_params, tensors = {}, {}
        for i, (name, (p, acc)) in enumerate(zip(names, old, strict=True)):
            g = jnp.clip(at_least_1d(grads[name]), -GRADIENT_LIMIT, GRADIENT_LIMIT)
            net = [(w[i], b[i]) for w, b in nets]
            with of_tensor(name):
                step, tensors[name] = self.step(weights, net, p, g, acc, t)
                step = step * self.behavior.step_mult * control["lr_mult"][i]
                record("step", step)
            p = p - hyper["lr"] * (step + hyper["weight_decay"] * p)
            new_params[name] = p.reshape(params[name].shape)

        hidden, cell = control["hidden"], control["cell"]
        if self.bugged_lstm_state:
            hidden, cell = state["lstm_hidden"], state["lstm_cell"]
        return new_params, {"step": t + 1, "lstm_hidden": hidden, "lstm_cell": cell, "learned": tensors, **losses}

    def forward(self, weights, inputs) -> dict[str, Array]:
        """The LSTM's outputs for N tensors and, if it has an MLP, its outputs on ``features``: ``mlp [N, n, 3]``."""
        control = self.run_lstm(weights, inputs["lstm_inputs"], inputs["hidden"], inputs["cell"])
        nets = self.write(weights, control)
        return control | ({"mlp": jax.vmap(mlp, (0, None))(nets, inputs["features"])} if nets else {})

    def run_lstm(self, weights, z: Array, hidden: Array, cell: Array) -> dict[str, Array]:
        """The LSTM's next state ``[N, H]``, and lr_mult ``[N]``."""
        hidden, cell = lstm(weights["rnn"], z, hidden, cell)
        lr_mult = self.lr_mult(affine(weights["rnn"]["step_size"], hidden)[:, 0])
        return {"hidden": hidden, "cell": cell, "lr_mult": lr_mult}

    def lstm_inputs(self, progress: Array, tensors: Sequence[tuple[Array, Mapping[str, Array]]]) -> Array:
        """The same 18 features of the run for every tensor: ``[N, 18]``."""
        return jnp.tile(progress, (len(tensors), 1))

    def lr_mult(self, x: Array) -> Array:
        return 0.1 * jnp.exp(x)

    def write(self, weights, control: Mapping[str, Array]) -> Layers:
        """The generated MLPs' layers, with a leading axis of tensors. Empty if the family has no MLP."""
        return []

    @abstractmethod
    def init_tensor(self, p: Array) -> dict[str, Array]:
        """Accumulators of one tensor at step 0."""

    @abstractmethod
    def step(self, weights, net: Layers, p: Array, g: Array, acc, t: Array) -> tuple[Array, dict[str, Array]]:
        """The step of one tensor, without lr, ``lr_mult`` and decay, and its advanced accumulators."""


@dataclass(frozen=True)
class CeloAdam(Controller):
    """Adam with learning rates from the LSTM. Accumulators: ``[1, *shape]``."""

    architecture: ControllerArchitecture
    behavior: CeloAdamBehavior

    def init_tensor(self, p: Array) -> dict[str, Array]:
        return {"momentum": jnp.zeros_like(p)[None], "second_moment": jnp.zeros_like(p)[None]}

    def step(self, weights, net: Layers, p: Array, g: Array, acc, t: Array) -> tuple[Array, dict[str, Array]]:
        """``m̂ / (1e-8 + sqrt(v̂ + 1e-10))``."""
        beta1 = jnp.asarray(self.behavior.initial_momentum_decays, p.dtype)
        beta2 = jnp.asarray(self.behavior.initial_rms_decays, p.dtype)
        m, v = average(acc["momentum"], g, beta1), average(acc["second_moment"], g * g, beta2)
        m_hat, v_hat = m[0] / (1 - beta1 ** (t + 1)), v[0] / (1 - beta2 ** (t + 1))
        record("m_hat", m_hat)
        record("v_hat", v_hat)
        direction = m_hat / (1e-8 + jnp.sqrt(v_hat + 1e-10))
        record("direction", direction)
        return direction, {"momentum": m, "second_moment": v}


@dataclass(frozen=True)
class Celo(Controller):
    """The LSTM mixes a stack of MLPs into one per tensor."""

    architecture: HyperNetArchitecture
    behavior: CeloBehavior

    def prepare(self, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """The controller's weights, the stack of MLPs and the accumulators' decays."""
        b, leaves = self.behavior, theta["ff_mod_stack"]["~"]
        decays = (b.initial_momentum_decays, b.initial_rms_decays, b.initial_adafactor_decays)
        return super().prepare(theta, hyper, dtype) | {
            "stack": layers(leaves, self.architecture.ff_hidden_layers, groups=len(VELO_GROUPS)),
            "decays": Decays.of(*decays, dtype=dtype),
        }

    def run_lstm(self, weights, z: Array, hidden: Array, cell: Array) -> dict[str, Array]:
        """The LSTM's next state ``[N, H]``, lr_mult ``[N]`` and controls ``[N, inits]``."""
        control = super().run_lstm(weights, z, hidden, cell)
        return control | {"controls": self.controls(affine(weights["rnn"]["rnn_to_controls"], control["hidden"]))}

    def controls(self, x: Array) -> Array:
        return jax.nn.softmax(x, axis=-1)

    def write(self, weights, control: Mapping[str, Array]) -> Layers:
        """``mean over inits(controls · stack)`` for every tensor."""
        controls = control["controls"]
        return jax.tree.map(lambda w: jnp.tensordot(controls, w, 1) / controls.shape[1], weights["stack"])

    def init_tensor(self, p: Array) -> dict[str, Array]:
        return accumulators.init(p.shape, str(p.dtype))

    def step(self, weights, net: Layers, p: Array, g: Array, acc, t: Array) -> tuple[Array, dict[str, Array]]:
        """``direction · exp(magnitude · exp_mult)``, times the parameter's scale."""
        acc = accumulators.advance(acc, g, weights["decays"])
        out = mlp(net, stack(groups(p, g, acc, v_eps=1e-6), VELO_GROUPS, eps=1e-5, axes=all_axes(p)))
        direction, magnitude = out[..., 0], out[..., 1]
        record("direction", direction)
        record("magnitude", magnitude)
        return direction * jnp.exp(magnitude * self.behavior.exp_mult) * parameter_scale(p), acc


@dataclass(frozen=True)
class VeLO(Celo):
    """The LSTM's inputs include features of each tensor, and its outputs are linear."""

    behavior: VeLOBehavior

    @property
    def bugged_lstm_state(self) -> bool:
        return self.behavior.use_bugged_next_lstm_state

    @property
    def bugged_loss_features(self) -> bool:
        return self.behavior.use_bugged_loss_features

    def lstm_inputs(self, progress: Array, tensors: Sequence[tuple[Array, Mapping[str, Array]]]) -> Array:
        """The features of the run, then those of the tensor: ``[N, 30]``."""
        per_tensor = jnp.stack([tensor_features(p, acc) for p, acc in tensors])
        return jnp.concatenate([super().lstm_inputs(progress, tensors), per_tensor], axis=1)

    def lr_mult(self, x: Array) -> Array:
        return x

    def controls(self, x: Array) -> Array:
        return x

    def write(self, weights, control: Mapping[str, Array]) -> Layers:
        """As in Celo, times ff_mult."""
        return jax.tree.map(lambda w: self.behavior.ff_mult * w, super().write(weights, control))


HYPER = {"num_steps": REQUIRED, "lr": 1.0, "weight_decay": 0.0}

VELO = Specification(VeLO, HyperNetArchitecture, VeLOBehavior, HYPER, name="velo")
CELO = Specification(Celo, HyperNetArchitecture, CeloBehavior, HYPER, name="celo")
CELO_ADAM = Specification(CeloAdam, ControllerArchitecture, CeloAdamBehavior, HYPER, name="celo-adam")
