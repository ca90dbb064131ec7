"""The size limit for checkpoints and artifacts, checked before they are read.

The default is :data:`DEFAULT_MAX_BYTES`. The environment variable ``PYLO_ZOO_MAX_BYTES``, the option ``--max-bytes``
and the argument ``max_bytes`` change it. The option and the argument have precedence over the variable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pylo_zoo.errors import ZooError, quoted

DEFAULT_MAX_BYTES = 64 * 1024 * 1024
"""Seven times the largest published optimizer, velo-4000, which has 9,282,507 bytes. With two moments, its weights have
28 MB in float32 and 56 MB in float64."""

MAX_LIMIT = 2**63 - 1
VARIABLE = "PYLO_ZOO_MAX_BYTES"
RAISE = f"If the file is right, raise the limit with --max-bytes N (in Python, max_bytes=N) or {VARIABLE}=N."
"""The hint of an error about the limit."""

_override: ContextVar[int | None] = ContextVar("max_bytes", default=None)


def max_bytes() -> int:
    """The current limit in bytes, for a file, for its unpacked content, and for the arrays rebuilt from it.

    Raises:
        ZooError: ``PYLO_ZOO_MAX_BYTES`` is not an integer from 1 to :data:`MAX_LIMIT`.
    """
    override = _override.get()
    if override is not None:
        return override
    text = os.environ.get(VARIABLE, "")
    if not text:
        return DEFAULT_MAX_BYTES
    parses = text.isascii() and text.isdecimal() and len(text) <= 600  # int() may reject more than 640 digits
    return _check(VARIABLE, int(text) if parses else text)


@contextmanager
def allow(max_bytes: int | None) -> Iterator[None]:
    """Apply the limit ``max_bytes`` within the block; None keeps the current limit.

    Raises:
        ZooError: ``max_bytes`` is not an integer from 1 to :data:`MAX_LIMIT`.
    """
    token = _override.set(_override.get() if max_bytes is None else _check("max_bytes", max_bytes))
    try:
        yield
    finally:
        _override.reset(token)


def _check(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_LIMIT:
        raise ZooError(
            f"{name} is {quoted(value)}.", f"Use a number of bytes from 1 to {MAX_LIMIT}, such as 268435456."
        )
    return value
