"""The cache that processes share: ``$PYLO_ZOO_HOME/sources/SHA256/NAME``.

A file is found by what it holds, never by what it is called, and hashed each time. Downloads grow in
``sources/.partial/`` and are moved in when they are complete and verified; ``sources/.locks/`` keeps processes apart.
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
from pylo_zoo.files import explained, open_regular, sync

ANOTHER_CACHE = "Check the permissions and the free space there, or name another cache in PYLO_ZOO_HOME."
LOCK_SECONDS = 600
"""How long a process waits for another one that fetches the same file."""
CHUNK = 1 << 18
_SHA256 = re.compile(r"[0-9a-f]{64}")


def home() -> Path:
    """The directory of everything that the package keeps between runs."""
    return Path(os.environ.get("PYLO_ZOO_HOME") or Path.home() / ".cache" / "pylo-zoo")


def directory(sha256: str) -> Path:
    """Where the file with this hash belongs."""
    return home() / "sources" / sha256


def find_cached(sha256: str) -> Path | None:
    """The file with this hash, or None where there is none whose bytes still have it. Links are not followed."""
    folder = directory(sha256)
    if not _SHA256.fullmatch(sha256):
        return None
    with suppress(OSError):  # what cannot be read is not there
        if folder.is_symlink() or not folder.is_dir():
            return None
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.is_symlink() and digest(path) == sha256:
                return path
    return None


def place(file: Path, sha256: str, name: str) -> Path:
    """Move ``file``, whose bytes have this hash and lie in ``sources/.partial``, to its place in one step.

    What stood there was damaged or a link, and is replaced; what a link points to is left alone.

    Raises:
        ZooError: the file system refuses.
    """
    folder = directory(sha256)
    target = folder / name
    with locked(sha256), explained(target, ANOTHER_CACHE):
        real_folder(folder)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        sync(file)
        file.replace(target)
        sync(folder)
    return target


def remove(path: Path) -> None:
    """Remove a file that :func:`place` put into the cache.

    Raises:
        ZooError: the file system refuses.
    """
    with locked(path.parent.name), explained(path, ANOTHER_CACHE):
        path.unlink(missing_ok=True)
        with suppress(OSError):  # other files are in it
            path.parent.rmdir()


def real_folder(folder: Path) -> None:
    """Make ``folder``, in place of a link or file that stands there."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def partial(key: str) -> Path:
    """Where the download of ``key`` grows.

    Raises:
        ZooError: the cache cannot be written.
    """
    folder = home() / "sources" / ".partial"
    with explained(folder, ANOTHER_CACHE):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_word(key)}.part"


@contextmanager
def locked(key: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep other processes out of the block for the same ``key``; ``say`` hears of it when there is one.

    The system releases the lock of a process that is killed.

    Raises:
        ZooError: another process kept the lock for too long, or the cache cannot be written.
    """
    path = home() / "sources" / ".locks" / f"{_word(key)}.lock"
    lock = FileLock(path)
    with explained(path, ANOTHER_CACHE):
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise ZooError(f"{path} is not a regular file.", "Remove it; a lock is made again.")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if say is not None:
                say("Another process is fetching this file; waiting for it.")
            try:
                lock.acquire(timeout=LOCK_SECONDS)
            except Timeout as error:
                raise ZooError(
                    f"Another process has been at work on this file for {LOCK_SECONDS // 60} minutes.",
                    "End it, or wait, and try again.",
                ) from error
    try:
        yield
    finally:
        lock.release()


def digest(path: Path) -> str:
    """The sha256 of a file, or an empty text where it cannot be read."""
    found = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
    except OSError:
        return ""
    return found.hexdigest()


def _word(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
