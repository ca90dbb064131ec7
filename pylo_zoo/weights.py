"""What ``weights=`` means, the same everywhere."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import artifact, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError


def load(weights: str | Path | Artifact, *, proven: bool = True) -> Artifact:
    """Find an artifact.

    Args:
        weights: an artifact, returned as it is; an artifact's directory; or a registry name.
        proven: refuse a directory whose parity report failed, or speaks of other weights than are there now.

    Raises:
        ZooError: there is no such thing, it is damaged, or its checkpoint first has to be fetched and converted.
    """
    if isinstance(weights, Artifact):
        return weights
    if isinstance(weights, Path) or Path(weights).is_dir():
        return _read(Path(weights), proven)
    if weights.startswith("hf://"):
        raise ZooError(
            f"{weights} is on the Hub, which this version cannot load from yet.",
            "Download the checkpoint, run `pylo-zoo convert FAMILY --source FILE --out DIR`, and use weights=DIR.",
        )
    if "/" in weights:
        raise ZooError(f"{weights} is no directory.", "Give an artifact's directory, or a name of `pylo-zoo list`.")
    return convert(registry.get(weights).name)


def _read(directory: Path, proven: bool) -> Artifact:
    made = artifact.read(directory)
    report = made.parity or {}
    if proven and report.get("status") == "failed":
        raise ZooError(f"{directory} failed its parity check.", "Convert the checkpoint again.")
    if proven and report.get("status") == "passed" and report.get("fingerprint") != made.fingerprint:
        raise ZooError(
            f"{directory} has changed since its parity was checked.",
            f"`pylo-zoo verify {directory}` checks it as it is now; converting again restores it.",
        )
    return made
