"""Finds the checkpoint file, such as JAX's ``theta.state``, in a repository that holds no artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, fetch, from_cache, lockfile, store
from pylo_zoo.fetch.lockfile import RepositoryPin
from pylo_zoo.hub.api import Snapshot
from pylo_zoo.hub.names import Repository
from pylo_zoo.hub.pull import report_move

NAMES = ("theta.state", "params", "model.safetensors")
"""Names of checkpoint files on the Hub."""
SUFFIXES = (".state", ".checkpoint", ".safetensors")
"""Formats that cannot contain code. Pickles from the Hub are never opened without an explicit request."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint file in the cache. ``uri`` contains its commit."""

    uri: str
    path: Path


Check = Callable[[Checkpoint], object]
"""Reads a file, and raises a ZooError if it is not a usable checkpoint."""


def recorded(repo: Repository, access: Access, check: Check, *, check_for_updates: bool) -> Checkpoint | None:
    """The checkpoint that the lock file records for ``repo``, or None.

    Args:
        repo: the repository.
        access: how to fetch.
        check: reads the file.
        check_for_updates: whether to check if the branch or tag has moved, and report it.

    Raises:
        FetchError: the file is unavailable, differs from its record, or is rejected by ``check``.
    """
    pins = {} if access.update_lock else lockfile.read_all(lockfile.location(access.lock)).repositories
    pin = pins.get(repo.uri)
    if pin is None or len(pin.files) != 1:  # an artifact has at least two files
        return None
    if check_for_updates:
        report_move(repo, pin, access)
    ((name, sha256),) = pin.files.items()
    checkpoint = _fetch(repo.at(pin.commit), name, sha256, access)
    try:
        check(checkpoint)
    except ZooError as error:
        raise from_cache(error, repo.uri, lockfile.location(access.lock)) from None
    return checkpoint


def find_checkpoint(repo: Repository, snapshot: Snapshot, access: Access, check: Check) -> Checkpoint:
    """Fetch, check and record the checkpoint in ``snapshot``, the current state of ``repo``.

    Raises:
        ZooError: no file, or more than one, may be the checkpoint.
        FetchError: the file is unavailable, or ``check`` rejects it.
    """
    files = sorted(snapshot.files)
    candidates = [name for name in NAMES if name in files] or [name for name in files if name.endswith(SUFFIXES)]
    if not candidates or (len(candidates) > 1 and candidates[0] not in NAMES):
        listing = ", ".join(files[:8]) or "nothing"
        raise ZooError(
            f"{repo.uri} has no artifact, and no file is clearly a checkpoint: {listing}.",
            f"Name the file: `pylo-zoo convert FAMILY --source hf://{repo.id}/FILE`.",
        )
    name = candidates[0]
    checkpoint = _fetch(repo.at(snapshot.commit), name, snapshot.files[name].sha256, access, check)
    check(checkpoint)
    pin = RepositoryPin(snapshot.commit, {name: store.digest(checkpoint.path)}, lockfile.today())
    lock = lockfile.location(access.lock)
    lockfile.record_repository(lock, repo.uri, pin)
    access.notify(f"{repo.uri} is {snapshot.commit[:12]}: recorded in {lock}.")
    return checkpoint


def _fetch(
    repo: Repository, name: str, sha256: str | None, access: Access, check: Check = lambda checkpoint: None
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
