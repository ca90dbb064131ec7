"""Temporary files of writes: their names and locks, and the removal of those that killed processes left."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

_LEFT_BEHIND = re.compile(r"\..+\.(new|old)-[0-9a-f]{8}")


def sibling(target: Path, kind: str) -> Path:
    """A new temporary name next to ``target``; ``kind`` is "new" or "old"."""
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def left_behind(name: str) -> bool:
    """Whether ``name`` is the temporary name of an unfinished write."""
    return _LEFT_BEHIND.fullmatch(name) is not None


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` is empty, apart from leftovers of killed processes."""
    return all(left_behind(path.name) for path in folder.iterdir())


def sweep(target: Path, *, exclusive: bool = False) -> None:
    """Remove the leftovers of killed processes that wrote ``target``. Files of running processes stay.

    If a process was killed after it moved the old ``target`` aside, the old ``target`` is moved back.

    Args:
        target: the file or directory.
        exclusive: the caller holds a lock of ``target``, so no other process writes it now. Without this, nothing is
            removed on a file system without file locks, because a running process cannot be detected there.
    """
    for folder in (target.parent, target):
        with suppress(OSError):  # leftovers are harmless
            for name in os.listdir(folder):
                if left_behind(name) and name.startswith(f".{target.name}."):
                    _remove_left_behind(folder / name, target, exclusive)


def sweep_folder(folder: Path) -> None:
    """:func:`sweep` everything in ``folder``, a directory that only this package writes."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if left_behind(name):
                _remove_left_behind(folder / name, folder / name[1:].rpartition(".")[0], exclusive=False)


def _remove_left_behind(path: Path, target: Path, exclusive: bool) -> None:
    with suppress(OSError), locked(path) as is_locked:
        if not (is_locked or exclusive):
            return
        if path.name.startswith(f".{target.name}.old-") and not target.exists():
            path.rename(target)
        elif stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """Hold a lock on the file or directory ``path``. The system releases it when the process ends.

    Yields:
        True if the lock is held; False if another process holds it or has removed ``path``; None if the file system
        does not support locks.
    """
    if fcntl is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield False
        return
    except OSError:  # a link, or no permission
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = os.path.samestat(os.fstat(descriptor), path.lstat())
        except (BlockingIOError, FileNotFoundError):
            is_locked = False
        except OSError:
            is_locked = None
        yield is_locked
    finally:
        os.close(descriptor)
