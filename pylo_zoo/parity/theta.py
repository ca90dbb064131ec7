"""The original's meta-parameters, as its own file has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pylo_zoo import converters, formats, limits
from pylo_zoo.artifact import Artifact
from pylo_zoo.files import read_regular
from pylo_zoo.parity import leaves


def read_theta(artifact: Artifact, original: formats.Source) -> dict[str, Any]:
    """The theta tree of the original file; of the artifact, only what its record says was done to the leaves.

    A flax checkpoint is read by flax itself, apart from :mod:`pylo_zoo.formats`. Of the other formats the reader is the
    one that the conversion used, and so is the table that takes PyLO's names back to JAX's: what these two get wrong,
    the forward pass and the trajectories cannot show. Tests hold them against files and mappings written by hand.
    """
    if original.format not in formats.WRITABLE:
        found = leaves.source_leaves(artifact, original)
        if original.naming != "jax":
            renamed = converters.get(artifact.family, original.naming)
            tensors = converters.to_torch(renamed, found, artifact.architecture)
            found = converters.to_jax(converters.get(artifact.family), tensors, artifact.architecture)
        return leaves.nest(found)
    from flax import serialization

    tree: Any = serialization.msgpack_restore(read_regular(original.path, limits.max_bytes()))
    tree = tree.get("params", tree.get("0", tree))
    if "cast" in artifact.source.layout:
        return leaves.nest({path: np.asarray(leaf).astype(np.float32) for path, leaf in leaves.flatten(tree).items()})
    return tree
