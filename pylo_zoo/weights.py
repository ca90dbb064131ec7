"""Resolves ``weights=``: an artifact, an artifact's directory, a registry name, or a Hub repository."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pylo_zoo import artifact, formats, hub, limits, registry
from pylo_zoo.artifact import Artifact, no_directory
from pylo_zoo.convert import convert, matched_entry
from pylo_zoo.converters import candidates
from pylo_zoo.errors import UsageError, ZooError, quoted
from pylo_zoo.fetch import Access, Forbidden, NotFound, Unavailable, is_uri, store
from pylo_zoo.files import is_local, staged_directory, translate_os_errors
from pylo_zoo.hub import NotAnArtifact, Repository, checkpoint
from pylo_zoo.hub.checkpoint import Checkpoint
from pylo_zoo.hub.names import is_repository_name
from pylo_zoo.registry import Entry, Published
from pylo_zoo.samples.random_weights import RANDOM, random_artifact

USE = "weights='DIR'"
"""How a user passes an artifact's directory; part of a hint, which the command line replaces by its option."""
ACCEPTED = "Use a name from `pylo-zoo list`, an artifact, its directory, hf://ORG/NAME@REVISION or random:FAMILY."


def load(
    weights: str | Path | Artifact,
    *,
    proven: bool = True,
    access: Access | None = None,
    max_bytes: int | None = None,
) -> Artifact:
    """Load an artifact.

    Args:
        weights: an artifact, which is returned unchanged; an artifact's directory; a registry name; or
            ``hf://ORG/NAME``, optionally with ``@`` and a commit, branch or tag. Files that are not cached are
            downloaded, with a progress bar if stderr is a terminal. A repository with a JAX or PyLO checkpoint is
            converted. ``random:FAMILY`` creates random weights to try a family's code; they do not train.
        proven: reject an artifact whose parity report failed or belongs to other weights.
        access: download options.
        max_bytes: the size limit for its files (:mod:`pylo_zoo.limits`).

    Raises:
        ZooError: the artifact does not exist or is damaged, or its files are unavailable.
    """
    if isinstance(weights, Artifact):
        return weights
    try:
        with limits.allow(max_bytes):
            return _find(weights, proven, access or Access(), check_for_updates=False)[0]
    except (Unavailable, NotFound, Forbidden) as error:
        if str(weights) not in registry.load_registry():
            raise
        hint = f"Run `pylo-zoo convert {weights} --out DIR` on an online machine, copy DIR here and use {USE}."
        raise type(error)(f"The weights {str(weights)!r} are not cached: {error.message}", hint) from None


@dataclass(frozen=True)
class LocalArtifact:
    """An artifact on the local disk.

    Attributes:
        artifact: the artifact.
        directory: its directory.
        commit: the commit of the Hub repository, or None if the artifact was converted locally.
        newer: the commit that the branch or tag refers to now, if it is a different one.
        files: file name to sha256.
        fetched: whether any file was downloaded; None if unknown.
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
) -> LocalArtifact:
    """Store the artifact ``name`` on the disk, complete and verified.

    Args:
        name: a registry name, or a repository as ``ORG/NAME`` or ``hf://ORG/NAME``, optionally with ``@REVISION``.
        revision: commit, branch or tag of the repository.
        out: a directory to copy the artifact to; by default it stays in the cache and is used from there.
        force: replace an artifact at ``out``.
        access: download options.

    Raises:
        ZooError: see :func:`load`; or ``out`` exists and cannot be replaced.
    """
    access = access or Access()
    if name.startswith(RANDOM):
        raise UsageError(f"{name} stands for random weights, which are not stored.", f"Use weights='{name}' directly.")
    if out is not None:
        artifact.check_output(Path(out), force=force)
    if revision is None and name.count("/") == 1 and Path(name).is_dir():
        access.notify(f"Using the local directory {name}; for the Hub repository, write hf://{name}.")
    uri = name
    if revision is not None or ("/" in name and not Path(name).is_dir()):
        if name in registry.load_registry():
            raise UsageError(f"{name} is a registry entry, whose revision is fixed.", "Remove the revision.")
        if not is_uri(name) and is_local(name):
            raise no_artifact(name)
        uri = Repository.parse(name, revision).uri
    try:
        loaded, pulled = _find(uri, True, access, check_for_updates=True)
    except (NotFound, Forbidden, Unavailable) as error:
        if uri == name or is_uri(name):
            raise
        message = f"{name} is not a local directory, so it was taken for a repository on the Hub: {error.message}"
        raise type(error)(message, error.hint) from None
    source = pulled.directory if pulled else loaded.path or _store_in_cache(loaded)
    hashes = pulled.files if pulled else _hashes(source)
    directory = source if out is None else _copy(source, hashes, Path(out))
    if pulled is None:
        return LocalArtifact(loaded, directory, None, None, hashes, None)
    return LocalArtifact(loaded, directory, pulled.commit, pulled.newer, hashes, pulled.fetched)


def known_family(weights: str | Path | Artifact) -> str | None:
    """The family that a registry entry states for ``weights``, before anything is fetched; None for other weights."""
    if not isinstance(weights, str) or Path(weights).is_dir():
        return None
    entry = registry.load_registry().get(weights)
    return None if entry is None else entry.family


def _find(
    weights: str | Path, proven: bool, access: Access, *, check_for_updates: bool
) -> tuple[Artifact, hub.Pulled | None]:
    """The artifact and, if it is a Hub repository, its directory and commit."""
    if not isinstance(weights, (str, Path)) or not str(weights).strip():
        raise UsageError(f"weights is {quoted(weights)}.", ACCEPTED)
    if isinstance(weights, Path) or Path(weights).is_dir():
        return _read(Path(weights), proven), None
    if weights.startswith(RANDOM):
        return random_artifact(weights.removeprefix(RANDOM)), None
    if weights.startswith("hf://"):
        return _from_hub(weights, proven, access, check_for_updates=check_for_updates)
    if is_uri(weights):
        raise UsageError(
            f"weights is {weights[:200]!r}, which is not an artifact's address.",
            "Convert a file with `pylo-zoo convert FAMILY --source ADDRESS`, or use hf://ORG/NAME for a repository.",
        )
    if "/" in weights or (weights not in registry.load_registry() and is_local(weights)):
        raise no_artifact(weights)
    entry = registry.get(weights)
    if entry.artifact is not None:
        return _pull_artifact(
            Repository.parse(entry.artifact.uri),
            proven,
            access,
            check_for_updates=check_for_updates,
            pinned=entry.artifact,
        )
    return convert(entry.name, access=access), None


def no_artifact(name: str) -> ZooError:
    """The error for a ``name`` that is a path and not an artifact's directory."""
    error = no_directory(Path(name))
    if is_local(name) or not is_repository_name(name):
        return error
    return ZooError(error.message, f"Check the path; the repository on the Hub is hf://{name}.")


def _read(directory: Path, proven: bool, label: str | None = None) -> Artifact:
    loaded = artifact.read(directory)
    label = label or str(directory)
    report = loaded.parity or {}
    if proven and report.get("status") == "failed":
        raise ZooError(f"{label} failed its parity check.", "Convert the checkpoint again.")
    if proven and report.get("status") == "passed" and report.get("fingerprint") != loaded.fingerprint:
        raise ZooError(
            f"{label} has changed since its parity check.",
            f"Check it again with `pylo-zoo verify {label}`, or convert the checkpoint again.",
        )
    if proven and report.get("status") == "passed" and (change := loaded.changed_default()):
        raise ZooError(
            f"{label} has changed since its parity check: the default {change}.",
            f"Check it again with `pylo-zoo verify {label}`.",
        )
    if proven and report.get("status") == "passed" and (mismatch := loaded.misdescribed()):
        raise ZooError(
            f"{label}: its parity report belongs to the {mismatch}.",
            "Convert the checkpoint again, or ask the publisher.",
        )
    return loaded


# --- the Hub -----------------------------------------------------------------------------------------------------


def _from_hub(uri: str, proven: bool, access: Access, *, check_for_updates: bool) -> tuple[Artifact, hub.Pulled | None]:
    if not hub.is_repository(uri):
        raise ZooError(
            f"{uri} is not a repository (hf://ORG/NAME@REVISION).",
            "Convert a file with `pylo-zoo convert FAMILY --source hf://ORG/REPO/FILE --out DIR`.",
        )
    repo = Repository.parse(uri)
    if entry := _registry_entry_of(repo):
        access.notify(f"{uri} is the registry entry {entry.name}; converting it.")
        return convert(entry.name, access=access), None
    if pinned := checkpoint.recorded(repo, access, _read_checkpoint, check_for_updates=check_for_updates):
        return _convert_checkpoint(pinned, access), None
    try:
        return _pull_artifact(repo, proven, access, check_for_updates=check_for_updates)
    except NotAnArtifact as error:
        file = checkpoint.find_checkpoint(repo, error.snapshot, access, _read_checkpoint)
        return _convert_checkpoint(file, access), None


def _registry_entry_of(repo: Repository) -> Entry | None:
    """The registry entry whose checkpoint is in ``repo``; None if ``repo`` names a revision."""
    if repo.revision is not None:
        return None
    entries = registry.load_registry().values()
    matches = [entry for entry in entries if any(_is_in(repo, source.uri) for source in entry.sources)]
    if len(matches) > 1:
        names = ", ".join(entry.name for entry in matches)
        raise ZooError(f"{repo.uri} contains several checkpoints: {names}.", "Use one of these names.")
    return matches[0] if matches and matches[0].artifact is None else None


def _is_in(repo: Repository, uri: str) -> bool:
    return uri.startswith(f"hf://{repo.id}/") or uri.startswith(f"hf://{repo.id}@")


def _pull_artifact(
    repo: Repository, proven: bool, access: Access, *, check_for_updates: bool, pinned: Published | None = None
) -> tuple[Artifact, hub.Pulled]:
    pulled = hub.pull(
        repo, expected=pinned.sha256 if pinned else None, check_for_updates=check_for_updates, access=access
    )
    loaded = _read(pulled.directory, proven, repo.uri)
    return _check_report(loaded, repo.uri, access) if proven else loaded, pulled


def _check_report(loaded: Artifact, uri: str, access: Access) -> Artifact:
    """Validate the untrusted parity report of ``loaded``. A report of an unknown schema version is dropped."""
    from pylo_zoo.report.reading import read_report
    from pylo_zoo.report.records import READABLE_VERSIONS

    if loaded.parity is not None and loaded.parity.get("schema_version") not in READABLE_VERSIONS:
        access.notify(f"Ignoring the parity report of {uri}: another version of pylo-zoo wrote it.")
        return replace(loaded, parity=None)
    if loaded.parity is not None:
        read_report(loaded.parity)
    return loaded


def _read_checkpoint(file: Checkpoint) -> formats.Source:
    """Read a checkpoint from the Hub.

    Raises:
        ZooError: it is not a checkpoint, or its format is one whose usual reader runs code.
    """
    if kind := formats.code_format(file.path):  # before anything is decoded
        raise ZooError(
            f"{file.uri} is a {kind} file, which pylo-zoo does not open unless you name it.",
            f"If you trust it, run `pylo-zoo convert FAMILY --source {file.uri}`; this never runs its code.",
        )
    return formats.read(file.path)


def _convert_checkpoint(file: Checkpoint, access: Access) -> Artifact:
    """Convert a checkpoint from the Hub as the one family that it fits."""
    source = _read_checkpoint(file)
    entry = matched_entry(source.sha256)
    fits = [entry.family] if entry else candidates(source.leaves, source.naming)
    if len(fits) != 1:
        families = f"several families: {', '.join(fits)}" if fits else "no family"
        raise ZooError(
            f"{file.uri} fits {families}.",
            f"Convert it with `pylo-zoo convert FAMILY --source {file.uri}`; `pylo-zoo inspect {file.path}` shows it.",
        )
    converted = convert(fits[0], source=file.path, access=access)
    if entry is None:
        converted = replace(converted, source=replace(converted.source, uri=file.uri))
        access.notify(
            f"Converted {file.uri} as {converted.family} with the family's released behavior, "
            f"{dict(converted.config()['behavior'])}; its parity was not checked."
        )
    return converted


# --- on the disk -------------------------------------------------------------------------------------------------


def _store_in_cache(converted: Artifact) -> Path:
    """Write ``converted`` to the cache. An equal artifact there stays, with its parity report."""
    content = json.dumps(converted.config(), sort_keys=True) + converted.fingerprint
    digest = hashlib.sha256(content.encode()).hexdigest()
    directory = store.home() / "converted" / f"{converted.name}-{digest[:16]}"
    if not _contains(directory, converted):  # checked first without a lock: a read-only cache has no locks
        with store.locked(f"converted {digest}"):
            if not _contains(directory, converted):
                artifact.write(converted, directory, force=True)
    return directory


def _contains(directory: Path, converted: Artifact) -> bool:
    try:
        cached = artifact.read(directory)
    except ZooError:  # damaged or missing
        return False
    return cached.fingerprint == converted.fingerprint and cached.config() == converted.config()


def _hashes(directory: Path) -> dict[str, str]:
    """File name to sha256 of the artifact in ``directory``."""
    return {name: store.digest(directory / name) for name in sorted(artifact.OWN_FILES & {*os.listdir(directory)})}


def _copy(source: Path, hashes: Mapping[str, str], target: Path) -> Path:
    """Copy the files in ``hashes`` to ``target``. If any has changed, nothing is copied."""
    with staged_directory(target, last=artifact.CONFIG) as staging, translate_os_errors(target):
        for name, sha256 in hashes.items():
            shutil.copyfile(source / name, staging / name)
            if store.digest(staging / name) != sha256:
                raise ZooError(f"{source} changed while it was being copied.", "Try again.")
    return target
