"""Reads the meta-parameters from the original file."""

from __future__ import annotations

from typing import Any

import numpy as np

from pylo_zoo import converters, formats, limits
from pylo_zoo.artifact import Artifact
from pylo_zoo.files import read_regular
from pylo_zoo.parity import leaves


def read_theta(artifact: Artifact, original: formats.Source) -> dict[str, Any]:
    """The theta tree of the original file, with the changes to its leaves that the artifact's config records.

    flax reads flax checkpoints, independently of :mod:`pylo_zoo.formats`. Other formats are read by the same code as in
    the conversion, and PyLO's names are mapped back by the same table, so parity cannot show an error of these two.
    Tests compare them with files and mappings written by hand.
    """
    if original.format not in formats.WRITABLE:
        by_path = leaves.source_leaves(artifact, original)
        if original.naming != "jax":
            renamed = converters.get(artifact.family, original.naming)
            tensors = converters.to_torch(renamed, by_path, artifact.architecture)
            by_path = converters.to_jax(converters.get(artifact.family), tensors, artifact.architecture)
        return leaves.nest(by_path)
    from flax import serialization

    tree: Any = serialization.msgpack_restore(read_regular(original.path, limits.max_bytes()))
    tree = tree.get("params", tree.get("0", tree))
    if "cast" in artifact.source.layout:
        return leaves.nest({path: np.asarray(leaf).astype(np.float32) for path, leaf in leaves.flatten(tree).items()})
    return tree
