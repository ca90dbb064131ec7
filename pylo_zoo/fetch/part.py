"""An incomplete download: the bytes so far, and the data that a later run needs to resume it."""

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
from pylo_zoo.files import open_regular, read_regular, translate_os_errors

MAX_RECORD = 1 << 16
"""Size limit of ``path.json``."""


class Part:
    """The file ``path``, and ``path.json`` with the server's validator (ETag) and announced length.

    ``path.json`` exists only while the bytes in ``path`` match it. A process that is killed at any moment therefore
    leaves a download that can be resumed, or one that is recognized as unusable.

    Attributes:
        path: the file.
        count: its current length in bytes.
        limit: its maximum length in bytes.
        resumed: whether it contains bytes from an earlier run.
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
        """Resume the download of an earlier run, or discard it if its record is missing or invalid."""
        try:
            if self.path.is_symlink() or self._record.is_symlink():
                raise ValueError("is a link")
            record = json.loads(read_regular(self._record, MAX_RECORD))
            self.validator, self.total = str(record["validator"]), int(record["total"])
            with open_regular(self.path) as file:
                while chunk := file.read(CHUNK):
                    self._hash.update(chunk)
                    self.count += len(chunk)
            if not self.validator or self.count > min(self.total, self.limit):
                raise ValueError("does not match its record")
        except (OSError, ValueError, KeyError, TypeError):
            self.discard()
        self.resumed = self.count > 0

    @property
    def complete(self) -> bool:
        """Whether the file has the length that the server announced."""
        return self.total is not None and self.count == self.total

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes so far."""
        return self._hash.hexdigest()

    def restart(self, validator: str = "", total: int | None = None) -> None:
        """Start again at the first byte. A download without a validator or a length cannot be resumed.

        Raises:
            ZooError: the cache cannot be written.
        """
        self.discard()
        with translate_os_errors(self.path, ANOTHER_CACHE):
            self.path.touch()
            if validator and total is not None:
                self._record.write_text(json.dumps({"validator": validator, "total": total}))
        self.validator, self.total = validator, total

    def discard(self) -> None:
        """Remove both files.

        Raises:
            ZooError: the cache cannot be written.
        """
        with translate_os_errors(self.path, ANOTHER_CACHE):
            self._record.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.count, self.validator, self.total, self.resumed = 0, "", None, False
        self._hash = hashlib.sha256()

    @contextmanager
    def writing(self) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that appends bytes.

        Raises:
            FetchError: the file exceeds the limit; it is removed.
            ZooError: the file cannot be written; if the disk is full, it is removed.
        """
        with translate_os_errors(self.path, ANOTHER_CACHE):
            file = self.path.open("ab", buffering=0)

        def write(data: bytes) -> None:
            if self.count + len(data) > self.limit:
                self.discard()
                raise self._too_large()
            try:
                with translate_os_errors(self.path, ANOTHER_CACHE):
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
        return FetchError(f"The file is larger than {self.limit:,} bytes.", limits.RAISE)

    def fill(self, source: Path) -> None:
        """Replace the content with a copy of the file ``source``.

        Raises:
            FetchError: ``source`` cannot be read or is too large.
            ZooError: the cache cannot be written.
        """
        try:
            file = open_regular(source)
        except OSError as error:
            raise FetchError(
                f"{source} cannot be read: {error.strerror}.", "Check the path and permissions."
            ) from error
        with file:
            if os.fstat(file.fileno()).st_size > self.limit:  # checked before anything is copied
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
