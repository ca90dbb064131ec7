"""Intermediate quantities of an update in JAX, collected while JAX traces the update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jax import Array

Quantities = dict[tuple[str, str], Array]
"""By tensor and name. The tensor is ``""`` for quantities of the run or of all tensors."""

_quantities: Quantities | None = None
_tensor = ""


def record(quantity: str, value: Array) -> None:
    """Store ``value`` for the tensor of :func:`of_tensor`, within :func:`collecting`."""
    if _quantities is not None:
        _quantities[_tensor, quantity] = value


@contextmanager
def of_tensor(name: str) -> Iterator[None]:
    """Record quantities for the tensor ``name`` within this context."""
    global _tensor
    outer, _tensor = _tensor, name
    try:
        yield
    finally:
        _tensor = outer


@contextmanager
def collecting() -> Iterator[Quantities]:
    """Collect recorded quantities in a dict within this context."""
    global _quantities
    outer, _quantities = _quantities, {}
    try:
        yield _quantities
    finally:
        _quantities = outer
