"""From a checkpoint to an artifact on disk, with a parity report: convert, verify, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pylo_zoo import artifact as artifacts
from pylo_zoo import formats, parity
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import ConversionPolicy, convert_checkpoint, matched_entry, store_copy
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access
from pylo_zoo.report import Report


class ParityError(ZooError):
    """The torch implementation differs from the original beyond the bounds; see ``report``."""

    def __init__(self, name: str, report: Report) -> None:
        super().__init__(
            f"{name}: parity failed, and nothing was written.",
            "See the report, or write the artifact without a check: --no-verify (in Python, verify=False).",
        )
        self.report = report


@dataclass(frozen=True)
class ConversionResult:
    """An artifact on disk.

    Attributes:
        artifact: the artifact.
        directory: its directory.
        report: the parity report. Its status is "not_run", with a reason, if JAX is missing or ``verify`` was False.
        matched: the registry entry with the source's sha256, or None.
    """

    artifact: Artifact
    directory: Path
    report: Report
    matched: str | None


def build_artifact(
    name: str,
    *,
    source: str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
    verify: bool = True,
    pt: bool = False,
    access: Access | None = None,
    allowed: ConversionPolicy | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ConversionResult:
    """Convert a checkpoint, check its parity and write the artifact. A failure writes nothing.

    Args:
        name: see :func:`pylo_zoo.convert.convert`, also for ``source``, ``settings``, ``access`` and ``allowed``.
        out: the artifact's directory; by default ``zoo/NAME``.
        force: replace an existing artifact.
        verify: compare with the original JAX code before writing.
        pt: also write ``model.pt``.
        progress: called with the current part of the check, the number of finished parts and the number of all parts.

    Raises:
        ParityError: the parity check failed.
        ZooError: see :func:`pylo_zoo.convert.convert` and :func:`pylo_zoo.artifact.check_output`.
    """
    directory = Path(out) if out is not None else Path("zoo") / name
    artifacts.check_output(directory, force=force)
    artifact, checkpoint = convert_checkpoint(name, source, settings, access, allowed)
    report = _check_parity(artifact, store_copy(checkpoint), verify, progress)
    if report.status == "failed":
        raise ParityError(artifact.name, report)
    artifact = replace(artifact, parity=report.to_dict())
    extra = {artifacts.STATE_DICT: artifacts.state_dict_file(artifact)} if pt else {}
    if report.vectors is not None:
        extra[artifacts.VECTORS] = report.vectors
    artifacts.write(artifact, directory, force=force, extra_files=extra)
    entry = matched_entry(artifact.source.sha256)
    return ConversionResult(artifact, directory, report, entry.name if entry else None)


def _check_parity(
    artifact: Artifact, path: Path, verify: bool, progress: Callable[[str, int, int], None] | None = None
) -> Report:
    """The parity report. Without ``verify``, it contains only the checks that run without JAX."""
    if verify:
        return parity.verify(artifact, path, progress=progress)
    return parity.without_jax(artifact, formats.read(path), "--no-verify")
