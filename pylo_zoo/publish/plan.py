"""What would be published: the files, checked; nothing is sent from here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pylo_zoo import __version__, artifact, limits, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.files import left_behind, read_regular
from pylo_zoo.hub.api import RemoteFile
from pylo_zoo.hub.names import Repository
from pylo_zoo.parity import html, replay
from pylo_zoo.parity.reading import read_report
from pylo_zoo.parity.report import SCHEMA_VERSION, Report
from pylo_zoo.publish import card, plot, secrets
from pylo_zoo.registry import Entry

DERIVED = (artifact.PAGE, artifact.PLOT)
"""Pictures of ``parity.json``, whose bytes depend on the libraries that draw them."""
PUBLISHED = (
    artifact.WEIGHTS,
    artifact.CONFIG,
    artifact.PARITY,
    artifact.VECTORS,
    artifact.CARD,
    artifact.PAGE,
    artifact.PLOT,
)
"""All that is ever published; ``model.pt``, a pickle, is not."""
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{1,63}", re.ASCII)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PublishPlan:
    """What goes to the Hub.

    Attributes:
        repo: where to; without a revision.
        files: content by name.
        artifact: what they hold.
        report: its parity, or None where it has none.
        entry: the registry entry that it was converted from, or None.
        license: of the weights.
        verified: whether parity passed.
        left_out: files of the directory that stay here: a pickle, a card that the user wrote, proofs of something else.
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
        """sha256 by name."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}

    @property
    def digest(self) -> str:
        """One hash of everything."""
        listing = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(self.hashes.items()))
        return hashlib.sha256(listing.encode()).hexdigest()

    def same(self, name: str, remote: RemoteFile | None) -> bool:
        """Whether ``remote`` is the file ``name``, as far as the Hub's description of it says."""
        data = self.files.get(name)
        if remote is None or data is None:
            return remote is None and data is None
        if remote.sha256 is not None:
            return remote.sha256 == hashlib.sha256(data).hexdigest()
        return remote.size == len(data) and remote.blob == blob(data)


def blob(data: bytes) -> str:
    """The hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def prepare(
    directory: str | Path,
    repo: Repository,
    *,
    license: str | None = None,
    allow_unverified: bool = False,
    token: str | None = None,
) -> PublishPlan:
    """Check the artifact at ``directory`` and draw up what goes to ``repo``.

    Args:
        directory: an artifact's.
        repo: where it goes.
        license: of the weights, as an SPDX identifier; by default what the artifact says.
        allow_unverified: publish without a passing parity report, and say so on the card.
        token: the one in use; no file may hold it.

    Raises:
        ZooError: the directory holds what no artifact does, or a secret; the licence is unknown; parity did not pass,
            or speaks of something else than is there.
    """
    directory = Path(directory)
    names = _expected_files(directory)
    before = _bytes(directory)
    _refuse_secrets(directory, before, token)  # first, since what is said about an artifact may repeat words of it
    made = artifact.read(directory)
    entry = entry_of(made)
    stated = _license(made, entry, license)
    made = replace(made, source=replace(made.source, license=stated))
    report = read_report(made.parity) if made.parity is not None else None
    verified = _verified(made, directory, report, allow_unverified)
    if not verified and report is not None and (report.status, report.fingerprint) != ("not_run", made.fingerprint):
        report, made = None, replace(made, parity=None)  # a proof of something else is none
    files = _files(made, before, report)
    about = card.About(
        repo_id=repo.id,
        license=stated,
        license_stated=entry is None or entry.license != stated,
        entry=entry,
        verified=verified,
        files={name: len(data) for name, data in files.items()},
    )
    timeless = replace(report, created="") if report is not None else None  # or each proof would make another card
    files[artifact.CARD] = card.render_card(made, timeless, about).encode()
    if _bytes(directory) != before:
        raise ZooError(f"{directory} was changed while it was looked at.", "Nothing was sent. Run this again.")
    ordered = {name: files[name] for name in PUBLISHED if name in files}
    _refuse_secrets(directory, ordered, token)
    replaced = (
        artifact.CARD in names and read_regular(directory / artifact.CARD, limits.max_bytes()) != ordered[artifact.CARD]
    )
    left_out = tuple(name for name in names if name not in ordered or (replaced and name == artifact.CARD))
    return PublishPlan(Repository(repo.id), ordered, made, report, entry, stated, verified, left_out)


def _expected_files(directory: Path) -> tuple[str, ...]:
    """The names of what is in an artifact's directory; what has no business there is refused."""
    if not directory.is_dir():
        raise ZooError(f"{directory} is no directory.", "Give an artifact's; `pylo-zoo convert` makes one.")
    names = sorted(name for name in os.listdir(directory) if not left_behind(name))
    if foreign := [name for name in names if name not in artifact.OWN_FILES]:
        raise ZooError(
            f"{directory} holds what no artifact does: {', '.join(foreign[:4])}.",
            "Nothing was sent. Move it elsewhere, so that it is clear what is published.",
        )
    if links := [name for name in names if (directory / name).is_symlink() or not (directory / name).is_file()]:
        raise ZooError(f"{directory / links[0]} is no regular file.", "Nothing was sent. Put the file itself there.")
    return tuple(names)


def _refuse_secrets(directory: Path, files: Mapping[str, bytes], token: str | None) -> None:
    if found := list(secrets.find_secrets(files, token)):
        raise ZooError(f"{directory}: {'; '.join(found)}.", "Remove it there, and revoke it if anybody has seen it.")


def entry_of(made: Artifact) -> Entry | None:
    """The registry entry of the checkpoint that ``made`` was converted from: by hash or address, not by name."""
    return next((entry for entry in registry.load_registry().values() if is_of(entry, made)), None)


def is_of(entry: Entry, made: Artifact) -> bool:
    """Whether ``entry`` has the checkpoint that ``made`` was converted from; its address counts where it has no pin."""
    pins = {source.sha256 for source in entry.sources if source.sha256 and source.format != "gin"}
    same = made.source.sha256 in pins if pins else made.source.uri == entry.weights.uri
    return same and entry.family == made.family


def _license(made: Artifact, entry: Entry | None, stated: str | None) -> str:
    if stated is not None and (not LICENSE.fullmatch(stated) or stated.lower() == UNKNOWN):
        raise ZooError(f"{stated!r} is no licence.", "Give an SPDX identifier, such as MIT or Apache-2.0, or `other`.")
    known = (made.source.license if entry is None else entry.license).strip() or UNKNOWN
    said = known.lower() != UNKNOWN
    if stated is None and not said:
        raise ZooError(
            "Nobody has said under which licence these weights are, so that nobody may assume one.",
            "Ask the authors, and state it with --license, such as --license MIT.",
        )
    if stated is not None and said and stated.lower() != known.lower():
        raise ZooError(f"These weights are under {known}, and --license says {stated}.", "Leave --license out.")
    return known if said or stated is None else stated


def _verified(made: Artifact, directory: Path, report: Report | None, allow_unverified: bool) -> bool:
    """Whether a parity report that passed speaks of just this artifact, and the installed code still agrees with it."""
    fault = _fault(made, directory, report)
    if fault is None:
        return True
    if report is not None and report.status == "failed":
        raise ZooError(f"{directory}: {fault}.", "What is known to be wrong is not published, whatever is allowed.")
    if not allow_unverified:
        raise ZooError(
            f"{directory}: {fault}.",
            f"`pylo-zoo verify {directory}` proves it; --allow-unverified publishes it and says so on its card.",
        )
    return False


def _fault(made: Artifact, directory: Path, report: Report | None) -> str | None:
    """What keeps the parity of ``made`` from being proven, or None."""
    if report is None or made.parity is None:
        return "it has no parity report"
    if report.status != "passed":
        what = {"failed": "its parity failed", "not_run": f"its parity was not checked ({report.reason})"}
        return what[report.status]
    if report.fingerprint != made.fingerprint:
        return "it has changed since its parity was checked"
    if change := made.changed_default():
        return f"its default {change} since its parity was checked"
    if other := made.misdescribed():
        return f"its parity report speaks of the {other}"
    if made.parity.get("schema_version") != SCHEMA_VERSION or report.environment.get("pylo-zoo") != __version__:
        return f"its parity was checked by another pylo-zoo than this one, {__version__}"
    vectors = directory / artifact.VECTORS
    if (
        not vectors.is_file()
        or hashlib.sha256(read_regular(vectors, limits.max_bytes())).hexdigest() != report.vectors_sha256
    ):
        return f"its {artifact.VECTORS} is missing, or is not the one of its parity report"
    again = replay(made)
    return None if again.passed else "the installed code does not compute what its parity report proved"


def _bytes(directory: Path) -> dict[str, bytes]:
    """The files that make an artifact, as they are now."""
    names = (artifact.WEIGHTS, artifact.CONFIG, artifact.PARITY, artifact.VECTORS)
    return {name: read_regular(directory / name, limits.max_bytes()) for name in names if (directory / name).is_file()}


def _files(made: Artifact, there: Mapping[str, bytes], report: Report | None) -> dict[str, bytes]:
    """Everything but the card; ``there`` is what the directory holds."""
    files = {name: there[name] for name in (artifact.WEIGHTS, *((artifact.PARITY,) if report else ()))}
    vectors = there.get(artifact.VECTORS)
    if report and vectors is not None and hashlib.sha256(vectors).hexdigest() == report.vectors_sha256:
        files[artifact.VECTORS] = vectors
    files[artifact.CONFIG] = (json.dumps(made.config(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if report is not None and report.checks:
        files[artifact.PAGE] = html.render_html([report]).encode()
        files[artifact.PLOT] = plot.parity_png(report)
    return files


def without_time(parity: bytes) -> Any:
    """``parity.json`` without the time at which it was made; the bytes themselves where they are no JSON."""
    try:
        return {**json.loads(parity), "created": None}
    except (ValueError, TypeError):
        return parity
