"""The declaration of a family in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUIRED = object()
"""Marks a hyperparameter without a default."""


@dataclass(frozen=True, eq=False)
class Specification:
    """One family in JAX.

    Attributes:
        rule: class of the rule, called with an architecture, a behavior and ``flags``. It is hashable and has
            ``needs_loss``, ``routes`` (whether ``init`` uses its ``rules``), ``prepare(theta, hyper, dtype)``,
            ``init(weights, params, rules)``, ``update(weights, hyper, params, grads, state, loss)`` and
            ``forward(weights, inputs)``.
        architecture: record of the sizes, which follow from the leaves' shapes.
        behavior: record of the settings that do not follow from shapes.
        hyper: hyperparameters with the defaults of the torch constructor.
        flags: further arguments of ``rule``, which distinguish families with the same rule.
        name: name of the family in this package. The specification of another package needs none.
        defines_nan: whether the rule defines the result for NaN gradients.
    """

    rule: Any
    architecture: Any
    behavior: Any
    hyper: Mapping[str, Any]
    flags: Mapping[str, Any] = field(default_factory=dict)
    defines_nan: bool = False
    name: str = ""


MLP_HYPER = {"lr": 1.0, "weight_decay": 0.0, "clip_norm": None}
"""Hyperparameters of the rules without an LSTM."""
