"""Small artifacts as published, with matching proofs, and helpers to list caches."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import parity_reports
from trees import synthetic_artifact

from pylo_zoo import artifact
from pylo_zoo.artifact import Artifact
from pylo_zoo.report.records import Report

CARD = b"---\nlicense: mit\nlibrary_name: pylo-zoo\ntags: [learned-optimizer]\n---\n# Elo\n"
DOWNLOADED = ("README.md", "config.json", "model.safetensors", "parity-vectors.safetensors", "parity.json")
"""The files of :func:`files` that a pull downloads, in alphabetical order."""


def report(subject: Artifact, **changes: object) -> Report:
    """A passing report of the artifact's weights."""
    source = {"uri": subject.source.uri, "sha256": subject.source.sha256, "bytes": subject.source.bytes}
    about = {"name": subject.name, "family": subject.family, "source": source, "fingerprint": subject.fingerprint}
    return replace(parity_reports.passing(), **{**about, **changes})


@functools.cache
def files(family: str = "elo", scale: float = 0.1) -> dict[str, bytes]:
    """The files of a published repository; another ``scale`` gives other weights."""
    synthetic = synthetic_artifact(family, scale)
    proof = report(synthetic)
    extra = {artifact.VECTORS: b"vectors", artifact.CARD: CARD, artifact.PAGE: b"<html>", artifact.PLOT: b"png\0"}
    with TemporaryDirectory() as directory:
        out = artifact.write(replace(synthetic, parity=proof.to_dict()), Path(directory, "made"), extra_files=extra)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
