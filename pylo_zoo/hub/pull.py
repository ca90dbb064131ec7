"""Downloads a published artifact into ``$PYLO_ZOO_HOME/hub/ORG--NAME/COMMIT/``, complete and verified, or not at all.

The first use of a branch or tag records its commit and the hashes of its files in the lock file. Later uses return that
commit even if the branch moves, until ``update_lock`` accepts the new one. Every load hashes every file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pylo_zoo import artifact, limits
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, Forbidden, NotFound, Unavailable, fetch, lockfile, parse, store
from pylo_zoo.fetch import hub as client
from pylo_zoo.fetch.lockfile import RepositoryPin
from pylo_zoo.files import read_regular, staged_directory, translate_os_errors
from pylo_zoo.hub.api import Hub, RemoteFile, Snapshot
from pylo_zoo.hub.names import Repository
from pylo_zoo.leftovers import sweep

REQUIRED = (artifact.CONFIG, artifact.WEIGHTS)
DOWNLOADED = (*REQUIRED, artifact.PARITY, artifact.VECTORS, artifact.CARD)
"""The files that are downloaded, in this order. Other files, above all pickles, are not."""
LISTING = "SHA256SUMS"
"""The file in the cache that lists the hashes of the other files."""
LARGE = (artifact.WEIGHTS, artifact.VECTORS)
"""The files whose size limit is :func:`pylo_zoo.limits.max_bytes`."""
MAX_TEXT_BYTES = artifact.MAX_JSON_BYTES
CHANGED = "Do not use it: a commit cannot change, so the file was tampered with, here or on the Hub."
UPDATE = "Ask its publisher, or accept it with --update-lock (in Python, update_lock=True)."


class NotAnArtifact(ZooError):
    """The repository does not hold an artifact of this package. ``snapshot`` lists its files."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(
            f"{snapshot.repo.uri} is not an artifact: it lacks an artifact's {' or '.join(REQUIRED)}.",
            "Convert a checkpoint with `pylo-zoo convert FAMILY --source hf://ORG/REPO/FILE`.",
        )
        self.snapshot = snapshot


@dataclass(frozen=True)
class Pulled:
    """An artifact in the cache.

    Attributes:
        directory: the cache directory, which must not be changed.
        repo: the repository as requested.
        commit: the commit of the artifact.
        files: sha256 by file name, all verified by this call.
        fetched: whether this call downloaded it.
        newer: the current commit of the branch or tag if it has moved; None if it has not, or was not checked.
    """

    directory: Path
    repo: Repository
    commit: str
    files: Mapping[str, str]
    fetched: bool = False
    newer: str | None = None


def pull(
    repo: Repository | str,
    *,
    expected: Mapping[str, str] | None = None,
    check_for_updates: bool = True,
    access: Access | None = None,
) -> Pulled:
    """Return the verified artifact of ``repo``; download it if necessary.

    Args:
        repo: the repository; without a revision, its main branch.
        expected: sha256 by file name, from a registry.
        check_for_updates: whether to check if a recorded branch or tag has moved.
        access: how to fetch.

    Raises:
        NotAnArtifact: the repository does not hold an artifact.
        FetchError: the artifact is unavailable, or differs from the lock file or from ``expected``.
        ZooError: the artifact is damaged, or the cache or the lock file cannot be used.
    """
    access = access or Access()
    repo = Repository.parse(repo) if isinstance(repo, str) else repo
    lock = lockfile.location(access.lock)
    before = lockfile.read_all(lock).repositories.get(repo.uri)
    pin = None if access.update_lock else before
    known = {**(pin.files if pin else {}), **(expected or {})}
    _check_agreement(repo, pin, expected)
    newer = report_move(repo, pin, access) if pin and check_for_updates else None
    commit = repo.commit or (pin.commit if pin else _current_commit(repo, lock, access))
    files = cached(repo, commit, known)
    fetched = files is None
    if files is None:
        with store.locked(f"hub {repo.id} {commit}", access.notify):
            files = cached(repo, commit, known) or _fetch(repo.at(commit), known, access)
    if pin is None:
        lockfile.record_repository(lock, repo.uri, RepositoryPin(commit, files, lockfile.today()))
        was = f" (it was {before.commit[:12]} on {before.date})" if before and before.commit != commit else ""
        access.notify(f"{repo.uri} is {commit[:12]}{was}: recorded in {lock}.")
    return Pulled(cache_directory(repo, commit), repo, commit, files, fetched, newer)


def _check_agreement(repo: Repository, pin: RepositoryPin | None, expected: Mapping[str, str] | None) -> None:
    for name, sha256 in (expected or {}).items():
        if pin and pin.files.get(name, sha256) != sha256:
            raise FetchError(
                f"{repo.uri}: the lock file and the registry have different sha256 of {name}.",
                "Find out which one is right before you change either.",
            )


def _current_commit(repo: Repository, lock: Path, access: Access) -> str:
    """The commit on the Hub of a ``repo`` that is not recorded in ``lock``."""
    if access.is_offline:
        raise Unavailable(
            f"{repo.uri} is not recorded in {lock}, and offline mode is on.", "Pull it once with a network connection."
        )
    return Hub(access).snapshot(repo).commit


def report_move(repo: Repository, pin: RepositoryPin, access: Access) -> str | None:
    """Report a branch or tag that has moved since ``pin``, and return its current commit; otherwise None."""
    if repo.commit is not None:
        return None
    if access.is_offline:
        access.notify(f"Offline: using {repo.uri} at the recorded commit {pin.commit[:12]}.")
        return None
    try:
        current = Hub(access).snapshot(repo).commit
    except (Unavailable, NotFound, Forbidden) as error:
        access.notify(f"{error.message} Using the recorded commit {pin.commit[:12]}.")
        return None
    if current == pin.commit:
        return None
    access.notify(
        f"{repo.uri} has moved to {current[:12]} since {pin.date}: keeping {pin.commit[:12]}. "
        "Accept the new commit with --update-lock (in Python, update_lock=True)."
    )
    return current


# --- the cache ---------------------------------------------------------------------------------------------------


def home() -> Path:
    """The directory of pulled artifacts."""
    return store.home() / "hub"


def cache_directory(repo: Repository, commit: str) -> Path:
    """The cache directory of ``repo`` at ``commit``."""
    return home() / repo.id.replace("/", "--") / commit


def is_pulled(path: Path) -> bool:
    """Whether ``path`` is in the cache of pulled artifacts, which must not be changed."""
    return path.resolve().is_relative_to(home().resolve())


def cached(repo: Repository, commit: str, known: Mapping[str, str]) -> dict[str, str] | None:
    """The sha256 of each file of a cached artifact; None if the artifact is missing or damaged.

    Each file must match the listing next to it and ``known``. Links are not followed. An artifact's file that is not
    listed counts as damage.
    """
    folder = cache_directory(repo, commit)
    listing = _listing(folder)
    if not set(REQUIRED) <= listing.keys() or any(listing.get(name) != known[name] for name in known):
        return None
    if any(path.is_symlink() for path in (folder.parent, folder, *(folder / name for name in (LISTING, *listing)))):
        return None
    present = artifact.OWN_FILES.intersection(os.listdir(folder))
    intact = all(store.digest(folder / name) == sha256 for name, sha256 in listing.items())
    return listing if intact and present == listing.keys() else None


def _listing(folder: Path) -> dict[str, str]:
    """The sha256 by file name that :func:`_fetch` wrote into ``folder``, in the format of sha256sum."""
    try:
        lines = read_regular(folder / LISTING, MAX_TEXT_BYTES).decode("utf-8").splitlines()
    except (ZooError, UnicodeDecodeError):
        return {}
    pairs = [line.split("  ", 1) for line in lines]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and pair[1] in DOWNLOADED}


def _fetch(repo: Repository, known: Mapping[str, str], access: Access) -> dict[str, str]:
    """Download the artifact of ``repo``, whose revision is a commit, into the cache in one step."""
    if access.is_offline:
        raise Unavailable(
            f"{repo.uri} is missing or damaged in the cache, and offline mode is on.",
            "Turn offline mode off (--offline, HF_HUB_OFFLINE).",
        )
    snapshot = Hub(access).snapshot(repo)
    if not set(REQUIRED) <= snapshot.files.keys():
        raise NotAnArtifact(snapshot)
    assert repo.commit is not None
    files = {name: snapshot.files[name] for name in DOWNLOADED if name in snapshot.files}
    if missing := sorted(known.keys() - files.keys()):
        raise FetchError(f"{repo.uri} has no {missing[0]}, but had one when it was recorded.", UPDATE)
    paths = {}
    for name, file in files.items():
        paths[name] = _fetch_file(repo, name, file, known.get(name), access)
        if name == artifact.CONFIG and not _is_artifact(paths[name]):
            raise NotAnArtifact(snapshot)
    hashes = {name: store.digest(path) for name, path in paths.items()}
    target = cache_directory(repo, repo.commit)
    _clear(target)
    with staged_directory(target, store.ANOTHER_CACHE, last=LISTING) as staging:
        with translate_os_errors(target, store.ANOTHER_CACHE):
            for name, path in paths.items():
                shutil.copyfile(path, staging / name)
            listing = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
            (staging / LISTING).write_text(listing, encoding="utf-8")
        if any(store.digest(staging / name) != sha256 for name, sha256 in hashes.items()):
            raise FetchError(f"{repo.uri} changed while it was copied.", "Try again.")
        artifact.read(staging)
    return hashes


def _fetch_file(repo: Repository, name: str, file: RemoteFile, sha256: str | None, access: Access) -> Path:
    """Download one file, and verify it against the Hub's description and against ``sha256`` if that is known."""
    limit = limits.max_bytes() if name in LARGE else MAX_TEXT_BYTES
    if file.size > limit:
        raise FetchError(f"{repo.uri}: {name} has {file.size:,} bytes, more than {limit:,}.", "Check the repository.")
    if sha256 and file.sha256 and sha256 != file.sha256:
        raise FetchError(f"{repo.uri}: {name} has sha256 {file.sha256}, but {sha256} is recorded.", CHANGED)
    uri = f"{repo.uri.partition('@')[0]}/{name}@{repo.revision}"
    known = sha256 or file.sha256
    for _ in range(2):
        path = fetch(
            uri,
            sha256=known,
            bytes=file.size,
            limit=limit,
            record=False,
            check=lambda path: None,  # the Hub's description of the file is checked below
            access=replace(access, update_lock=known is None),  # without a hash, do not trust the client's cache
        )
        if file.sha256 is not None or file.blob is None or _blob(path) == file.blob:
            return path
        if sha256:
            raise FetchError(f"{uri} is not the file with the recorded sha256 {sha256}.", CHANGED)
        # The client's cache may map this name to wrong bytes. Remove the pointer, so the client downloads it again.
        path.unlink(missing_ok=True)
        if pointer := client.cached_path(parse(uri)):
            client.remove_pointer(pointer)
    raise FetchError(
        f"{uri} is not the file that the Hub describes: git's hash differs.",
        "Try again, or use another endpoint.",
    )


def _blob(path: Path) -> str:
    """The hash that git gives to a file with these bytes."""
    data = read_regular(path, limits.max_bytes())
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _is_artifact(config: Path) -> bool:
    """Whether ``config`` is an artifact's ``config.json``; PyLO's repositories have another file of that name."""
    return b'"format_version"' in read_regular(config, MAX_TEXT_BYTES)


def _clear(target: Path) -> None:
    """Remove a link or file at ``target``, and the temporary files of killed processes. The caller holds the lock."""
    with translate_os_errors(target, store.ANOTHER_CACHE):
        store.real_folder(target.parent)
        if target.is_symlink() or target.is_file():
            target.unlink()
        sweep(target, exclusive=True)
