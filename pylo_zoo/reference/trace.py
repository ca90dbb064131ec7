"""Intermediate quantities of an update in JAX, by tensor and name; collected while JAX traces the update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jax import Array

Notes = dict[tuple[str, str], Array]
"""By tensor, ``""`` for what belongs to the run or to all tensors at once, and name."""

_notes: Notes | None = None
_tensor = ""


def record(quantity: str, value: Array) -> None:
    """Keep ``value`` under the tensor that :func:`of_tensor` is about, if anybody collects."""
    if _notes is not None:
        _notes[_tensor, quantity] = value


@contextmanager
def of_tensor(name: str) -> Iterator[None]:
    """Within this context, notes are about the tensor ``name``."""
    global _tensor
    outer, _tensor = _tensor, name
    try:
        yield
    finally:
        _tensor = outer


@contextmanager
def collecting() -> Iterator[Notes]:
    """Within this context, notes are collected in the dict that it gives."""
    global _notes
    outer, _notes = _notes, {}
    try:
        yield _notes
    finally:
        _notes = outer
