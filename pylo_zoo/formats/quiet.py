"""Silence for a library that prints about what it raises; ``PYLO_ZOO_DEBUG=1`` lets it speak."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pylo_zoo.errors import debugging

LOGGERS = ("absl", "asyncio", "orbax", "jax", "tensorstore")
LATE = "Event loop is closed"
"""What tensorstore's threads report after orbax gave up, and its event loop with it: nobody waits for their result."""
_hooked: set[str] = set()


@contextmanager
def quietly() -> Iterator[None]:
    """Drop what :data:`LOGGERS` log and what is warned of in the block; and, from then on, :data:`LATE`."""
    if debugging():
        yield
        return
    for name in ("excepthook", "unraisablehook"):
        _ignore_late_errors(name)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _ignore_late_errors(name: str) -> None:
    """Let ``sys.excepthook`` or ``sys.unraisablehook`` pass over :data:`LATE`, which comes from another thread."""
    if name in _hooked:
        return
    _hooked.add(name)
    before: Callable[..., Any] = getattr(sys, name)

    def hook(*arguments: Any) -> None:
        error = arguments[1] if name == "excepthook" else arguments[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == LATE):
            before(*arguments)

    setattr(sys, name, hook)
