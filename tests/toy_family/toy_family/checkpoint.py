"""A checkpoint of random weights, for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import to_bytes

from pylo_zoo.converters.base import leaf_shapes

from .converter import TOY


def write_theta(path: Path, seed: int = 0) -> None:
    """Write random leaves of the released sizes as flax writes them: nested dicts of float32 arrays."""
    random = np.random.default_rng(seed)
    tree: dict[str, Any] = {}
    for (module, leaf), shape in leaf_shapes(TOY, TOY.released).items():
        tree.setdefault(module, {})[leaf] = 0.1 * random.standard_normal(shape, dtype=np.float32)
    path.write_bytes(to_bytes(tree))


if __name__ == "__main__":
    write_theta(Path(sys.argv[1]))
