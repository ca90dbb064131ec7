"""Writing files and directories so that readers see the old ones or the new ones, and never half of either."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pylo_zoo.errors import ZooError

ANOTHER_PLACE = "Check the permissions and the free space there, or give another place."
_LEFT_BEHIND = re.compile(r"\..+\.(new|old)-[0-9a-f]{8}")


@contextmanager
def staged_directory(target: Path, hint: str = ANOTHER_PLACE, *, last: str | None = None) -> Iterator[Path]:
    """A new directory that becomes ``target`` when the block ends without an exception.

    Normally the new directory takes the place of ``target`` in one step. Three kinds of directory keep their inode, and
    the files are moved into them instead: an empty directory, a mount point, and one that holds the working directory
    (another one in its place would leave the user's shell in a deleted directory). Moving files takes several steps:
    the old ``last`` is moved away first and the new one is moved in at the end, so that a directory without this file
    is incomplete. An exception undoes the steps. A symbolic link is followed: its target is replaced. Whatever a killed
    process leaves is :func:`left_behind`.

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
        staging = target / _sibling(target, "new").name if inside else _sibling(target, "new")
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
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


def write_file(target: Path, data: bytes, hint: str = ANOTHER_PLACE) -> None:
    """Write or replace the file ``target`` in one step.

    A file that is itself a mount point (``docker run -v FILE:FILE``) cannot be replaced: its content is overwritten.

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
    """Remove what a killed process had begun to write for ``target``, beside it and inside it.

    The caller holds the lock of ``target``.
    """
    for folder in (target.parent, target):
        for name in os.listdir(folder) if folder.is_dir() else ():
            if left_behind(name) and name.startswith(f".{target.name}."):
                with suppress(OSError):  # a leftover does no harm
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
