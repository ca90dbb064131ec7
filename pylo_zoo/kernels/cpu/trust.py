"""Whether a directory, and a compiled library in it, can be written by this user and root alone.

To load a library is to run it. Its name and its checksum say that it is whole; they do not say who wrote it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pylo_zoo.errors import ZooError, quoted

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
PRIVATE = 0o700
"""Mode of a directory that is made for libraries."""
LIBRARY = 0o644
"""Mode of a library."""


class Untrusted(ZooError):
    """Another user could have written the library, or could replace it."""


def make_private(folder: Path) -> None:
    """Make ``folder`` and its missing parents, which nobody else may enter."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=PRIVATE, exist_ok=True)


def check_folder(folder: Path) -> None:
    """Check that nobody else can put a library into ``folder``, or, as in ``/tmp``, replace one of ours.

    Raises:
        Untrusted: somebody can.
    """
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise Untrusted(f"{folder} is not a directory.", "Name a directory of your own in PYLO_ZOO_KERNELS.")
    own = f"Name a directory of your own in PYLO_ZOO_KERNELS, or run: chmod go-w {quoted(str(folder))}"
    if found.st_uid not in (0, os.getuid()):
        raise Untrusted(f"{folder}, where the CPU kernels are kept, belongs to another user.", own)
    if found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        mode = f"{stat.S_IMODE(found.st_mode):o}"
        raise Untrusted(f"{folder}, where the CPU kernels are kept, can be written by others (mode {mode}).", own)


def check_library(path: Path) -> bool:
    """Whether ``path`` is a library that only this user, or root, can have written; False if none is there.

    One that is ours and that others can write is not trusted, and is compiled and replaced.

    Raises:
        Untrusted: something else is there that cannot be replaced: a directory, a link, a FIFO, another user's file.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise Untrusted(f"{path}, the library of CPU kernels, is not a regular file.", "Remove it and try again.")
    shared = path.parent.stat().st_mode & OTHERS_WRITE
    if found.st_uid != os.getuid() and (found.st_uid != 0 or shared):
        raise Untrusted(
            f"{path}, the library of CPU kernels, belongs to another user.",
            "Name a directory of your own in PYLO_ZOO_KERNELS.",
        )
    return not found.st_mode & OTHERS_WRITE
