"""JAX with float64 at hand."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any


def jax_is_missing() -> bool:
    """Whether the reference cannot be run here."""
    return find_spec("jax") is None or find_spec("flax") is None


def x64() -> AbstractContextManager[Any]:
    """JAX with float64 enabled, as each of its versions spells it."""
    import jax
    from jax import experimental

    enable: Any = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return enable(True)
