"""Shared by the tests of fetching: a file, and what a fetch leaves in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path
from typing import Any

from fault_server import Files

from pylo_zoo.fetch import Access, fetch, store

DATA = random.Random(0).randbytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[:-1] + bytes([DATA[-1] ^ 1])
PATH = "/dir/theta.state"


def impatient(access: Access) -> Access:
    return dataclasses.replace(access, policy=dataclasses.replace(access.policy, timeout=0.3, attempts=2))


def pinned(server: Files, access: Access, **arguments: Any) -> Path:
    return fetch(server.url + PATH, **{"sha256": SHA256, "bytes": len(DATA), "access": access, **arguments})


def leftovers(home: Path) -> list[str]:
    """Paths in the cache other than complete files and locks."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and _is_left(path))


def _is_left(path: Path) -> bool:
    whole = len(path.parent.name) == 64 and store.digest(path) == path.parent.name
    return not whole and path.suffix != ".lock"
