"""Reads hostile bytes with bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from pylo_zoo import formats
from pylo_zoo.errors import ZooError

ALLOWED = 4 * 1024 * 1024
"""What a rejection may allocate in addition to copies of the file: late imports, tables, the error itself."""
COPIES = 8


def read(directory: Path, data: bytes, name: str = "checkpoint") -> formats.Source:
    path = directory / name
    path.write_bytes(data)
    return formats.read(path)


def refusal(directory: Path, data: bytes) -> ZooError:
    """The error that reading ``data`` raises, with bounded memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ZooError) as error:
            read(directory, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ALLOWED + COPIES * len(data), f"{peak:,} bytes for a file of {len(data):,}"
    assert error.value.hint
    return error.value


def read_or_refuse(directory: Path, data: bytes) -> None:
    """Read mutated ``data``: the result is leaves or a ZooError, with bounded memory."""
    tracemalloc.start()
    try:
        read(directory, data)
    except ZooError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < ALLOWED + COPIES * len(data), f"{peak:,} bytes for a file of {len(data):,}"


def mutated(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """``data`` with a few bytes changed, half of them near the beginning, and the end cut off."""
    copy = bytearray(data)
    for at, byte in changes:
        copy[at % min(400, len(copy)) if byte % 2 else at % len(copy)] = byte
    return bytes(copy[: len(copy) - cut])
