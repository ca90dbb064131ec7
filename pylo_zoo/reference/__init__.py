"""The learned optimizers in plain JAX: the second opinion that the torch side is judged by.

Written from the published mathematics alone (SPEC; papers 2211.09760, 2501.12670, 2602.19142, 2203.11860, 2406.00153,
2506.10315), and checked against trajectories of the original code. It shares nothing with the torch side but the
records of ``pylo_zoo.config``. Everything is in JAX's layout, ``(*spatial, in, out)``.

    reference = build("velo", theta, architecture=..., behavior=..., hyper={"num_steps": 1000})
    state = reference.init(params)
    params, state = reference.update(params, grads, state, loss)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pylo_zoo import config
from pylo_zoo.errors import ZooError
from pylo_zoo.reference.adafac import Adafac
from pylo_zoo.reference.celo2 import CELO2
from pylo_zoo.reference.velo import Celo, CeloAdam, VeLO

__all__ = ["Reference", "build"]

CELO2_RECORDS = (config.CELO2Architecture, config.CELO2Behavior)
CELO2_BASE_RECORDS = (config.CELO2Architecture, config.CELO2BaseBehavior)

#: Family to its rule, the records of its checkpoint, and the flags by which it differs from its kin.
FAMILIES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "velo": (VeLO, config.HyperNetArchitecture, config.VeLOBehavior, {}),
    "celo": (Celo, config.HyperNetArchitecture, config.CeloBehavior, {}),
    "celo-adam": (CeloAdam, config.ControllerArchitecture, config.CeloAdamBehavior, {}),
    "celo2": (CELO2, *CELO2_RECORDS, {"vectors": "adamw", "clip_adamw": False}),
    "celo2-base": (CELO2, *CELO2_BASE_RECORDS, {"vectors": "learned", "clip_adamw": False}),
    "elo-celo2": (CELO2, *CELO2_RECORDS, {"vectors": "adamw", "clip_adamw": True}),
    "adafac-mlp": (Adafac, config.MLPArchitecture, config.AdafacBehavior, {"learned": True, "cleaned": False}),
    "mulo": (Adafac, config.MLPArchitecture, config.MuLOBehavior, {"learned": True, "cleaned": True}),
    "elo": (Adafac, config.MLPArchitecture, config.ELOBehavior, {"learned": False, "cleaned": True}),
}

RULES = ("learned", "adamw")

REQUIRED = object()
CONTROLLED = {"num_steps": REQUIRED, "lr": 1.0, "weight_decay": 0.0}
PLAIN = {"lr": 1.0, "weight_decay": 0.0, "clip_norm": None}
ADAMW = {"adam_lr_mult": 20.0, "adam_betas": (0.9, 0.95), "adam_eps": 1e-8, "adam_weight_decay": None}
WITH_ADAMW = PLAIN | ADAMW | {"lr": 1e-3, "grad_clip_val": 1000.0}

#: Family to its hyperparameters and their defaults: those of the torch constructors.
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "velo": CONTROLLED,
    "celo": CONTROLLED,
    "celo-adam": CONTROLLED,
    "celo2": WITH_ADAMW,
    "celo2-base": WITH_ADAMW,
    "elo-celo2": WITH_ADAMW | {"weight_decay": 0.1, "clip_norm": 1.0, "adam_lr_mult": 1.0},
    "adafac-mlp": PLAIN,
    "mulo": PLAIN | {"width_mult": {}},
    "elo": PLAIN | {"lr": 1e-3},
}

COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
"""Compiling is what a parity run waits for: a dozen steps of small tensors need no optimized code."""


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def _update(rule: Any, *args: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    return rule.update(*args)


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def _forward(rule: Any, *args: Any) -> dict[str, Array]:
    return rule.forward(*args)


class Reference:
    """One learned optimizer with its theta and hyperparameters, as pure functions of params, grads and state.

    Compiled once a rule, dtype and structure of params: another theta or learning rate compiles nothing.
    The state is a nested dict: ``step``; ``learned`` (and ``adamw`` in the CELO2 kinds), a dict of accumulators a
    tensor; for VeLO and Celo also ``lstm_hidden``, ``lstm_cell`` ``[N, H]`` in the sorted order of names, and
    ``loss_average``, ``loss_minimum`` ``[10]`` and ``loss_count``.
    """

    def __init__(self, rule: Any, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> None:
        self.dtype = dtype
        self._rule = rule
        self._weights = rule.prepare(self._cast(theta), hyper, dtype)
        self._hyper = self._cast(hyper)

    def init(self, params: Mapping[str, Any], rules: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The state before the first step.

        Args:
            params: name to tensor, in JAX's layout.
            rules: name to "learned" or "adamw", in the CELO2 kinds; by number of axes where a name is missing.
        """
        if rules and not isinstance(self._rule, CELO2):
            raise ZooError("This family does not route its parameters.", "Leave rules out.")
        wrong = sorted(name for name, rule in (rules or {}).items() if name not in params or rule not in RULES)
        if wrong:
            raise ZooError(f"rules: {', '.join(wrong)}.", f"Each must name a parameter and one of {', '.join(RULES)}.")
        return self._rule.init(self._weights, self._cast(params), rules)

    def update(
        self, params: Mapping[str, Any], grads: Mapping[str, Any], state: dict[str, Any], loss: Any = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """One step: the next params and state. VeLO, Celo and celo-adam need the loss, the others ignore it."""
        if loss is None and self._rule.needs_loss:
            raise ZooError("This family needs the loss of the step.", "Pass update(params, grads, state, loss).")
        loss = self._cast(loss) if self._rule.needs_loss else None
        args = (self._weights, self._hyper, self._cast(params), self._cast(grads), state, loss)
        with jax.default_matmul_precision("highest"):
            return _update(self._rule, *args)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The meta-network alone; the rule's ``forward`` says which inputs it takes."""
        with jax.default_matmul_precision("highest"):
            return _forward(self._rule, self._weights, self._cast(inputs))

    def _cast(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), tree)


def build(
    family: str,
    theta: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any],
    behavior: Mapping[str, Any],
    hyper: Mapping[str, Any],
    dtype: str = "float32",
) -> Reference:
    """The reference of ``family``.

    Args:
        family: velo, celo, celo-adam, celo2, celo2-base, elo, elo-celo2, adafac-mlp or mulo.
        theta: the meta-parameters, nested as ``flax.serialization.msgpack_restore`` returns them.
        architecture, behavior: the fields of the family's records in ``pylo_zoo.config``.
        hyper: hyperparameters; a missing one takes the torch constructor's default.
        dtype: "float32", or "float64" under ``jax.enable_x64(True)``, of everything.

    Raises:
        ZooError: an unknown family, field, hyperparameter or dtype, or a missing num_steps.
    """
    if family not in FAMILIES:
        raise ZooError(f"Unknown family {family!r}.", f"Known families: {', '.join(FAMILIES)}.")
    if dtype not in ("float32", "float64") or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ZooError(f"dtype {dtype!r} is not at hand.", "Use float32, or float64 under jax.enable_x64(True).")
    rule, architecture_record, behavior_record, flags = FAMILIES[family]
    rule = rule(
        config.parse(architecture_record, architecture, "architecture"),
        config.parse(behavior_record, behavior, "behavior"),
        **flags,
    )
    return Reference(rule, theta, _complete(family, hyper), dtype)


def _complete(family: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
    known = HYPERPARAMETERS[family]
    if unknown := sorted(set(hyper) - set(known)):
        raise ZooError(f"hyper: unknown {', '.join(unknown)}.", f"{family} knows {', '.join(known)}.")
    complete = {**known, **hyper}
    if missing := [name for name, value in complete.items() if value is REQUIRED]:
        raise ZooError(f"hyper: {', '.join(missing)} missing.", f"{family} needs it.")
    return complete
