"""What ``weights=`` means, the same everywhere."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import artifact, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access


def load(weights: str | Path | Artifact, *, access: Access | None = None) -> Artifact:
    """Find an artifact.

    Args:
        weights: an artifact, returned as it is; an artifact's directory; or a registry name, whose files are fetched
            where the cache does not hold them, with a progress bar where stderr is a terminal.

        access: how to fetch.

    Raises:
        ZooError: there is no such thing, it is damaged, or its files cannot be had.
    """
    if isinstance(weights, Artifact):
        return weights
    if isinstance(weights, Path) or Path(weights).is_dir():
        return artifact.read(Path(weights))
    if weights.startswith("hf://"):
        raise ZooError(
            f"{weights} is on the Hub, from where this version loads no artifacts yet.",
            "For a JAX checkpoint there, run `pylo-zoo convert FAMILY --source hf://ORG/REPO/FILE --out DIR`, and use "
            "weights=DIR.",
        )
    if "/" in weights:
        raise ZooError(f"{weights} is no directory.", "Give an artifact's directory, or a name of `pylo-zoo list`.")
    return convert(registry.get(weights).name, access=access)
