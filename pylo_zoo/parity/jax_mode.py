"""Availability of JAX, and its float64 mode."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any


def jax_is_missing() -> bool:
    """Whether jax or flax, which the reference requires, is not installed."""
    return find_spec("jax") is None or find_spec("flax") is None


def x64() -> AbstractContextManager[Any]:
    """Context with float64 enabled in JAX; the function's module depends on the JAX version."""
    import jax
    from jax import experimental

    enable: Any = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return enable(True)
