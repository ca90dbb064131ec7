"""An independent implementation of the learned optimizers in JAX, which parity compares the torch side with.

It is written from the published mathematics (docs/spec.md and the papers listed there), tested against trajectories of
the original code, and shares only the records of ``pylo_zoo.config`` with the torch side. Everything is in JAX's
layout, ``(*spatial, in, out)``.

    reference = build("velo", theta, architecture=..., behavior=..., hyper={"num_steps": 1000})
    state = reference.init(params)
    params, state = reference.update(params, grads, state, loss)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pylo_zoo import config, plugins
from pylo_zoo.errors import ZooError
from pylo_zoo.reference.specification import REQUIRED, Specification
from pylo_zoo.reference.trace import Quantities, collecting

__all__ = ["FAMILIES", "REQUIRED", "Reference", "Specification", "build"]

RULES = ("learned", "adamw")

FAMILIES = plugins.defined_in(__name__, __path__, Specification)
"""The families of this package by name: every :class:`Specification` that a module in it defines."""

UNOPTIMIZED = {"xla_backend_optimization_level": 0}
"""Compilation dominates the time of a parity run, whose small tensors do not need optimized code."""
FAST_COMPILE = {
    **UNOPTIMIZED,
    "xla_cpu_use_fusion_emitters": False,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""These options compile five times faster, if the installed XLA has them."""


@functools.cache
def _compiled(function: Any) -> Any:
    """``function(static, *args)``, compiled. ``static`` is hashable: the rule, or a tuple that starts with it."""
    try:
        jax.jit(lambda x: x, compiler_options=FAST_COMPILE)(0.0)
        options = FAST_COMPILE
    except Exception:  # the exception for an unknown option depends on the version of JAX
        options = UNOPTIMIZED
    return jax.jit(function, static_argnums=0, compiler_options=options)


def _init(static: tuple[Any, Any], weights: Any, params: Any) -> dict[str, Any]:
    rule, rules = static
    return rule.init(weights, params, None if rules is None else dict(rules))


def _update(rule: Any, *args: Any) -> tuple[dict[str, Array], dict[str, Any], Quantities]:
    with collecting() as quantities:
        params, state = rule.update(*args)
    return params, state, quantities


def _forward(rule: Any, *args: Any) -> dict[str, Array]:
    return rule.forward(*args)


class Reference:
    """One learned optimizer with its theta and hyperparameters, as pure functions of params, grads and state.

    It is compiled once per rule, dtype and structure of params; another theta or learning rate does not recompile.

    The state is a nested dict. ``step`` counts steps. ``learned`` has a dict of accumulators per tensor, and so has
    ``adamw`` in the CELO2 families. VeLO, Celo and celo-adam also have ``lstm_hidden`` and ``lstm_cell`` ``[N, H]``,
    with tensors in the sorted order of their names, ``loss_average`` and ``loss_minimum`` ``[10]``, and ``loss_count``.
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
            rules: name to "learned" or "adamw", in the CELO2 families. The default depends on the number of axes.
        """
        if rules and not self.routes:
            raise ZooError("This family does not route its parameters.", "Leave out rules.")
        wrong = sorted(name for name, rule in (rules or {}).items() if name not in params or rule not in RULES)
        if wrong:
            raise ZooError(f"Invalid rules: {', '.join(wrong)}.", f"Map parameter names to {' or '.join(RULES)}.")
        static = self._rule, None if rules is None else tuple(sorted(rules.items()))
        return _compiled(_init)(static, self._weights, self._cast(params))

    def update(
        self, params: Mapping[str, Any], grads: Mapping[str, Any], state: dict[str, Any], loss: Any = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """The params and state after one step. VeLO, Celo and celo-adam need the loss; the others ignore it."""
        params, state, _ = self.traced_update(params, grads, state, loss)
        return params, state

    def traced_update(
        self, params: Mapping[str, Any], grads: Mapping[str, Any], state: dict[str, Any], loss: Any = None
    ) -> tuple[dict[str, Array], dict[str, Any], Quantities]:
        """:meth:`update`, and the intermediate quantities (:mod:`pylo_zoo.reference.trace`)."""
        if loss is None and self._rule.needs_loss:
            raise ZooError("This family requires the loss of the step.", "Call update(params, grads, state, loss).")
        loss = self._cast(loss) if self._rule.needs_loss else None
        args = (self._weights, self._hyper, self._cast(params), self._cast(grads), state, loss)
        with jax.default_matmul_precision("highest"):
            return _compiled(_update)(self._rule, *args)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The outputs of the meta-network. See the rule's ``forward`` for its inputs."""
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
    """Build the reference of ``family``.

    Args:
        family: a specification, or the name of one of :data:`FAMILIES`.
        theta: the meta-parameters, nested as ``flax.serialization.msgpack_restore`` returns them.
        architecture, behavior: the fields of the specification's records.
        hyper: hyperparameters. Missing ones take the torch constructor's default.
        dtype: dtype of all arrays: "float32", or "float64" within ``jax.enable_x64(True)``.

    Raises:
        ZooError: an unknown family, field, hyperparameter or dtype, or a missing num_steps.
    """
    if isinstance(family, str) and family not in FAMILIES:
        raise ZooError(f"Unknown family {family!r}.", f"Use one of {', '.join(FAMILIES)}.")
    if dtype not in ("float32", "float64") or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ZooError(f"dtype {dtype!r} is unavailable.", "Use float32, or float64 within jax.enable_x64(True).")
    specification = FAMILIES[family] if isinstance(family, str) else family
    rule = specification.rule(
        config.parse(specification.architecture, architecture, "architecture"),
        config.parse(specification.behavior, behavior, "behavior"),
        **specification.flags,
    )
    return Reference(rule, theta, _complete(specification.hyper, hyper), dtype)


def _complete(known: Mapping[str, Any], hyper: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(hyper) - set(known)):
        raise ZooError(f"hyper: unknown {', '.join(unknown)}.", f"Use {', '.join(known)}.")
    complete = {**known, **hyper}
    if missing := [name for name, value in complete.items() if value is REQUIRED]:
        raise ZooError(f"hyper: {', '.join(missing)} missing.", "Set it: this family has no default.")
    return complete
