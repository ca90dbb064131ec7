"""Prepares and checks the files to publish. Sends nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pylo_zoo import __version__, limits, registry
from pylo_zoo import artifact as artifacts
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import UsageError, ZooError
from pylo_zoo.files import read_regular
from pylo_zoo.hub.api import RemoteFile
from pylo_zoo.hub.names import Repository
from pylo_zoo.leftovers import left_behind
from pylo_zoo.parity import replay
from pylo_zoo.publish import card, plot, secrets
from pylo_zoo.registry import Entry
from pylo_zoo.report import html
from pylo_zoo.report.reading import read_report
from pylo_zoo.report.records import SCHEMA_VERSION, Report

DERIVED = (artifacts.PAGE, artifacts.PLOT)
"""Renderings of ``parity.json``. Their bytes depend on library versions."""
PUBLISHED = (
    artifacts.WEIGHTS,
    artifacts.CONFIG,
    artifacts.PARITY,
    artifacts.VECTORS,
    artifacts.CARD,
    artifacts.PAGE,
    artifacts.PLOT,
)
"""The only files that are ever published. ``model.pt`` is not, because it is a pickle."""
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{1,63}", re.ASCII)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PublishPlan:
    """The files to publish, and facts about them.

    Attributes:
        repo: the target, without a revision.
        files: content by file name.
        artifact: the artifact in the files.
        report: its parity report, or None.
        entry: the registry entry that it was converted from, or None.
        license: of the weights.
        verified: whether the parity check passed.
        left_out: files in the directory that are not published: a pickle, the user's card, proofs of other weights.
    """

    repo: Repository
    files: Mapping[str, bytes]
    artifact: Artifact
    report: Report | None
    entry: Entry | None
    license: str
    verified: bool
    left_out: tuple[str, ...]

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 by file name."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}

    @property
    def digest(self) -> str:
        """One hash of all names and contents."""
        listing = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(self.hashes.items()))
        return hashlib.sha256(listing.encode()).hexdigest()

    def same(self, name: str, remote: RemoteFile | None) -> bool:
        """Whether ``remote`` describes the same content as the file ``name``."""
        data = self.files.get(name)
        if remote is None or data is None:
            return remote is None and data is None
        if remote.sha256 is not None:
            return remote.sha256 == hashlib.sha256(data).hexdigest()
        return remote.size == len(data) and remote.blob == blob(data)


def blob(data: bytes) -> str:
    """The hash that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def prepare(
    directory: str | Path,
    repo: Repository,
    *,
    license: str | None = None,
    allow_unverified: bool = False,
    token: str | None = None,
) -> PublishPlan:
    """Check the artifact at ``directory`` and prepare its files for ``repo``.

    Args:
        directory: the directory of the artifact.
        repo: the target.
        license: of the weights, as an SPDX identifier; by default the artifact's or the registry's.
        allow_unverified: publish without a passing parity report; the card then has a warning.
        token: the token in use, which no file must contain.

    Raises:
        ZooError: the directory contains a foreign file or a secret, the license is unknown, or parity did not pass for
            these weights.
    """
    directory = Path(directory)
    names = _expected_files(directory)
    before = _bytes(directory)
    _refuse_secrets(directory, before, token)  # first, because later errors may quote the artifact
    artifact = artifacts.read(directory)
    entry = find_entry(artifact)
    stated = _license(artifact, entry, license)
    artifact = replace(artifact, source=replace(artifact.source, license=stated))
    report = read_report(artifact.parity) if artifact.parity is not None else None
    verified = _verified(artifact, directory, report, allow_unverified)
    if not verified and report is not None and (report.status, report.fingerprint) != ("not_run", artifact.fingerprint):
        report, artifact = None, replace(artifact, parity=None)  # drop a report about other weights
    files = _files(artifact, before, report)
    about = card.About(
        repo_id=repo.id,
        license=stated,
        license_stated=entry is None or entry.license != stated,
        entry=entry,
        verified=verified,
        files={name: len(data) for name, data in files.items()},
    )
    timeless = replace(report, created="") if report is not None else None  # a new proof must not change the card
    files[artifacts.CARD] = card.render_card(artifact, timeless, about).encode()
    if _bytes(directory) != before:
        raise ZooError(f"{directory} changed while it was read.", "Run this again: nothing was sent.")
    ordered = {name: files[name] for name in PUBLISHED if name in files}
    _refuse_secrets(directory, ordered, token)
    own_card = read_regular(directory / artifacts.CARD, limits.max_bytes()) if artifacts.CARD in names else None
    replaced = own_card is not None and own_card != ordered[artifacts.CARD]
    left_out = tuple(name for name in names if name not in ordered or (replaced and name == artifacts.CARD))
    return PublishPlan(Repository(repo.id), ordered, artifact, report, entry, stated, verified, left_out)


def _expected_files(directory: Path) -> tuple[str, ...]:
    """The file names in ``directory``, which must all belong to an artifact."""
    if not directory.is_dir():
        raise artifacts.no_directory(directory)
    names = sorted(name for name in os.listdir(directory) if not left_behind(name))
    if foreign := [name for name in names if name not in artifacts.OWN_FILES]:
        raise ZooError(
            f"{directory} contains files that do not belong to an artifact: {', '.join(foreign[:4])}.",
            "Move them elsewhere: nothing was sent.",
        )
    if links := [name for name in names if (directory / name).is_symlink() or not (directory / name).is_file()]:
        raise ZooError(f"{directory / links[0]} is not a regular file.", "Put the file itself there: nothing was sent.")
    return tuple(names)


def _refuse_secrets(directory: Path, files: Mapping[str, bytes], token: str | None) -> None:
    if leaks := list(secrets.find_secrets(files, token)):
        raise ZooError(f"{directory}: {'; '.join(leaks)}.", "Remove it, and revoke it if anyone has seen it.")


def find_entry(artifact: Artifact) -> Entry | None:
    """The registry entry of the checkpoint that ``artifact`` was converted from, found by hash or address."""
    return next((entry for entry in registry.load_registry().values() if is_entry_of(entry, artifact)), None)


def is_entry_of(entry: Entry, artifact: Artifact) -> bool:
    """Whether ``artifact`` was converted from the checkpoint of ``entry``. Without a pin, the address decides."""
    pins = {source.sha256 for source in entry.sources if source.sha256 and source.format != "gin"}
    same = artifact.source.sha256 in pins if pins else artifact.source.uri == entry.weights.uri
    return same and entry.family == artifact.family


def _license(artifact: Artifact, entry: Entry | None, stated: str | None) -> str:
    if stated is not None and (not LICENSE.fullmatch(stated) or stated.lower() == UNKNOWN):
        raise UsageError(f"{stated!r} is not a license.", "Pass an SPDX identifier, such as MIT, or `other`.")
    known = (artifact.source.license if entry is None else entry.license).strip() or UNKNOWN
    is_known = known.lower() != UNKNOWN
    if stated is None and not is_known:
        raise ZooError(
            "The license of these weights is unknown.",
            "Ask their authors, then state it with --license, such as --license MIT.",
        )
    if stated is not None and is_known and stated.lower() != known.lower():
        raise ZooError(f"These weights are under {known}, but --license says {stated}.", "Leave --license out.")
    return known if is_known or stated is None else stated


def _verified(artifact: Artifact, directory: Path, report: Report | None, allow_unverified: bool) -> bool:
    """Whether the artifact has a passing parity report that is about it, and that the installed code reproduces.

    Raises:
        ZooError: parity failed, or it is not verified and ``allow_unverified`` is false.
    """
    fault = _fault(artifact, directory, report)
    if fault is None:
        return True
    if report is not None and report.status == "failed":
        raise ZooError(f"{directory}: {fault}.", "Convert it again: an artifact known to be wrong is never published.")
    if not allow_unverified:
        raise ZooError(
            f"{directory}: {fault}.",
            f"Run `pylo-zoo verify {directory}`, or publish with --allow-unverified and a warning on the card.",
        )
    return False


def _fault(artifact: Artifact, directory: Path, report: Report | None) -> str | None:
    """Why the parity of ``artifact`` is not verified, or None."""
    if report is None or artifact.parity is None:
        return "it has no parity report"
    if report.status != "passed":
        what = {"failed": "its parity check failed", "not_run": f"its parity was not checked ({report.reason})"}
        return what[report.status]
    if report.fingerprint != artifact.fingerprint:
        return "it has changed since its parity check"
    if change := artifact.changed_default():
        return f"its default {change} since its parity was checked"
    if other := artifact.misdescribed():
        return f"its parity report has the {other}"
    if artifact.parity.get("schema_version") != SCHEMA_VERSION or report.environment.get("pylo-zoo") != __version__:
        return f"its parity was checked by another version of pylo-zoo than the installed {__version__}"
    vectors = directory / artifacts.VECTORS
    if (
        not vectors.is_file()
        or hashlib.sha256(read_regular(vectors, limits.max_bytes())).hexdigest() != report.vectors_sha256
    ):
        return f"its {artifacts.VECTORS} is missing, or does not belong to its parity report"
    if replay(artifact).passed:
        return None
    return "the installed code does not reproduce its parity report"


def _bytes(directory: Path) -> dict[str, bytes]:
    """The current content of the artifact's source files."""
    names = (artifacts.WEIGHTS, artifacts.CONFIG, artifacts.PARITY, artifacts.VECTORS)
    return {name: read_regular(directory / name, limits.max_bytes()) for name in names if (directory / name).is_file()}


def _files(artifact: Artifact, present: Mapping[str, bytes], report: Report | None) -> dict[str, bytes]:
    """All files to publish except the card. ``present`` is the content of the directory."""
    files = {name: present[name] for name in (artifacts.WEIGHTS, *((artifacts.PARITY,) if report else ()))}
    vectors = present.get(artifacts.VECTORS)
    if report and vectors is not None and hashlib.sha256(vectors).hexdigest() == report.vectors_sha256:
        files[artifacts.VECTORS] = vectors
    config = json.dumps(artifact.config(), indent=2, ensure_ascii=False, allow_nan=False)
    files[artifacts.CONFIG] = (config + "\n").encode()
    if report is not None and report.checks:
        files[artifacts.PAGE] = html.render_html([report]).encode()
        files[artifacts.PLOT] = plot.parity_png(report)
    return files


def without_time(parity: bytes) -> Any:
    """The content of ``parity.json`` without its creation time; ``parity`` itself if it is not JSON."""
    try:
        return {**json.loads(parity), "created": None}
    except (ValueError, TypeError):
        return parity
