"""Intermediate quantities of an update. They are recorded only while a listener is installed.

Parity compares them with the reference to find the first quantity that differs. Without a listener, ``record`` costs
one test of a global variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

Listener = Callable[[str, Tensor], None]

_listener: Listener | None = None


def record(quantity: str, value: Tensor) -> None:
    """Pass ``value`` to the listener, with a name of :data:`pylo_zoo.parity.quantities.QUANTITIES`.

    A listener must copy a value to keep it, because the update can overwrite it.
    """
    if _listener is not None:
        _listener(quantity, value)


def is_listening() -> bool:
    """Whether a listener is installed."""
    return _listener is not None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener(quantity, value)`` for every recorded quantity within this context. Not thread-safe."""
    global _listener
    outer, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = outer
