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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pylo_zoo.errors import ZooError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

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
def staged_directory(target: Path, hint: str = ANOTHER_PLACE, *, last: str | None = None) -> Iterator[Path]:
    """A new directory that becomes ``target`` when the block ends without an exception.

    Normally the new directory takes the place of ``target`` in one step. Three kinds of directory keep their inode, and
    the files are moved into them instead: an empty directory, a mount point, and one that holds the working directory
    (another one in its place would leave the user's shell in a deleted directory). Moving files takes several steps:
    the old ``last`` is moved away first and the new one is moved in at the end, so that a directory without this file
    is incomplete. An exception undoes the steps. A symbolic link is followed: its target is replaced. What a killed
    process leaves behind is removed when somebody writes ``target`` again (:func:`sweep`).

    Args:
        target: the directory.
        hint: what a user can do if the file system refuses.
        last: the file without which readers do not accept the directory.

    Raises:
        ZooError: the file system refuses.
    """
    target = _resolved(target, hint)
    with explained(target, hint):
        inside = target.is_dir() and _keeps_its_place(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        with _held_sibling(target, Path.mkdir, inside=inside) as staging:
            try:
                yield staging
                for path in [*staging.rglob("*"), staging]:
                    sync(path)
                if inside:
                    _move_into(target, staging, last)
                else:
                    _replace(target, staging, last)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        sync(target if inside else target.parent)


def write_file(target: Path, data: bytes, hint: str = ANOTHER_PLACE, *, mode: int | None = None) -> None:
    """Write or replace the file ``target`` in one step, with ``mode`` if it is given.

    A file that is itself a mount point (``docker run -v FILE:FILE``) cannot be replaced: its content is overwritten.

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
                try:
                    staging.replace(target)
                except OSError as error:
                    if error.errno not in _CANNOT_MOVE or not target.is_file():
                        raise
                    target.write_bytes(data)
                    sync(target)
            finally:
                staging.unlink(missing_ok=True)
        sync(target.parent)


_CANNOT_MOVE = (errno.EBUSY, errno.EXDEV)
"""How the file system refuses to rename a mount point; EXDEV comes from a mount of another file system."""


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


def _keeps_its_place(target: Path) -> bool:
    """Whether another directory must not, or cannot, take the place of the directory ``target``."""
    with suppress(OSError):  # the working directory may be deleted
        if Path.cwd().is_relative_to(target):
            return True
    empty = all(left_behind(name) for name in os.listdir(target))
    return empty or os.path.ismount(target) or not os.access(target.parent, os.W_OK)


def _replace(target: Path, staging: Path, last: str | None) -> None:
    """Rename ``staging`` to ``target``; the two change places in one step if the system can do that.

    Otherwise the old directory is put aside first, and back again if the second step fails. A mount point that looks
    like a plain directory (a bind mount within one file system) refuses both, and gets the files instead.
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
        try:
            target.rename(aside)
        except OSError as error:
            if error.errno not in _CANNOT_MOVE:
                raise
            _copy_into(target, staging, last)
            return
        try:
            staging.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _copy_into(target: Path, staging: Path, last: str | None) -> None:
    """Copy ``staging`` into the mount point ``target``, then move its files to their places there."""
    inside = target / staging.name
    try:
        shutil.copytree(staging, inside)
        for path in [*inside.rglob("*"), inside]:
            sync(path)
        _move_into(target, inside, last)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _move_into(target: Path, staging: Path, last: str | None) -> None:
    """Replace the entries of ``target`` by those of ``staging``, which is one of them; undone after an exception."""
    aside = target / _sibling(target, "old").name
    aside.mkdir()
    with _held(aside):
        _exchange_entries(target, staging, aside, last)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange_entries(target: Path, staging: Path, aside: Path, last: str | None) -> None:
    """Move the entries of ``target`` to ``aside`` and those of ``staging`` to ``target``; undone after an exception."""
    old = sorted((name for name in os.listdir(target) if not left_behind(name)), key=lambda name: name != last)
    new = sorted(os.listdir(staging), key=lambda name: name == last)
    moved: list[tuple[Path, Path]] = []
    try:
        for here, there, names in ((target, aside, old), (staging, target, new)):
            for name in names:
                (here / name).rename(there / name)
                moved.append((here / name, there / name))
            sync(there)
    except BaseException:
        for before, after in reversed(moved):
            after.rename(before)
        aside.rmdir()
        raise


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
    for folder in (target.parent, target):
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
def _held_sibling(target: Path, make: Callable[[Path], None], *, inside: bool = False) -> Iterator[Path]:
    """A new hidden path next to or inside ``target`` that :func:`sweep` leaves alone while this process runs."""
    staging = target
    for _ in range(10):
        staging = target / _sibling(target, "new").name if inside else _sibling(target, "new")
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
