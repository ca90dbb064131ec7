"""The cache of downloaded files, shared between processes: ``$PYLO_ZOO_HOME/sources/SHA256/NAME``.

A lookup uses the hash, not the name, and hashes the file each time. Downloads are written to ``sources/.partial/`` and
moved into place when they are complete and verified. ``sources/.locks/`` holds one lock per file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pylo_zoo.errors import ZooError
from pylo_zoo.files import open_regular, sync, translate_os_errors

ANOTHER_CACHE = "Check the permissions and the free space there, or set PYLO_ZOO_HOME to another directory."
LOCK_SECONDS = 600
"""How long a process waits while another one fetches the same file."""
CHUNK = 1 << 18
_SHA256 = re.compile(r"[0-9a-f]{64}")


def home() -> Path:
    """The directory of all files that the package keeps between runs."""
    return Path(os.environ.get("PYLO_ZOO_HOME") or Path.home() / ".cache" / "pylo-zoo")


def directory(sha256: str) -> Path:
    """The cache directory of the file with this hash."""
    return home() / "sources" / sha256


def find_cached(sha256: str) -> Path | None:
    """The cached file whose bytes have this hash, or None. Links are not followed."""
    folder = directory(sha256)
    if not _SHA256.fullmatch(sha256):
        return None
    with suppress(OSError):  # an unreadable file counts as missing
        if folder.is_symlink() or not folder.is_dir():
            return None
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.is_symlink() and digest(path) == sha256:
                return path
    return None


def move_in(file: Path, sha256: str, name: str) -> Path:
    """Move ``file``, a verified file in ``sources/.partial``, into the cache in one step.

    A damaged file or a link at the target is replaced; the target of a link is not touched.

    Raises:
        ZooError: the cache cannot be written.
    """
    folder = directory(sha256)
    target = folder / name
    with locked(sha256), translate_os_errors(target, ANOTHER_CACHE):
        real_folder(folder)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        sync(file)
        file.replace(target)
        sync(folder)
    return target


def remove(path: Path) -> None:
    """Remove a file that :func:`move_in` put into the cache.

    Raises:
        ZooError: the cache cannot be written.
    """
    with locked(path.parent.name), translate_os_errors(path, ANOTHER_CACHE):
        path.unlink(missing_ok=True)
        with suppress(OSError):  # the directory may hold other files
            path.parent.rmdir()


def real_folder(folder: Path) -> None:
    """Create ``folder``; replace a link or file at that path."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def partial(key: str) -> Path:
    """The path of the partial download of ``key``.

    Raises:
        ZooError: the cache cannot be written.
    """
    folder = home() / "sources" / ".partial"
    with translate_os_errors(folder, ANOTHER_CACHE):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_file_name(key)}.part"


@contextmanager
def locked(key: str, notify: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of ``key`` for the block. ``notify`` receives a message if another process holds it.

    The operating system releases the lock of a process that is killed.

    Raises:
        ZooError: another process held the lock for too long, or the cache cannot be written.
    """
    path = home() / "sources" / ".locks" / f"{_file_name(key)}.lock"
    lock = FileLock(path)
    with translate_os_errors(path, ANOTHER_CACHE):
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise ZooError(f"{path} is not a regular file.", "Remove it.")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if notify is not None:
                notify("Another process is fetching this file; waiting for it.")
            try:
                lock.acquire(timeout=LOCK_SECONDS)
            except Timeout as error:
                raise ZooError(
                    f"Another process has held the lock of this file for {LOCK_SECONDS // 60} minutes.",
                    "Wait for that process or end it, then try again.",
                ) from error
    try:
        yield
    finally:
        lock.release()


def digest(path: Path) -> str:
    """The sha256 of a file, or an empty string if it cannot be read."""
    hasher = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
    except OSError:
        return ""
    return hasher.hexdigest()


def _file_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
