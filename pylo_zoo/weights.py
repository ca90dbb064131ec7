"""What ``weights=`` means, the same everywhere: an artifact, its directory, a registry name, or a repository."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pylo_zoo import artifact, formats, hub, limits, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert, matched_entry
from pylo_zoo.converters import candidates
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.fetch import Access, Forbidden, NotFound, Unavailable, is_uri, store
from pylo_zoo.files import explained, staged_directory
from pylo_zoo.hub import NotAnArtifact, Repository, checkpoint
from pylo_zoo.hub.checkpoint import Checkpoint
from pylo_zoo.registry import Entry, Published
from pylo_zoo.samples.random_weights import RANDOM, random_artifact

WHAT = "Give a name of `pylo-zoo list`, an artifact's directory, hf://ORG/NAME@REVISION, random:FAMILY or an artifact."


def load(
    weights: str | Path | Artifact,
    *,
    proven: bool = True,
    access: Access | None = None,
    max_bytes: int | None = None,
) -> Artifact:
    """Find an artifact.

    Args:
        weights: an artifact, returned as it is; an artifact's directory; a registry name; or ``hf://ORG/NAME`` with
            ``@`` and a commit, branch or tag, or without. What the cache does not hold is fetched, with a progress bar
            where stderr is a terminal. A repository that holds a checkpoint of JAX or of PyLO is converted at once.
            ``random:FAMILY`` is random weights of a family, to try its code: they do not train.
        proven: refuse an artifact whose parity report failed, or speaks of other weights than are there now.
        access: how to fetch.
        max_bytes: the limit of :mod:`pylo_zoo.limits`, for its files.

    Raises:
        ZooError: it does not exist, is damaged, or its files are unavailable.
    """
    if isinstance(weights, Artifact):
        return weights
    try:
        with limits.allow(max_bytes):
            return _find(weights, proven, access or Access(), look=False)[0]
    except (Unavailable, NotFound, Forbidden) as error:
        if str(weights) not in registry.load_registry():
            raise
        hint = (
            f"Run `pylo-zoo convert {weights} --out DIR` where there is network, copy DIR here, and give weights='DIR'."
        )
        raise type(error)(f"The weights {str(weights)!r} are not here: {error.message}", hint) from None


@dataclass(frozen=True)
class Here:
    """An artifact on this machine's disk.

    Attributes:
        artifact: what it is.
        directory: where.
        commit: of the repository that it was pulled from, or None where it was converted here.
        newer: what the branch or tag leads to by now, where it is another commit.
        files: sha256 by name.
        fetched: whether anything was downloaded for it; None where that is not known.
    """

    artifact: Artifact
    directory: Path
    commit: str | None
    newer: str | None
    files: Mapping[str, str]
    fetched: bool | None


def pull(
    name: str,
    *,
    revision: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    access: Access | None = None,
) -> Here:
    """Have the artifact that ``name`` is on the disk, complete and verified.

    Args:
        name: a registry name, or a repository as ``ORG/NAME`` or ``hf://ORG/NAME``, with a revision or without.
        revision: of the repository: a commit, branch or tag.
        out: a directory to copy it to; by default it stays in the cache, and is used from there.
        force: replace an artifact at ``out``.
        access: how to fetch.

    Raises:
        ZooError: as :func:`load`, or ``out`` is in the way.
    """
    access = access or Access()
    if name.startswith(RANDOM):
        raise ZooError(f"{name} is random weights, which are not stored anywhere.", "Use the name itself for weights.")
    if out is not None:
        artifact.check_output(Path(out), force=force)
    if revision is None and name.count("/") == 1 and Path(name).is_dir():
        access.say(f"{name} is a directory here, which is what is meant; on the Hub it would be hf://{name}.")
    if revision is not None or ("/" in name and not Path(name).is_dir()):
        if name in registry.load_registry():
            raise ZooError(f"{name} is a registry entry, which says its revision itself.", "Leave --revision out.")
        name = Repository.parse(name, revision).uri
    made, pulled = _find(name, True, access, look=True)
    source = pulled.directory if pulled else made.path or _keep(made)
    hashes = pulled.files if pulled else _hashes(source)
    directory = source if out is None else _copy(source, hashes, Path(out))
    if pulled is None:
        return Here(made, directory, None, None, hashes, None)
    return Here(made, directory, pulled.commit, pulled.newer, hashes, pulled.fetched)


def _find(weights: str | Path, proven: bool, access: Access, *, look: bool) -> tuple[Artifact, hub.Pulled | None]:
    """The artifact, and the directory and commit of one that lies on the Hub."""
    if not isinstance(weights, (str, Path)) or not str(weights).strip():
        raise ZooError(f"weights is {quoted(weights)}.", WHAT)
    if isinstance(weights, Path) or Path(weights).is_dir():
        return _read(Path(weights), proven), None
    if weights.startswith(RANDOM):
        return random_artifact(weights.removeprefix(RANDOM)), None
    if weights.startswith("hf://"):
        return _from_hub(weights, proven, access, look=look)
    if is_uri(weights):
        raise ZooError(
            f"weights is {weights[:200]!r}, an address that it does not take.",
            "A file there converts with `pylo-zoo convert FAMILY --source ADDRESS`; a repository is hf://ORG/NAME.",
        )
    if "/" in weights:
        raise ZooError(f"{weights} is no directory.", f"{WHAT} The Hub's {weights} would be hf://{weights}.")
    entry = registry.get(weights)
    if entry.artifact is not None:
        return _pulled(Repository.parse(entry.artifact.uri), proven, access, look=look, pinned=entry.artifact)
    return convert(entry.name, access=access), None


def _read(directory: Path, proven: bool, called: str | None = None) -> Artifact:
    made = artifact.read(directory)
    called = called or str(directory)
    report = made.parity or {}
    if proven and report.get("status") == "failed":
        raise ZooError(f"{called} failed its parity check.", "Convert the checkpoint again.")
    if proven and report.get("status") == "passed" and report.get("fingerprint") != made.fingerprint:
        raise ZooError(
            f"{called} has changed since its parity was checked.",
            f"`pylo-zoo verify {called}` checks it as it is now; converting again restores it.",
        )
    if proven and report.get("status") == "passed" and (change := made.changed_default()):
        raise ZooError(
            f"{called}: the default {change} since its parity was checked.",
            f"`pylo-zoo verify {called}` checks and records it as it is now.",
        )
    if proven and report.get("status") == "passed" and (other := made.misdescribed()):
        raise ZooError(
            f"{called}: its parity report speaks of the {other}.",
            "Somebody has changed what it says of its origin: convert the checkpoint again, or ask its publisher.",
        )
    return made


# --- the Hub -----------------------------------------------------------------------------------------------------


def _from_hub(uri: str, proven: bool, access: Access, *, look: bool) -> tuple[Artifact, hub.Pulled | None]:
    if not hub.is_repository(uri):
        raise ZooError(
            f"{uri} is no repository.",
            "A file of one converts with `pylo-zoo convert FAMILY --source hf://ORG/REPO/FILE --out DIR`; an artifact "
            "is hf://ORG/NAME@REVISION.",
        )
    repo = Repository.parse(uri)
    if entry := _of_registry(repo):
        access.say(f"{uri} is the registry's {entry.name}, and is converted here.")
        return convert(entry.name, access=access), None
    if found := checkpoint.recorded(repo, access, _readable, look=look):
        return _converted(found, access), None
    try:
        return _pulled(repo, proven, access, look=look)
    except NotAnArtifact as error:
        return _converted(checkpoint.find_checkpoint(repo, error.snapshot, access, _readable), access), None


def _of_registry(repo: Repository) -> Entry | None:
    """The one entry whose checkpoint lies in ``repo``, for which nobody named a revision of it."""
    if repo.revision is not None:
        return None
    entries = registry.load_registry().values()
    found = [entry for entry in entries if any(_lies_in(repo, source.uri) for source in entry.sources)]
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found)
        raise ZooError(f"{repo.uri} holds several checkpoints: {names}.", "Give one of these names.")
    return found[0] if found and found[0].artifact is None else None


def _lies_in(repo: Repository, uri: str) -> bool:
    return uri.startswith(f"hf://{repo.id}/") or uri.startswith(f"hf://{repo.id}@")


def _pulled(
    repo: Repository, proven: bool, access: Access, *, look: bool, pinned: Published | None = None
) -> tuple[Artifact, hub.Pulled]:
    found = hub.pull(repo, expected=pinned.sha256 if pinned else None, look=look, access=access)
    made = _read(found.directory, proven, repo.uri)
    return _judged(made, repo.uri, access) if proven else made, found


def _judged(made: Artifact, uri: str, access: Access) -> Artifact:
    """``made``, whose proof is a stranger's word: one that contradicts itself is refused.

    One of another version, which cannot be read, counts for nothing.
    """
    from pylo_zoo.parity.reading import read_report
    from pylo_zoo.parity.report import READABLE_VERSIONS

    if made.parity is not None and made.parity.get("schema_version") not in READABLE_VERSIONS:
        access.say(f"The proof of {uri} was written by another version of pylo-zoo, and is not read.")
        return replace(made, parity=None)
    if made.parity is not None:
        read_report(made.parity)
    return made


def _readable(found: Checkpoint) -> formats.Source:
    """The checkpoint's content.

    Raises:
        ZooError: it does not read as a checkpoint, or its format is one whose usual reader runs code.
    """
    if kind := formats.code_format(found.path):  # before any of it is decoded
        raise ZooError(
            f"{found.uri} is a {kind} file, and those are not opened from a repository unasked.",
            f"If you trust it: `pylo-zoo convert FAMILY --source {found.uri}`; nothing in it is run even then.",
        )
    return formats.read(found.path)


def _converted(found: Checkpoint, access: Access) -> Artifact:
    """The artifact of a checkpoint that the Hub holds, of the family that it fits."""
    read = _readable(found)
    entry = matched_entry(read.sha256)
    fits = [entry.family] if entry else candidates(read.leaves, read.naming)
    if len(fits) != 1:
        why = f"fits {', '.join(fits)} alike" if fits else "fits no family"
        raise ZooError(
            f"{found.uri} {why}.",
            f"Say which: `pylo-zoo convert FAMILY --source {found.uri}`; `pylo-zoo inspect {found.path}` shows it.",
        )
    made = convert(fits[0], source=found.path, access=access)
    if entry is None:
        made = replace(made, source=replace(made.source, uri=found.uri))
        access.say(
            f"{found.uri} was converted as {made.family} with that family's released behaviour, "
            f"{dict(made.config()['behavior'])}; its parity was not checked."
        )
    return made


# --- on the disk -------------------------------------------------------------------------------------------------


def _keep(made: Artifact) -> Path:
    """A directory in the cache with ``made``, which was converted in memory; one that is there keeps its proof."""
    digest = hashlib.sha256(json.dumps(made.config(), sort_keys=True).encode() + made.fingerprint.encode()).hexdigest()
    directory = store.home() / "converted" / f"{made.name}-{digest[:16]}"
    if not _holds(directory, made):  # asked first without a lock, which a read-only cache does not have
        with store.locked(f"converted {digest}"):
            if not _holds(directory, made):
                artifact.write(made, directory, force=True)
    return directory


def _holds(directory: Path, made: Artifact) -> bool:
    try:
        there = artifact.read(directory)
    except ZooError:  # it is damaged, or not there
        return False
    return there.fingerprint == made.fingerprint and there.config() == made.config()


def _hashes(directory: Path) -> dict[str, str]:
    """The sha256 of each file of the artifact in ``directory``."""
    return {name: store.digest(directory / name) for name in sorted(artifact.OWN_FILES & {*os.listdir(directory)})}


def _copy(source: Path, hashes: Mapping[str, str], target: Path) -> Path:
    """Copy the files to ``target``, all of them and as they were hashed, or none."""
    with staged_directory(target, last=artifact.CONFIG) as staging, explained(target):
        for name, sha256 in hashes.items():
            shutil.copyfile(source / name, staging / name)
            if store.digest(staging / name) != sha256:
                raise ZooError(f"{source} changed while it was being copied.", "Try again.")
    return target
