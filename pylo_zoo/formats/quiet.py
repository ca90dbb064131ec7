"""Suppresses the messages of libraries that also raise an exception; ``PYLO_ZOO_DEBUG=1`` shows them."""

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
"""Error of tensorstore's threads after orbax has failed and closed its event loop; their results are not needed."""
_hooked: set[str] = set()


@contextmanager
def quietly() -> Iterator[None]:
    """Drop warnings and messages of :data:`LOGGERS` in the block, and :data:`LATE` errors from then on."""
    if debugging():
        yield
        return
    for name in ("excepthook", "unraisablehook"):
        _ignore_late_errors(name)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(_reject_all)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_reject_all)


def _reject_all(record: logging.LogRecord) -> bool:
    return False


def _ignore_late_errors(name: str) -> None:
    """Make ``sys.excepthook`` or ``sys.unraisablehook`` ignore :data:`LATE`, which another thread raises."""
    if name in _hooked:
        return
    _hooked.add(name)
    before: Callable[..., Any] = getattr(sys, name)

    def hook(*arguments: Any) -> None:
        error = arguments[1] if name == "excepthook" else arguments[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == LATE):
            before(*arguments)

    setattr(sys, name, hook)
