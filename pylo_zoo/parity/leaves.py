"""Level 1: every leaf of the source stands in the artifact, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pylo_zoo.artifact import Artifact
from pylo_zoo.converters import FAMILIES, to_jax
from pylo_zoo.parity.report import Leaves

Path = tuple[str, ...]


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """The leaves of a nested dict by path."""
    leaves: dict[Path, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
    return leaves


def check_leaves(artifact: Artifact, source: Mapping[Path, Any]) -> Leaves:
    """Compare the artifact, mapped back to JAX's tree, with the leaves of the source.

    Args:
        artifact: the torch side.
        source: leaf by path, as read from the original file.
    """
    tensors = {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
    ours = to_jax(FAMILIES[artifact.family], tensors, artifact.architecture)
    missing = sorted("/".join(path) for path in source.keys() - ours.keys())
    extra = sorted("/".join(path) for path in ours.keys() - source.keys())
    differing = sorted("/".join(path) for path in source.keys() & ours.keys() if not _same(source[path], ours[path]))
    return Leaves(compared=len(source), missing=missing, extra=extra, differing=differing)


def _same(a: Any, b: Any) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
