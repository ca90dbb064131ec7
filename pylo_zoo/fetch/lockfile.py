"""``zoo.lock``: the hashes of files and repositories at their first use, to detect later changes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.fetch import store
from pylo_zoo.files import open_regular, write_file
from pylo_zoo.leftovers import sweep
from pylo_zoo.parsing import Field, unique_keys

NAME = "zoo.lock"
VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
MAX_PINS = 100_000
"""More entries than a file of :data:`MAX_BYTES` can hold."""
RESTORE = "Restore it from version control, or remove it to record the current files."
SHA256, DATE = "64 lower-case hex digits", "a date"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Pin:
    """The recorded hash and length of a file, and the day (UTC) of the recording."""

    sha256: str
    bytes: int
    date: str


@dataclass(frozen=True)
class RepositoryPin:
    """The recorded commit of a repository, the sha256 of each used file, and the day (UTC) of the recording."""

    commit: str
    files: Mapping[str, str]
    date: str


@dataclass(frozen=True)
class Lock:
    """The content of a lock file: pins by URI."""

    files: Mapping[str, Pin] = field(default_factory=dict)
    repositories: Mapping[str, RepositoryPin] = field(default_factory=dict)


def location(path: Path | None = None) -> Path:
    """The lock file to use: ``path``, ``$PYLO_ZOO_LOCK``, ``./zoo.lock`` if it exists, or the one in the cache."""
    explicit = path or os.environ.get("PYLO_ZOO_LOCK")
    if explicit:
        return Path(explicit)
    local = Path(NAME)
    return local if os.path.lexists(local) else store.home() / NAME


def read(path: Path) -> dict[str, Pin]:
    """The pins of files by URI; see :func:`read_all`."""
    return dict(read_all(path).files)


def read_all(path: Path) -> Lock:
    """Read all pins; a missing lock file has none.

    Raises:
        ZooError: the file cannot be read, or differs from the format that :func:`record` writes.
    """
    try:
        with open_regular(path) as file:
            large = os.fstat(file.fileno()).st_size > MAX_BYTES
            data = b"" if large else file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror}.", "Check its permissions, or pass --lock.") from error
    if large or len(data) > MAX_BYTES:
        raise _damaged(path, f"larger than {MAX_BYTES:,} bytes")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _damaged(path, "not an object")
    fields = Field(document, f"{path} is not a lock file", RESTORE).fields(("version", "files"), ("repositories",))
    if fields["version"].value != VERSION or isinstance(fields["version"].value, bool):
        version = quoted(fields["version"].value)
        raise ZooError(f"{path} has version {version}, but this pylo-zoo reads {VERSION}.", "Update pylo-zoo.")
    return Lock(
        fields["files"].mapping(_pin, MAX_PINS),
        fields["repositories"].mapping(_repository_pin, MAX_PINS) if "repositories" in fields else {},
    )


def record(path: Path, uri: str, sha256: str, length: int) -> None:
    """Add or replace the pin of a file. Concurrent processes do not lose each other's pins.

    Raises:
        ZooError: the lock file is damaged or cannot be written.
    """
    _change(path, lambda lock: replace(lock, files={**lock.files, uri: Pin(sha256, length, today())}))


def record_repository(path: Path, uri: str, pin: RepositoryPin) -> None:
    """Add or replace the pin of a repository, as :func:`record` does."""
    _change(path, lambda lock: replace(lock, repositories={**lock.repositories, uri: pin}))


def _change(path: Path, change: Callable[[Lock], Lock]) -> None:
    with store.locked(f"lock file {path.resolve()}"):
        sweep(path.resolve(), exclusive=True)
        write_file(path, render_lock(change(read_all(path))))


def render_lock(lock: Lock) -> bytes:
    """The bytes of a lock file, which depend only on the pins."""
    files = {uri: asdict(lock.files[uri]) for uri in sorted(lock.files)}
    repositories = {uri: asdict(lock.repositories[uri]) for uri in sorted(lock.repositories)}
    document = {"version": VERSION, "files": files, **({"repositories": repositories} if repositories else {})}
    return (json.dumps(document, indent=2) + "\n").encode()


def today() -> str:
    """The current date in UTC."""
    return datetime.now(timezone.utc).date().isoformat()


def _pin(field: Field) -> Pin:
    pin, fields = field.record(Pin), field.fields(("sha256", "bytes", "date"))
    fields["sha256"].match(_SHA256, SHA256)
    fields["date"].match(_DATE, DATE)
    return pin


def _repository_pin(field: Field) -> RepositoryPin:
    fields = field.fields(("commit", "files", "date"))
    files = fields["files"].mapping(lambda each: each.match(_SHA256, SHA256), MAX_PINS)
    if not files:
        raise fields["files"].wrong("an object of file names and hashes")
    commit = fields["commit"].match(_COMMIT, "40 lower-case hex digits")
    return RepositoryPin(commit, dict(sorted(files.items())), fields["date"].match(_DATE, DATE))


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _damaged(path: Path, what: str) -> ZooError:
    return ZooError(f"{path} is not a lock file: {' '.join(what.split())}.", RESTORE)
