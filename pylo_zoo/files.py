"""Writing files and directories so that readers see the old ones or the new ones, and never half of either."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pylo_zoo.errors import ZooError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

ANOTHER_PLACE = "Check the permissions and the free space there, or give another place."
_LEFT_BEHIND = re.compile(r"\..+\.(new|old)-[0-9a-f]{8}")


@contextmanager
def staged_directory(target: Path, hint: str = ANOTHER_PLACE) -> Iterator[Path]:
    """A new directory beside ``target`` that takes its place, in one step, when the block ends without an exception.

    After an exception nothing has changed. A symbolic link is followed: what it points to is replaced. What a killed
    process leaves behind is removed when somebody writes ``target`` again (:func:`sweep`).

    Raises:
        ZooError: the file system refuses.
    """
    target = _resolved(target, hint)
    with explained(target, hint):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        with _held_sibling(target, Path.mkdir) as staging:
            try:
                yield staging
                for path in [*staging.rglob("*"), staging]:
                    sync(path)
                _replace(target, staging)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        sync(target.parent)


def write_file(target: Path, data: bytes, hint: str = ANOTHER_PLACE, *, mode: int | None = None) -> None:
    """Write or replace the file ``target`` in one step, with ``mode`` if it is given.

    Raises:
        ZooError: the file system refuses.
    """
    target = _resolved(target, hint)
    with explained(target, hint):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        with _held_sibling(target, Path.touch) as staging:
            try:
                staging.write_bytes(data)
                if mode is not None:
                    staging.chmod(mode)
                sync(staging)
                staging.replace(target)
            finally:
                staging.unlink(missing_ok=True)
        sync(target.parent)


def _replace(target: Path, staging: Path) -> None:
    """Rename ``staging`` to ``target``; the two change places where the system can do that in one step.

    Elsewhere what stood there is put aside first, and back again if the second step fails.
    """
    try:
        staging.rename(target)
        return
    except OSError:
        if not target.is_dir():
            raise
    if _exchange(target, staging):
        return
    aside = _sibling(target, "old")
    with _held(target):  # while `target` is missing, nobody takes `aside` for what a killed process left
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


def left_behind(name: str) -> bool:
    """Whether a file of this name is what a process that was killed had begun to write."""
    return _LEFT_BEHIND.fullmatch(name) is not None


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` holds nothing but what killed processes left behind."""
    return all(left_behind(path.name) for path in folder.iterdir())


def sweep(target: Path, *, alone: bool = False) -> None:
    """Remove what killed processes had begun to write for ``target``; what a running one writes stays.

    A directory that was put aside to be replaced, by a process that was killed before it was, is put back.

    Args:
        target: the file or directory that they were to write.
        alone: the caller holds a lock of ``target``, so that no other process writes it now. Without it nothing is
            removed where the file system has no locks to tell a running process by.
    """
    folder = target.parent
    with suppress(OSError):  # a leftover does no harm
        for name in os.listdir(folder):
            if left_behind(name) and name.startswith(f".{target.name}."):
                _remove_left_behind(folder / name, target, alone)


def sweep_folder(folder: Path) -> None:
    """:func:`sweep` everything in ``folder``, a directory that only this package writes."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if left_behind(name):
                _remove_left_behind(folder / name, folder / name[1:].rpartition(".")[0], alone=False)


def _remove_left_behind(path: Path, target: Path, alone: bool) -> None:
    with suppress(OSError), _held(path) as held:
        if not (held or alone):
            return
        if path.name.startswith(f".{target.name}.old-") and not target.exists():
            path.rename(target)
        elif stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextmanager
def _held_sibling(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new hidden sibling of ``target`` that :func:`sweep` leaves alone as long as this process runs."""
    for _ in range(10):
        staging = _sibling(target, "new")
        make(staging)
        with _held(staging) as held:
            if held is False:  # another process's sweep came between the two
                continue
            yield staging
            return
    raise OSError("another process removes it each time")


@contextmanager
def _held(path: Path) -> Iterator[bool | None]:
    """Hold the lock of the file or directory ``path``, which ends with the process.

    Yields:
        True; False if another process holds it or has removed ``path``; None where no such locks exist.
    """
    if fcntl is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield False
        return
    except OSError:  # a link, or another user's
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(descriptor), path.lstat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError:
            held = None
        yield held
    finally:
        os.close(descriptor)


def _resolved(target: Path, hint: str) -> Path:
    try:
        with explained(target, hint):
            return target.resolve()
    except RuntimeError as error:  # what Python says before 3.13
        raise ZooError(f"{target} is a loop of symbolic links.", hint) from error


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
def explained(target: Path, hint: str = ANOTHER_PLACE) -> Iterator[None]:
    """Turn what the file system refuses in the block into a :class:`ZooError` about ``target``."""
    try:
        yield
    except OSError as error:
        raise ZooError(f"{target} cannot be written: {error.strerror or error}.", hint) from error
