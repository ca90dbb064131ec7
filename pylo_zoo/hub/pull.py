"""A published artifact, whole and verified, in ``$PYLO_ZOO_HOME/hub/ORG--NAME/COMMIT/``; or nothing.

Which commit a branch or tag was, and what its files hash to, goes into the lock file the first time; from then on
that is what one gets, whatever happens on the Hub, until ``update_lock`` accepts what is there now. Every load hashes
every file.
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
from pylo_zoo.files import explained, read_regular, staged_directory, sweep
from pylo_zoo.hub.api import Hub, RemoteFile, Snapshot
from pylo_zoo.hub.names import Repository

NEEDED = (artifact.CONFIG, artifact.WEIGHTS)
TAKEN = (*NEEDED, artifact.PARITY, artifact.VECTORS, artifact.CARD)
"""The files that are taken, in this order; whatever else a repository holds, pickles first of all, is left there."""
LISTING = "SHA256SUMS"
"""Beside them in the cache: what they were when they were taken."""
LARGE = (artifact.WEIGHTS, artifact.VECTORS)
"""The files whose limit is :func:`pylo_zoo.limits.max_bytes`."""
MAX_TEXT_BYTES = artifact.MAX_JSON_BYTES
CHANGED = "A commit cannot change: the file was tampered with, here or there. Do not use it."
UPDATE = "--update-lock (in Python, update_lock=True) accepts it; if you did not expect that, ask its publisher."


class NotAnArtifact(ZooError):
    """The repository holds no artifact of this package; ``snapshot`` says what it holds."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(
            f"{snapshot.repo.uri} holds no artifact: it has no {' and '.join(NEEDED)} of one.",
            "A checkpoint there converts with `pylo-zoo convert FAMILY --source hf://ORG/REPO/FILE`.",
        )
        self.snapshot = snapshot


@dataclass(frozen=True)
class Pulled:
    """An artifact that was pulled.

    Attributes:
        directory: where its files are; nobody should write there.
        repo: as it was asked for.
        commit: what that is.
        files: sha256 by name, each verified just now.
        fetched: whether anything was downloaded for it.
        newer: the commit that the branch or tag leads to by now, where it is another one; None where nobody asked.
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
    look: bool = True,
    access: Access | None = None,
) -> Pulled:
    """The artifact of ``repo``, verified.

    Args:
        repo: which; without a revision, its main branch.
        expected: sha256 by name, where a registry pins them.
        look: ask where a branch or tag leads by now, even where the lock file and the cache have all that is needed.
        access: how to fetch.

    Raises:
        NotAnArtifact: the repository holds something else.
        FetchError: it is unavailable, or is not what the lock file, or ``expected``, says.
        ZooError: its artifact is damaged; or the cache or the lock file cannot be used.
    """
    access = access or Access()
    repo = Repository.parse(repo) if isinstance(repo, str) else repo
    lock = lockfile.location(access.lock)
    before = lockfile.read_all(lock).repositories.get(repo.uri)
    pin = None if access.update_lock else before
    known = {**(pin.files if pin else {}), **(expected or {})}
    _agree(repo, pin, expected)
    newer = moved_on(repo, pin, access) if pin and look else None
    commit = repo.commit or (pin.commit if pin else _first(repo, lock, access))
    found = cached(repo, commit, known)
    fetched = found is None
    if found is None:
        with store.locked(f"hub {repo.id} {commit}", access.say):
            found = cached(repo, commit, known) or _fetch(repo.at(commit), known, access)
    if pin is None:
        lockfile.record_repository(lock, repo.uri, RepositoryPin(commit, found, lockfile.today()))
        was = f" (it was {before.commit[:12]}, of {before.date})" if before and before.commit != commit else ""
        access.say(f"{repo.uri} is {commit[:12]}{was}: recorded in {lock}.")
    return Pulled(place(repo, commit), repo, commit, found, fetched, newer)


def _agree(repo: Repository, pin: RepositoryPin | None, expected: Mapping[str, str] | None) -> None:
    for name, sha256 in (expected or {}).items():
        if pin and pin.files.get(name, sha256) != sha256:
            raise FetchError(
                f"{repo.uri}: the lock file has another sha256 of {name} than the registry.",
                "Find out which of the two is right before you change either.",
            )


def _first(repo: Repository, lock: Path, access: Access) -> str:
    """The commit that ``repo`` leads to, where ``lock`` does not say."""
    if access.is_offline:
        raise Unavailable(
            f"{repo.uri} was never pulled under {lock}, and offline mode is on.", "Pull it once where there is network."
        )
    return Hub(access).look(repo).commit


def moved_on(repo: Repository, pin: RepositoryPin, access: Access) -> str | None:
    """The commit that ``repo`` leads to by now, said, where ``pin`` has another; None where nobody can tell."""
    if repo.commit is not None:
        return None
    if access.is_offline:
        access.say(f"Offline: using {repo.uri} as it was pulled, {pin.commit[:12]}.")
        return None
    try:
        now = Hub(access).look(repo).commit
    except (Unavailable, NotFound, Forbidden) as error:
        access.say(f"{error.message} Using {pin.commit[:12]}, as it was pulled.")
        return None
    if now == pin.commit:
        return None
    access.say(f"{repo.uri} has moved on to {now[:12]} since {pin.date}: keeping {pin.commit[:12]}. {UPDATE}")
    return now


# --- the cache ---------------------------------------------------------------------------------------------------


def home() -> Path:
    """Where pulled artifacts are."""
    return store.home() / "hub"


def place(repo: Repository, commit: str) -> Path:
    """Where the artifact of ``repo`` at ``commit`` is."""
    return home() / repo.id.replace("/", "--") / commit


def is_pulled(path: Path) -> bool:
    """Whether ``path`` is in the cache of pulled artifacts, whose files are what somebody else published."""
    return path.resolve().is_relative_to(home().resolve())


def cached(repo: Repository, commit: str, known: Mapping[str, str]) -> dict[str, str] | None:
    """The sha256 of each file of the artifact in the cache; None where it is not there, or not what it should be.

    Each file has to be what the listing beside the artifact says, and what ``known`` says of it. Links are not
    followed, and a file that belongs to artifacts and is not listed is one too many.
    """
    folder = place(repo, commit)
    listing = _listing(folder)
    if not set(NEEDED) <= listing.keys() or any(listing.get(name) != known[name] for name in known):
        return None
    if any(path.is_symlink() for path in (folder.parent, folder, *(folder / name for name in (LISTING, *listing)))):
        return None
    present = artifact.OWN_FILES.intersection(os.listdir(folder))
    whole = all(store.digest(folder / name) == sha256 for name, sha256 in listing.items())
    return listing if whole and present == listing.keys() else None


def _listing(folder: Path) -> dict[str, str]:
    """What :func:`_fetch` wrote down of the files in ``folder``, in the form of sha256sum."""
    try:
        lines = read_regular(folder / LISTING, MAX_TEXT_BYTES).decode("utf-8").splitlines()
    except (ZooError, UnicodeDecodeError):
        return {}
    pairs = [line.split("  ", 1) for line in lines]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and pair[1] in TAKEN}


def _fetch(repo: Repository, known: Mapping[str, str], access: Access) -> dict[str, str]:
    """Bring the artifact of ``repo``, which is at a commit, into the cache, all of it or nothing."""
    if access.is_offline:
        raise Unavailable(f"{repo.uri} is not in the cache, or damaged there, and offline mode is on.", "Go online.")
    snapshot = Hub(access).look(repo)
    if not set(NEEDED) <= snapshot.files.keys():
        raise NotAnArtifact(snapshot)
    assert repo.commit is not None
    files = {name: snapshot.files[name] for name in TAKEN if name in snapshot.files}
    if missing := sorted(known.keys() - files.keys()):
        raise FetchError(f"{repo.uri} has no {missing[0]}, and had one when it was recorded.", UPDATE)
    paths = {}
    for name, file in files.items():
        paths[name] = _file(repo, name, file, known.get(name), access)
        if name == artifact.CONFIG and not _is_artifact(paths[name]):
            raise NotAnArtifact(snapshot)
    hashes = {name: store.digest(path) for name, path in paths.items()}
    target = place(repo, repo.commit)
    _clear(target)
    with staged_directory(target, store.ANOTHER_CACHE, last=LISTING) as staging:
        with explained(target, store.ANOTHER_CACHE):
            for name, path in paths.items():
                shutil.copyfile(path, staging / name)
            listing = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
            (staging / LISTING).write_text(listing, encoding="utf-8")
        if any(store.digest(staging / name) != sha256 for name, sha256 in hashes.items()):
            raise FetchError(f"{repo.uri} changed while it was copied.", "Try again.")
        artifact.read(staging)
    return hashes


def _file(repo: Repository, name: str, file: RemoteFile, sha256: str | None, access: Access) -> Path:
    """One file, verified against the Hub's own description of it, and against ``sha256`` where that is known."""
    limit = limits.max_bytes() if name in LARGE else MAX_TEXT_BYTES
    if file.size > limit:
        raise FetchError(f"{repo.uri}: {name} has {file.size:,} bytes, more than {limit:,}.", "It is no artifact.")
    if sha256 and file.sha256 and sha256 != file.sha256:
        raise FetchError(f"{repo.uri}: {name} has sha256 {file.sha256} there, and was recorded with {sha256}.", CHANGED)
    uri = f"{repo.uri.partition('@')[0]}/{name}@{repo.revision}"
    known = sha256 or file.sha256
    for _ in range(2):
        path = fetch(
            uri,
            sha256=known,
            bytes=file.size,
            limit=limit,
            record=False,
            check=lambda path: None,  # the Hub's own description of the file is compared below
            access=replace(access, update_lock=known is None),  # without a hash the client's copy cannot be checked
        )
        if file.sha256 is not None or file.blob is None or _blob(path) == file.blob:
            return path
        if sha256:
            raise FetchError(f"{uri} is another file there than the one that was recorded with {sha256}.", CHANGED)
        # What the client calls the file by may be wrong, too; a copy that it has under that name would be in the way.
        path.unlink(missing_ok=True)
        if client_copy := client.kept(parse(uri)):
            client.forget(client_copy)
    raise FetchError(
        f"{uri} is not the file that the Hub describes: its bytes are others.",
        "Try again; if it stays so, do not use this endpoint.",
    )


def _blob(path: Path) -> str:
    """The hash by which git knows a file with these bytes."""
    data = read_regular(path, limits.max_bytes())
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _is_artifact(config: Path) -> bool:
    """Whether a ``config.json`` is one of ours; PyLO's repositories have one, too."""
    return b'"format_version"' in read_regular(config, MAX_TEXT_BYTES)


def _clear(target: Path) -> None:
    """Make way for the directory ``target``, whose lock the caller holds.

    Removed are links and files in its place, and what a process that was killed had begun to write for it.
    """
    with explained(target, store.ANOTHER_CACHE):
        store.real_folder(target.parent)
        if target.is_symlink() or target.is_file():
            target.unlink()
        sweep(target, alone=True)
