"""Checks that only this user and root can write a directory and a compiled library in it.

Loading a library runs it. Its name and checksum show that it is complete, not who wrote it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pylo_zoo.errors import ZooError, quoted

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
PRIVATE = 0o700
"""Mode of a new directory for libraries."""
LIBRARY = 0o644
"""Mode of a library."""
OWN_DIRECTORY = "Set PYLO_ZOO_KERNELS to a directory that you own."


class Untrusted(ZooError):
    """Another user could have written the library, or could replace it."""


def make_private(folder: Path) -> None:
    """Create ``folder`` and its missing parents, accessible to this user only."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=PRIVATE, exist_ok=True)


def check_folder(folder: Path) -> None:
    """Check that other users cannot add a library to ``folder``, or replace one there (``/tmp`` has the sticky bit).

    Raises:
        Untrusted: they can.
    """
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise Untrusted(f"{folder} is not a directory.", OWN_DIRECTORY)
    hint = f"Set PYLO_ZOO_KERNELS to a directory that you own, or run: chmod go-w {quoted(str(folder))}"
    if status.st_uid not in (0, os.getuid()):
        raise Untrusted(f"{folder}, the directory of the CPU kernels, belongs to another user.", hint)
    if status.st_mode & OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        raise Untrusted(f"{folder}, the directory of the CPU kernels, can be written by others (mode {mode}).", hint)


def check_library(path: Path) -> bool:
    """Whether ``path`` is a library that only this user or root could have written. False if it does not exist.

    This user's library that others can write is not trusted either: the caller compiles and replaces it.

    Raises:
        Untrusted: ``path`` cannot be replaced: it is a directory, a link, a FIFO or another user's file.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise Untrusted(f"{path}, the CPU kernel library, is not a regular file.", "Remove it and try again.")
    shared = path.parent.stat().st_mode & OTHERS_WRITE
    if status.st_uid != os.getuid() and (status.st_uid != 0 or shared):
        raise Untrusted(f"{path}, the CPU kernel library, belongs to another user.", OWN_DIRECTORY)
    return not status.st_mode & OTHERS_WRITE
