"""Intermediate quantities of an update. They are recorded only while a listener is installed.

Parity compares them with the reference's, so that a difference is named where it begins. ``record`` costs one test of a
global where nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

Listener = Callable[[str, Tensor], None]

_listener: Listener | None = None


def record(quantity: str, value: Tensor) -> None:
    """Show ``value`` to the listener, under a name of :data:`pylo_zoo.parity.quantities.QUANTITIES`.

    A listener that keeps it copies it: it may be written over later in the update.
    """
    if _listener is not None:
        _listener(quantity, value)


def is_listening() -> bool:
    """Whether somebody looks."""
    return _listener is not None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within this context, ``listener(quantity, value)`` is called with every note; not for several threads."""
    global _listener
    outer, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = outer
