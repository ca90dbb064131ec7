"""Compares every leaf of the source with the artifact, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.formats import Source
from pylo_zoo.report.records import Leaves

Path = tuple[str, ...]


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """The leaves of a nested dict by path."""
    leaves: dict[Path, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
    return leaves


def nest(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def source_leaves(artifact: Artifact, source: Source) -> dict[Path, np.ndarray]:
    """The leaves of ``source`` in its own naming, with the changes that the artifact's config records.

    These are: scratch leaves left out, floats cast, and learned decays added that the file lacks.
    """
    layout = artifact.source.layout
    family = converters.get(artifact.family, source.naming)
    leaves = converters.prepare(family, source.leaves, source.dtypes, cast="cast" in layout).leaves
    supplied = {
        tuple(name.split("/")): np.array(values, np.float32) for name, values in layout.get("supplied", {}).items()
    }
    return leaves | supplied


def check_leaves(artifact: Artifact, source: Source) -> Leaves:
    """Map ``artifact`` back to the names and layouts of ``source``, and compare the leaves."""
    tensors = {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
    family = converters.get(artifact.family, source.naming)
    ours = converters.to_jax(family, tensors, artifact.architecture, finite=False)
    theirs = source_leaves(artifact, source)
    missing = sorted("/".join(path) for path in theirs.keys() - ours.keys())
    extra = sorted("/".join(path) for path in ours.keys() - theirs.keys())
    differing = sorted("/".join(path) for path in theirs.keys() & ours.keys() if not _same(theirs[path], ours[path]))
    return Leaves(compared=len(theirs), missing=missing, extra=extra, differing=differing)


def _same(a: Any, b: Any) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
