"""What ``weights=`` means, the same everywhere."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import artifact, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access


def load(weights: str | Path | Artifact, *, proven: bool = True, access: Access | None = None) -> Artifact:
    """Find an artifact.

    Args:
        weights: an artifact, returned as it is; an artifact's directory; or a registry name, whose files are fetched
            where the cache does not hold them, with a progress bar where stderr is a terminal.
        proven: refuse a directory whose parity report failed, or speaks of other weights than are there now.
        access: how to fetch.

    Raises:
        ZooError: there is no such thing, it is damaged, or its files cannot be had.
    """
    if isinstance(weights, Artifact):
        return weights
    if not isinstance(weights, (str, Path)) or not str(weights).strip():
        raise ZooError(
            f"weights is {weights!r}.", "Give a name of `pylo-zoo list`, an artifact's directory, or a loaded artifact."
        )
    if isinstance(weights, Path) or Path(weights).is_dir():
        return _read(Path(weights), proven)
    if weights.startswith("hf://"):
        raise ZooError(
            f"{weights} is on the Hub, from where this version loads no artifacts yet.",
            "For a JAX checkpoint there, run `pylo-zoo convert FAMILY --source hf://ORG/REPO/FILE --out DIR`, and use "
            "weights=DIR.",
        )
    if "/" in weights:
        raise ZooError(f"{weights} is no directory.", "Give an artifact's directory, or a name of `pylo-zoo list`.")
    return convert(registry.get(weights).name, access=access)


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
