"""Writing files and directories so that readers see the old ones or the new ones, and never half of either."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylo_zoo.errors import ZooError


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` that takes its place, in one step, when the block ends without an exception.

    After an exception nothing has changed. A symbolic link is followed: what it points to is replaced.

    Raises:
        ZooError: the file system refuses.
    """
    target = target.resolve()
    staging = _sibling(target, "new")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        try:
            yield staging
            for path in [*staging.rglob("*"), staging]:
                sync(path)
            _replace(target, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync(target.parent)


def write_file(target: Path, data: bytes) -> None:
    """Write or replace the file ``target`` in one step.

    Raises:
        ZooError: the file system refuses.
    """
    target = target.resolve()
    staging = _sibling(target, "new")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.write_bytes(data)
            sync(staging)
            staging.replace(target)
        finally:
            staging.unlink(missing_ok=True)
        sync(target.parent)


def _replace(target: Path, staging: Path) -> None:
    """Rename ``staging`` to ``target``; the two change places where the system can do that in one step.

    Elsewhere what stood there is put aside first, and back again if the second step fails.
    """
    if not target.is_dir() or not any(target.iterdir()):
        staging.rename(target)
        return
    if _exchange(target, staging):
        return
    aside = _sibling(target, "old")
    target.rename(aside)
    try:
        staging.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, by Linux's renameat2; False where the system or the file system has no such thing."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Have the file or directory at ``path`` written to the disk itself."""
    if sys.platform == "win32" and path.is_dir():
        return  # a directory cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn what the file system refuses in the block into a :class:`ZooError` about ``target``."""
    try:
        yield
    except OSError as error:
        raise ZooError(
            f"{target} cannot be written: {error.strerror or error}.",
            "Check the permissions and the free space there, or give another place.",
        ) from error
