"""Bounded reads of regular files, and writes that leave the old file or the new one, and never half of either."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pylo_zoo.errors import ZooError

ANOTHER_PLACE = "Check the permissions and the free space there, or give another place."
_LEFT_BEHIND = re.compile(r"\..+\.(new|old)-[0-9a-f]{8}")

MAX_TEXT_BYTES = 1 << 28
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""O_NONBLOCK: opening a named pipe without a writer returns at once, so that it can be refused."""
_KINDS = {
    stat.S_IFDIR: "it is a directory",
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file at ``path`` for reading. A symbolic link is followed.

    A pipe, a socket, a device or a directory is refused after the open and before the first read, so that nothing
    waits for a writer and nothing reads an endless device.

    Raises:
        OSError: it cannot be opened, or is not a regular file; ``strerror`` says why.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, "its name is not valid", str(path)) from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # how the open of a socket fails
            raise OSError(errno.ENXIO, "it is a socket", str(path)) from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = _KINDS.get(stat.S_IFMT(mode), "it is not a file")
            raise OSError(errno.EINVAL, f"{what}, not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(
    path: Path, limit: int, hint: str = "Check the path and its permissions.", *, large: str = ""
) -> bytes:
    """The bytes of the regular file at ``path``, at most ``limit`` of them.

    The size is checked before anything is allocated, so that a sparse file costs nothing.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        hint: what to do about a file that is missing, unreadable or not regular.
        large: what to do about a file that is too large; by default ``hint``.

    Raises:
        ZooError: the file is missing, unreadable, not regular, or larger.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > limit else file.read(min(size, limit) + 1)
    except FileNotFoundError as error:
        what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise ZooError(f"{path} {what}.", hint) from error
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
    if (size := max(size, len(data))) > limit:
        raise ZooError(f"{path} is larger than {limit:,} bytes: it has {size:,}.", large or hint)
    return data


@contextmanager
def staged_directory(target: Path, hint: str = ANOTHER_PLACE) -> Iterator[Path]:
    """A new directory beside ``target`` that takes its place, in one step, when the block ends without an exception.

    After an exception nothing has changed. A symbolic link is followed: what it points to is replaced. What a process
    leaves behind that is killed meanwhile is :func:`left_behind`, and in nobody's way.

    Raises:
        ZooError: the file system refuses.
    """
    target = _resolved(target, hint)
    staging = _sibling(target, "new")
    with explained(target, hint):
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


def write_file(target: Path, data: bytes, hint: str = ANOTHER_PLACE) -> None:
    """Write or replace the file ``target`` in one step.

    Raises:
        ZooError: the file system refuses.
    """
    target = _resolved(target, hint)
    staging = _sibling(target, "new")
    with explained(target, hint):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.write_bytes(data)
            sync(staging)
            staging.replace(target)
        finally:
            staging.unlink(missing_ok=True)
        sync(target.parent)


def read_text(path: Path) -> str:
    """The text of a regular file of a run, such as its metrics: a line per step.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is larger than :data:`MAX_TEXT_BYTES`.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_TEXT_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_TEXT_BYTES:,} bytes", str(path))
        return file.read(MAX_TEXT_BYTES).decode("utf-8")


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


def sweep(target: Path) -> None:
    """Remove what a process that was killed had begun to write for ``target``, for a caller that holds its lock."""
    folder = target.parent
    for name in os.listdir(folder) if folder.is_dir() else ():
        if left_behind(name) and name.startswith(f".{target.name}."):
            with suppress(OSError):  # it is in nobody's way
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


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
