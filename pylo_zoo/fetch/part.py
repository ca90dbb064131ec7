"""A download that is not complete: the bytes so far, and what tells whether the rest belongs to them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pylo_zoo import limits
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch.errors import FetchError
from pylo_zoo.fetch.store import ANOTHER_CACHE, CHUNK
from pylo_zoo.files import explained, open_regular, read_regular

MAX_RECORD = 1 << 16
"""Largest record of a server's validator and length."""


class Part:
    """The file ``path``, and beside it ``path.json`` with the server's validator and the length it announced.

    The second file exists only while the first one's bytes belong to it, so that a process killed at any moment leaves
    something that the next one can go on with, or nothing that it would take for that.

    Attributes:
        path: the file.
        count: its length.
        limit: the length that it must not exceed.
        resumed: whether bytes of an earlier attempt are in it.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.count = 0
        self.validator = ""
        self.total: int | None = None
        self.resumed = False
        self._record = path.with_name(path.name + ".json")
        self._hash = hashlib.sha256()
        self._reopen()

    def _reopen(self) -> None:
        """Go on with what an earlier run left, if it says what it is."""
        try:
            if self.path.is_symlink() or self._record.is_symlink():
                raise ValueError("a link")
            record = json.loads(read_regular(self._record, MAX_RECORD))
            self.validator, self.total = str(record["validator"]), int(record["total"])
            with open_regular(self.path) as file:
                while chunk := file.read(CHUNK):
                    self._hash.update(chunk)
                    self.count += len(chunk)
            if not self.validator or self.count > min(self.total, self.limit):
                raise ValueError("more than there is")
        except (OSError, ValueError, KeyError, TypeError):
            self.discard()
        self.resumed = self.count > 0

    @property
    def complete(self) -> bool:
        """Whether all the bytes that the server announced are there."""
        return self.total is not None and self.count == self.total

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._hash.hexdigest()

    def restart(self, validator: str = "", total: int | None = None) -> None:
        """Begin at the first byte. Without a validator or a length nothing will be resumed.

        Raises:
            ZooError: the file system refuses.
        """
        self.discard()
        with explained(self.path, ANOTHER_CACHE):
            self.path.touch()
            if validator and total is not None:
                self._record.write_text(json.dumps({"validator": validator, "total": total}))
        self.validator, self.total = validator, total

    def discard(self) -> None:
        """Remove everything.

        Raises:
            ZooError: the file system refuses.
        """
        with explained(self.path, ANOTHER_CACHE):
            self._record.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.count, self.validator, self.total, self.resumed = 0, "", None, False
        self._hash = hashlib.sha256()

    @contextmanager
    def writing(self) -> Iterator[Callable[[bytes], None]]:
        """A function that appends.

        Raises:
            FetchError: there are more bytes than the limit allows; nothing is kept.
            ZooError: the file system refuses; a full disk gets its space back.
        """
        with explained(self.path, ANOTHER_CACHE):
            file = self.path.open("ab", buffering=0)

        def write(data: bytes) -> None:
            if self.count + len(data) > self.limit:
                self.discard()
                raise self._too_large()
            try:
                with explained(self.path, ANOTHER_CACHE):
                    _write_all(file.fileno(), data)
            except ZooError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                    self.discard()
                raise
            self._hash.update(data)
            self.count += len(data)

        with file:
            yield write

    def _too_large(self) -> FetchError:
        return FetchError(f"The file is larger than {self.limit:,} bytes, and was not kept.", limits.RAISE)

    def fill(self, source: Path) -> None:
        """Hold a copy of the file ``source``.

        Raises:
            FetchError: it cannot be read or is too large.
            ZooError: the file system refuses.
        """
        try:
            file = open_regular(source)
        except OSError as error:
            raise FetchError(
                f"{source} cannot be read: {error.strerror}.", "Check the path and permissions."
            ) from error
        with file:
            if os.fstat(file.fileno()).st_size > self.limit:  # before any of it is copied
                self.discard()
                raise self._too_large()
            self.restart()
            with self.writing() as write:
                while chunk := file.read(CHUNK):
                    write(chunk)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
