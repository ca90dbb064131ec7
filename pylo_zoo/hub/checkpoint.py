"""A repository that holds a checkpoint, not an artifact, such as JAX's ``theta.state``: which file of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, fetch, from_cache, lockfile, store
from pylo_zoo.fetch.lockfile import RepositoryPin
from pylo_zoo.hub.api import Snapshot
from pylo_zoo.hub.names import Repository
from pylo_zoo.hub.pull import moved_on

NAMES = ("theta.state", "params", "model.safetensors")
"""What checkpoints are called on the Hub."""
SUFFIXES = (".state", ".checkpoint", ".safetensors")
"""Formats that hold arrays and nothing that runs; pickles of the Hub are never opened unasked."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's file in the cache, verified; ``uri`` names it for good."""

    uri: str
    path: Path


Check = Callable[[Checkpoint], object]
"""Reads a file, and raises a ZooError if it is not a checkpoint that may be used."""


def recorded(repo: Repository, access: Access, check: Check, *, look: bool) -> Checkpoint | None:
    """The file that the lock file holds for ``repo``, where it holds a checkpoint's.

    Args:
        repo: which.
        access: how to fetch.
        check: reads the file.
        look: ask where a branch or tag leads by now, and say so.

    Raises:
        FetchError: it is unavailable, is another one, or ``check`` refuses it.
    """
    pins = {} if access.update_lock else lockfile.read_all(lockfile.location(access.lock)).repositories
    pin = pins.get(repo.uri)
    if pin is None or len(pin.files) != 1:  # an artifact has two files at least
        return None
    if look:
        moved_on(repo, pin, access)
    ((name, sha256),) = pin.files.items()
    found = _take(repo.at(pin.commit), name, sha256, access)
    try:
        check(found)
    except ZooError as error:
        raise from_cache(error, repo.uri, lockfile.location(access.lock)) from None
    return found


def find_checkpoint(repo: Repository, snapshot: Snapshot, access: Access, check: Check) -> Checkpoint:
    """The checkpoint in ``snapshot``, which is what ``repo`` leads to, fetched, checked and recorded.

    Raises:
        ZooError: there is none, or more than one that it could be.
        FetchError: it is unavailable, or ``check`` refuses it.
    """
    there = sorted(snapshot.files)
    fitting = [name for name in NAMES if name in there] or [name for name in there if name.endswith(SUFFIXES)]
    if not fitting or (len(fitting) > 1 and fitting[0] not in NAMES):
        listing = ", ".join(there[:8]) or "nothing"
        raise ZooError(
            f"{repo.uri} holds no artifact, and no checkpoint that could be told by its name: {listing}.",
            f"Name the file: `pylo-zoo convert FAMILY --source hf://{repo.id}/FILE`.",
        )
    name = fitting[0]
    found = _take(repo.at(snapshot.commit), name, snapshot.files[name].sha256, access, check)
    check(found)
    pin = RepositoryPin(snapshot.commit, {name: store.digest(found.path)}, lockfile.today())
    lock = lockfile.location(access.lock)
    lockfile.record_repository(lock, repo.uri, pin)
    access.say(f"{repo.uri} is {snapshot.commit[:12]}: recorded in {lock}.")
    return found


def _take(
    repo: Repository, name: str, sha256: str | None, access: Access, check: Check = lambda found: None
) -> Checkpoint:
    uri = f"hf://{repo.id}/{name}@{repo.revision}"
    path = fetch(
        uri,
        sha256=sha256,
        record=False,
        check=lambda path: check(Checkpoint(uri, path)),
        access=replace(access, update_lock=False),
    )
    return Checkpoint(uri, path)
