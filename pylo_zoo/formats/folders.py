"""Checkpoints of several files: what belongs to them, their one sha256, and copies of them.

A file's sha256 is its own. A directory's is that of a listing as ``sha256sum`` prints it: a line
``SHA256  RELATIVE/PATH`` a file, sorted by path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pylo_zoo.errors import ZooError

MAX_BYTES = 256 * 1024 * 1024
"""Largest checkpoint that is read; the largest published one has 9 MB."""
MAX_FILES = 1_000


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of the file at ``path``, at most ``limit`` of them."""
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist"
        raise ZooError(f"{path} {kind}.", "Give the checkpoint's file itself, such as theta.state or params.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit) + 1)  # read(n) allocates n bytes, whatever the file has
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror}.", "Check the file's permissions.") from error
    if len(data) > limit:
        raise ZooError(f"{path} is larger than {limit:,} bytes.", "No learned optimizer is: is it the right file?")
    return data


def files(directory: Path) -> list[Path]:
    """All files below ``directory``, sorted by their relative paths.

    Raises:
        ZooError: there are too many, or there is a symbolic link, which might lead anywhere.
    """
    found: list[Path] = []
    try:
        for path in directory.rglob("*"):
            if path.is_symlink():
                raise ZooError(f"{path} is a symbolic link.", "Copy the file itself into the directory.")
            if path.is_file():
                found.append(path)
            if len(found) > MAX_FILES:
                raise ZooError(
                    f"{directory} holds more than {MAX_FILES:,} files.", "Give the checkpoint's own directory."
                )
    except OSError as error:
        raise ZooError(f"{directory} cannot be read: {error.strerror}.", "Check the permissions.") from error
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


def contents(directory: Path, chosen: Iterable[Path]) -> dict[str, bytes]:
    """Relative path to bytes of the ``chosen`` files, at most :data:`MAX_BYTES` in all."""
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    for path in chosen:
        data = read_bounded(path, left)
        left -= len(data)
        found[path.relative_to(directory).as_posix()] = data
    return found


def digest(parts: Mapping[str, bytes]) -> str:
    """The sha256 of a directory with these files."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(parts.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
