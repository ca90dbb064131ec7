"""Checkpoints of several files: what belongs to them, their one sha256, and copies of them.

A file's sha256 is its own. A directory's is that of a listing as ``sha256sum`` prints it: a line
``SHA256  RELATIVE/PATH`` a file, sorted by path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pylo_zoo import limits
from pylo_zoo.errors import ZooError
from pylo_zoo.files import read_regular

MAX_FILES = 1_000


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of the regular file at ``path``, at most ``limit`` of them.

    Raises:
        ZooError: there is no such file, it is not a regular one, it cannot be read, or it is larger.
    """
    hint = "Give a checkpoint's file, such as theta.state or params, and check its permissions."
    return read_regular(path, limit, hint, large=limits.RAISE)


def files(directory: Path) -> list[Path]:
    """All files below ``directory``, sorted by their relative paths.

    Raises:
        ZooError: there are too many, or there is a symbolic link, which might lead anywhere, or a pipe, socket or
            device, which might never end.
    """
    found: list[Path] = []
    try:
        for path in directory.rglob("*"):
            if path.is_symlink():
                raise ZooError(f"{path} is a symbolic link.", "Copy the file itself into the directory.")
            if path.is_file():
                found.append(path)
            elif not path.is_dir():
                raise ZooError(f"{path} is neither a file nor a directory.", "Remove it from the checkpoint.")
            if len(found) > MAX_FILES:
                raise ZooError(
                    f"{directory} holds more than {MAX_FILES:,} files.", "Give the checkpoint's own directory."
                )
    except OSError as error:
        raise ZooError(f"{directory} cannot be read: {error.strerror}.", "Check the permissions.") from error
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


def contents(directory: Path, chosen: Iterable[Path]) -> dict[str, bytes]:
    """Relative path to bytes of the ``chosen`` files, at most :func:`pylo_zoo.limits.max_bytes` in all."""
    found: dict[str, bytes] = {}
    left = limits.max_bytes()
    for path in chosen:
        data = read_bounded(path, left)
        left -= len(data)
        found[path.relative_to(directory).as_posix()] = data
    return found


def digest(parts: Mapping[str, bytes]) -> str:
    """The sha256 of a directory with these files."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(parts.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
