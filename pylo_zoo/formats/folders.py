"""Reads and hashes checkpoints that consist of several files.

The sha256 of a directory is that of a listing as ``sha256sum`` prints it: one line ``SHA256  RELATIVE/PATH`` per file,
sorted by path.
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
    """Read the regular file at ``path``, at most ``limit`` bytes.

    Raises:
        ZooError: the file does not exist, is not regular, cannot be read, or is too large.
    """
    hint = "Check the path of the checkpoint's file, such as theta.state, and its permissions."
    return read_regular(path, limit, hint, large=limits.RAISE)


def files(directory: Path) -> list[Path]:
    """All files below ``directory``, sorted by their relative paths.

    Raises:
        ZooError: there are too many files, or the directory contains a symbolic link, pipe, socket or device.
    """
    paths: list[Path] = []
    try:
        for path in directory.rglob("*"):
            if path.is_symlink():
                raise ZooError(f"{path} is a symbolic link.", "Copy the file itself into the directory.")
            if path.is_file():
                paths.append(path)
            elif not path.is_dir():
                raise ZooError(f"{path} is neither a file nor a directory.", "Remove it from the checkpoint.")
            if len(paths) > MAX_FILES:
                raise ZooError(
                    f"{directory} contains more than {MAX_FILES:,} files.", "Use the directory of the checkpoint only."
                )
    except OSError as error:
        raise ZooError(f"{directory} cannot be read: {error.strerror}.", "Check the permissions.") from error
    return sorted(paths, key=lambda path: path.relative_to(directory).as_posix())


def contents(directory: Path, selected: Iterable[Path]) -> dict[str, bytes]:
    """Relative path to content of the files ``selected``, at most :func:`pylo_zoo.limits.max_bytes` in total."""
    parts: dict[str, bytes] = {}
    left = limits.max_bytes()
    for path in selected:
        data = read_bounded(path, left)
        left -= len(data)
        parts[path.relative_to(directory).as_posix()] = data
    return parts


def digest(parts: Mapping[str, bytes]) -> str:
    """The sha256 of a directory with these files."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(parts.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
