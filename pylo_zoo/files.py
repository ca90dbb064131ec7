"""Bounded reads of regular files, and atomic writes: a reader sees the old file or the new one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pylo_zoo.errors import ZooError
from pylo_zoo.leftovers import left_behind, locked, sibling, sweep

ANOTHER_PLACE = "Check the permissions and the free space there, or choose another place."
REPLACE = "--force (in Python, force=True)"
"""How a user permits that an existing output is replaced; part of a hint."""

MAX_TEXT_BYTES = 1 << 28
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""With O_NONBLOCK, opening a named pipe that has no writer returns at once."""
_KINDS = {
    stat.S_IFDIR: "it is a directory",
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


PATH_STARTS = ("./", "../", "/", "~")
PATH_SUFFIXES = (
    *(".state", ".checkpoint", ".ckpt", ".safetensors", ".pt", ".pth", ".bin", ".npz", ".npy", ".pickle", ".pkl"),
    *(".msgpack", ".json", ".yaml", ".gin", ".txt", ".zip"),
)
"""File types that a user may pass where an artifact's directory is expected."""


def is_local(name: str) -> bool:
    """Whether ``name`` is a local path (which need not exist), not a registry name or a repository on the Hub.

    It is one if it exists, starts or ends like a path, has the suffix of a file, or if its first directory exists.
    """
    first, separator, _ = name.partition("/")
    return (
        name.startswith(PATH_STARTS)
        or (name.endswith("/") and "://" not in name)
        or name.lower().endswith(PATH_SUFFIXES)
        or os.path.lexists(name)
        or (bool(separator) and os.path.isdir(first))
    )


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file at ``path`` for reading. Symbolic links are followed.

    A pipe, a socket, a device or a directory is rejected before the first read: a pipe may wait forever for a writer,
    and a device may be endless.

    Raises:
        OSError: it cannot be opened, or is not a regular file; ``strerror`` states the reason.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, "its name is not valid", str(path)) from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # the result of opening a socket
            raise OSError(errno.ENXIO, "it is a socket", str(path)) from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "it is not a file")
            raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(
    path: Path, limit: int, hint: str = "Check the path and its permissions.", *, large: str = ""
) -> bytes:
    """Read the regular file at ``path``, at most ``limit`` bytes.

    The size is checked before the allocation: a sparse file costs nothing.

    Args:
        path: the file.
        limit: the largest permitted size in bytes.
        hint: hint of the error for a file that is missing, unreadable or not regular.
        large: hint of the error for a file that is too large; by default ``hint``.

    Raises:
        ZooError: the file is missing, unreadable, not regular, or too large.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > limit else file.read(min(size, limit) + 1)
    except FileNotFoundError as error:
        problem = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise ZooError(f"{path} {problem}.", hint) from error
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
    if (size := max(size, len(data))) > limit:
        raise ZooError(f"{path} is larger than {limit:,} bytes: it has {size:,}.", large or hint)
    return data


@contextmanager
def staged_directory(target: Path, hint: str = ANOTHER_PLACE, *, last: str | None = None) -> Iterator[Path]:
    """Create a directory that becomes ``target`` when the block ends without an exception.

    Normally the new directory replaces ``target`` in one step. Three kinds of directory keep their inode, and the files
    are moved into them instead: an empty directory, a mount point, and one that contains the working directory
    (replacing it would leave the user's shell in a deleted directory). Moving files takes several steps: the old
    ``last`` is moved out first and the new one is moved in at the end. A directory without this file is therefore
    incomplete. An exception undoes the steps. Symbolic links are followed: the link's target is replaced. The next
    write of ``target`` removes the leftovers of a killed process (:func:`sweep`).

    Args:
        target: the directory.
        hint: the hint of the error if ``target`` cannot be written.
        last: the file without which readers reject the directory.

    Raises:
        ZooError: ``target`` cannot be written.
    """
    target = _resolved(target, hint)
    with translate_os_errors(target, hint):
        inside = target.is_dir() and _must_keep_inode(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        with _locked_sibling(target, Path.mkdir, inside=inside) as staging:
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


def check_target(path: Path) -> None:
    """Check that :func:`write_file` can probably write ``path``. Call this before long work.

    Raises:
        ZooError: ``path`` is a directory, or its parent is missing or not writable.
    """
    problem = "it is a directory" if path.is_dir() else _write_problem(path.parent)
    if problem is not None:
        raise ZooError(f"{path} cannot be written: {problem}.", "Choose a file in a directory that you can write to.")


def check_directory_target(path: Path) -> None:
    """Check that a directory can probably be created or replaced at ``path``. Call this before long work.

    Raises:
        ZooError: ``path`` is a file, or nothing can be created in the nearest directory above it that exists.
    """
    if path.is_symlink():
        path = _resolved(path, ANOTHER_PLACE)
    if path.is_dir():
        problem = _write_problem(path) and _write_problem(path.parent)
    elif os.path.lexists(path):
        problem = "it is not a directory"
    else:
        problem = _write_problem(next((above for above in path.parents if os.path.lexists(above)), path.parent))
    if problem is not None:
        raise ZooError(f"{path} cannot be written: {problem}.", "Choose a place in a directory that you can write to.")


def _write_problem(directory: Path) -> str | None:
    """Why no file can be created in ``directory``, or None. It creates one: root's permissions do not tell."""
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            return f"{directory} is not a directory"
    except OSError as error:
        return f"{directory} is not a directory" + (f" ({error.strerror})" if error.errno == errno.ELOOP else "")
    if not os.access(directory, os.W_OK):
        return f"{directory} is read-only"
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return f"no file can be created in {directory} ({error.strerror or error})"


def write_file(target: Path, data: bytes, hint: str = ANOTHER_PLACE, *, mode: int | None = None) -> None:
    """Write or replace the file ``target`` in one step, with permissions ``mode`` if not None.

    A file that is itself a mount point (``docker run -v FILE:FILE``) cannot be replaced; its content is overwritten.

    Raises:
        ZooError: ``target`` cannot be written.
    """
    target = _resolved(target, hint)
    with translate_os_errors(target, hint):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        with _locked_sibling(target, Path.touch) as staging:
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
"""Error codes for renaming a mount point; EXDEV if another file system is mounted there."""


def read_text(path: Path) -> str:
    """Read a text file of a training run, such as its metrics with one line per step.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is larger than :data:`MAX_TEXT_BYTES`.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > MAX_TEXT_BYTES else file.read(size + 1)  # read(n) allocates n bytes
        if max(size, len(data)) > MAX_TEXT_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_TEXT_BYTES:,} bytes", str(path))
        return data.decode("utf-8")


def _must_keep_inode(target: Path) -> bool:
    """Whether the directory ``target`` must not, or cannot, be replaced by another directory."""
    with suppress(OSError):  # the working directory may be deleted
        if Path.cwd().is_relative_to(target):
            return True
    empty = all(left_behind(name) for name in os.listdir(target))
    return empty or os.path.ismount(target) or not os.access(target.parent, os.W_OK)


def _replace(target: Path, staging: Path, last: str | None) -> None:
    """Rename ``staging`` to ``target``; an existing ``target`` is swapped in one step if the system supports that.

    Otherwise the old directory is moved aside first, and moved back if the second step fails. A mount point that looks
    like a plain directory (a bind mount within one file system) cannot be renamed; the files are moved into it.
    """
    try:
        staging.rename(target)
        return
    except OSError:
        if not target.is_dir():
            raise
    if _exchange(target, staging):
        return
    aside = sibling(target, "old")
    with locked(target):  # another process must not sweep `aside` while `target` is missing
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
    """Copy ``staging`` into the mount point ``target``, then move its files into place."""
    inside = target / staging.name
    try:
        shutil.copytree(staging, inside)
        for path in [*inside.rglob("*"), inside]:
            sync(path)
        _move_into(target, inside, last)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _move_into(target: Path, staging: Path, last: str | None) -> None:
    """Replace the entries of ``target`` by those of its subdirectory ``staging``. An exception undoes this."""
    aside = target / sibling(target, "old").name
    aside.mkdir()
    with locked(aside):
        _exchange_entries(target, staging, aside, last)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange_entries(target: Path, staging: Path, aside: Path, last: str | None) -> None:
    """Move the entries of ``target`` to ``aside`` and those of ``staging`` to ``target``. An exception undoes this."""
    old = sorted((name for name in os.listdir(target) if not left_behind(name)), key=lambda name: name != last)
    new = sorted(os.listdir(staging), key=lambda name: name == last)
    moved: list[tuple[Path, Path]] = []
    try:
        for origin, destination, names in ((target, aside, old), (staging, target, new)):
            for name in names:
                (origin / name).rename(destination / name)
                moved.append((origin / name, destination / name))
            sync(destination)
    except BaseException:
        for before, after in reversed(moved):
            after.rename(before)
        aside.rmdir()
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step with Linux's renameat2. Returns False if that is not supported."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    return renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0


@contextmanager
def _locked_sibling(target: Path, make: Callable[[Path], None], *, inside: bool = False) -> Iterator[Path]:
    """Create a hidden path next to or inside ``target``; :func:`sweep` ignores it while this process runs."""
    staging = target
    for _ in range(10):
        staging = target / sibling(target, "new").name if inside else sibling(target, "new")
        make(staging)
        with locked(staging) as is_locked:
            if is_locked is False:  # another process swept it before it was locked
                continue
            yield staging
            return
    raise OSError("another process removes it each time")


def _resolved(target: Path, hint: str) -> Path:
    try:
        with translate_os_errors(target, hint):
            return target.resolve()
    except RuntimeError as error:  # raised by Python before 3.13
        raise ZooError(f"{target} is a loop of symbolic links.", hint) from error


def sync(path: Path) -> None:
    """Flush the file or directory at ``path`` to the disk (fsync)."""
    if sys.platform == "win32" and path.is_dir():
        return  # a directory cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translate_os_errors(target: Path, hint: str = ANOTHER_PLACE) -> Iterator[None]:
    """Convert an OSError of the block into a :class:`ZooError` about ``target``."""
    try:
        yield
    except OSError as error:
        raise ZooError(f"{target} cannot be written: {error.strerror or error}.", hint) from error
