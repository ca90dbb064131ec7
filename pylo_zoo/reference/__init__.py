"""The learned optimizers in plain JAX: the second opinion that the torch side is judged by.

Written from the published mathematics alone (SPEC; papers 2211.09760, 2501.12670, 2602.19142, 2203.11860, 2406.00153,
2506.10315), and checked against trajectories of the original code. It shares nothing with the torch side but the
records of ``pylo_zoo.config``. Everything is in JAX's layout, ``(*spatial, in, out)``.

    reference = build("velo", theta, architecture=..., behavior=..., hyper={"num_steps": 1000})
    state = reference.init(params)
    params, state = reference.update(params, grads, state, loss)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pylo_zoo import config
from pylo_zoo.errors import ZooError
from pylo_zoo.reference import adafac, celo2, velo
from pylo_zoo.reference.trace import Notes, collecting

__all__ = ["FAMILIES", "REQUIRED", "Reference", "Specification", "build"]

REQUIRED = object()
"""Stands for a hyperparameter without a default."""


@dataclass(frozen=True, eq=False)
class Specification:
    """One family in JAX.

    Attributes:
        rule: class of the rule, called with an architecture, a behaviour and ``flags``. It is hashable and has
            ``needs_loss``, ``routes`` (whether ``init`` heeds its rules), ``prepare(theta, hyper, dtype)``,
            ``init(weights, params, rules)``, ``update(weights, hyper, params, grads, state, loss)`` and
            ``forward(weights, inputs)``.
        architecture: record of what the leaves' shapes say.
        behavior: record of what no shape says.
        hyper: hyperparameters with their defaults, those of the torch constructor.
        flags: further arguments, by which the rule differs from its kin.
        defines_nan: whether the rule says what becomes of NaN gradients.
    """

    rule: Any
    architecture: Any
    behavior: Any
    hyper: Mapping[str, Any]
    flags: Mapping[str, Any] = field(default_factory=dict)
    defines_nan: bool = False


RULES = ("learned", "adamw")

CONTROLLED = {"num_steps": REQUIRED, "lr": 1.0, "weight_decay": 0.0}
PLAIN = {"lr": 1.0, "weight_decay": 0.0, "clip_norm": None}
ADAMW = {"adam_lr_mult": 20.0, "adam_betas": (0.9, 0.95), "adam_eps": 1e-8, "adam_weight_decay": None}
WITH_ADAMW = PLAIN | ADAMW | {"lr": 1e-3, "grad_clip_val": 1000.0}
WITH_ADAMW_ELO = WITH_ADAMW | {"weight_decay": 0.1, "clip_norm": 1.0, "adam_lr_mult": 1.0}

VECTORS = {"vectors": "adamw", "clip_adamw": False}
BASE = {"vectors": "learned", "clip_adamw": False}
CLIPPED = {"vectors": "adamw", "clip_adamw": True}
_MLP, _CELO2 = config.MLPArchitecture, config.CELO2Architecture

VELO = Specification(velo.VeLO, config.HyperNetArchitecture, config.VeLOBehavior, CONTROLLED)
CELO = Specification(velo.Celo, config.HyperNetArchitecture, config.CeloBehavior, CONTROLLED)
CELO_ADAM = Specification(velo.CeloAdam, config.ControllerArchitecture, config.CeloAdamBehavior, CONTROLLED)
CELO2 = Specification(celo2.CELO2, _CELO2, config.CELO2Behavior, WITH_ADAMW, VECTORS)
CELO2_BASE = Specification(celo2.CELO2, _CELO2, config.CELO2BaseBehavior, WITH_ADAMW, BASE)
ELO_CELO2 = Specification(celo2.CELO2, _CELO2, config.CELO2Behavior, WITH_ADAMW_ELO, CLIPPED)
ADAFAC_MLP = Specification(adafac.Adafac, _MLP, config.AdafacBehavior, PLAIN, {"learned": True, "cleaned": False})
MULO = Specification(
    adafac.Adafac, _MLP, config.MuLOBehavior, PLAIN | {"width_mult": {}}, {"learned": True, "cleaned": True}, True
)
ELO = Specification(
    adafac.Adafac, _MLP, config.ELOBehavior, PLAIN | {"lr": 1e-3}, {"learned": False, "cleaned": True}, True
)

FAMILIES: dict[str, Specification] = {
    "velo": VELO,
    "celo": CELO,
    "celo-adam": CELO_ADAM,
    "celo2": CELO2,
    "celo2-base": CELO2_BASE,
    "elo-celo2": ELO_CELO2,
    "adafac-mlp": ADAFAC_MLP,
    "mulo": MULO,
    "elo": ELO,
}
"""The families of this package by name."""

UNOPTIMIZED = {"xla_backend_optimization_level": 0}
QUICKEST = {
    **UNOPTIMIZED,
    "xla_cpu_use_fusion_emitters": False,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Compiling is what a parity run waits for, and its small tensors need no optimized code. The second set, where this
XLA has it, compiles five times faster."""


@functools.cache
def _compiled(function: Any) -> Any:
    """``function(static, *args)``, compiled; ``static`` is the rule, or begins with it, and is hashable."""
    try:
        jax.jit(lambda x: x, compiler_options=QUICKEST)(0.0)
        options = QUICKEST
    except Exception:  # "no such compile option" has been several exceptions
        options = UNOPTIMIZED
    return jax.jit(function, static_argnums=0, compiler_options=options)


def _init(static: tuple[Any, Any], weights: Any, params: Any) -> dict[str, Any]:
    rule, rules = static
    return rule.init(weights, params, None if rules is None else dict(rules))


def _update(rule: Any, *args: Any) -> tuple[dict[str, Array], dict[str, Any], Notes]:
    with collecting() as notes:
        params, state = rule.update(*args)
    return params, state, notes


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
        self.routes: bool = rule.routes
        self._rule = rule
        self._weights = rule.prepare(self._cast(theta), hyper, dtype)
        self._hyper = self._cast(hyper)

    def init(self, params: Mapping[str, Any], rules: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The state before the first step.

        Args:
            params: name to tensor, in JAX's layout.
            rules: name to "learned" or "adamw", in the CELO2 kinds; by number of axes where a name is missing.
        """
        if rules and not self.routes:
            raise ZooError("This family does not route its parameters.", "Leave rules out.")
        wrong = sorted(name for name, rule in (rules or {}).items() if name not in params or rule not in RULES)
        if wrong:
            raise ZooError(f"rules: {', '.join(wrong)}.", f"Each must name a parameter and one of {', '.join(RULES)}.")
        static = self._rule, None if rules is None else tuple(sorted(rules.items()))
        return _compiled(_init)(static, self._weights, self._cast(params))

    def update(
        self, params: Mapping[str, Any], grads: Mapping[str, Any], state: dict[str, Any], loss: Any = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """One step: the next params and state. VeLO, Celo and celo-adam need the loss, the others ignore it."""
        params, state, _ = self.traced_update(params, grads, state, loss)
        return params, state

    def traced_update(
        self, params: Mapping[str, Any], grads: Mapping[str, Any], state: dict[str, Any], loss: Any = None
    ) -> tuple[dict[str, Array], dict[str, Any], Notes]:
        """:meth:`update`, and what was noted on the way (:mod:`pylo_zoo.reference.trace`)."""
        if loss is None and self._rule.needs_loss:
            raise ZooError("This family needs the loss of the step.", "Pass update(params, grads, state, loss).")
        loss = self._cast(loss) if self._rule.needs_loss else None
        args = (self._weights, self._hyper, self._cast(params), self._cast(grads), state, loss)
        with jax.default_matmul_precision("highest"):
            return _compiled(_update)(self._rule, *args)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The meta-network alone; the rule's ``forward`` says which inputs it takes."""
        with jax.default_matmul_precision("highest"):
            return _compiled(_forward)(self._rule, self._weights, self._cast(inputs))

    def _cast(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), tree)


def build(
    family: str | Specification,
    theta: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any],
    behavior: Mapping[str, Any],
    hyper: Mapping[str, Any],
    dtype: str = "float32",
) -> Reference:
    """The reference of ``family``.

    Args:
        family: a specification, or the name of one of :data:`FAMILIES`.
        theta: the meta-parameters, nested as ``flax.serialization.msgpack_restore`` returns them.
        architecture, behavior: the fields of the specification's records.
        hyper: hyperparameters; a missing one takes the torch constructor's default.
        dtype: "float32", or "float64" under ``jax.enable_x64(True)``, of everything.

    Raises:
        ZooError: an unknown family, field, hyperparameter or dtype, or a missing num_steps.
    """
    if isinstance(family, str) and family not in FAMILIES:
        raise ZooError(f"Unknown family {family!r}.", f"Known families: {', '.join(FAMILIES)}.")
    if dtype not in ("float32", "float64") or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ZooError(f"dtype {dtype!r} is not at hand.", "Use float32, or float64 under jax.enable_x64(True).")
    specification = FAMILIES[family] if isinstance(family, str) else family
    rule = specification.rule(
        config.parse(specification.architecture, architecture, "architecture"),
        config.parse(specification.behavior, behavior, "behavior"),
        **specification.flags,
    )
    return Reference(rule, theta, _complete(specification.hyper, hyper), dtype)


def _complete(known: Mapping[str, Any], hyper: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(hyper) - set(known)):
        raise ZooError(f"hyper: unknown {', '.join(unknown)}.", f"This family knows {', '.join(known)}.")
    complete = {**known, **hyper}
    if missing := [name for name, value in complete.items() if value is REQUIRED]:
        raise ZooError(f"hyper: {', '.join(missing)} missing.", "This family needs it.")
    return complete
