"""Synthetic checkpoints of every family, and the bytes that flax would write for them.

The encoder is independent of :mod:`pylo_zoo.formats`, so a reader and a writer with the same fault do not agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import numpy as np

from pylo_zoo import config, converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.converters.base import leaf_shapes

Leaves = dict[tuple[str, ...], np.ndarray]

SIZES = (5, 3, 4, 6, 7)
LAYERS = 2


def reduced(released: Any) -> Any:
    """A small architecture: the released sizes, each limited to one of :data:`SIZES`, and layers to :data:`LAYERS`."""
    limits = iter(itertools.cycle(SIZES))
    return replace(
        released,
        **{
            name: min(value, LAYERS if "layers" in name else next(limits))
            for name, value in vars(released).items()
            if type(value) is int
        },
    )


SMALL: dict[str, Any] = {
    **{name: reduced(family.released) for name, family in converters.OWN.items()},
    "celo2": config.CELO2Architecture(ff_hidden_size=8, ff_hidden_layers=3),
    "celo2-base": config.CELO2Architecture(ff_hidden_size=8, ff_hidden_layers=2),
    "elo": config.MLPArchitecture(hidden_size=6, hidden_layers=2),
    "elo-celo2": config.CELO2Architecture(ff_hidden_size=4, ff_hidden_layers=1),
    "adafac-mlp": config.MLPArchitecture(hidden_size=4, hidden_layers=1),
    "mulo": config.MLPArchitecture(hidden_size=6, hidden_layers=2),
}
"""One architecture per family. Sizes within a leaf differ if possible, and families with a common tree in layers."""


def theta(family: str, seed: int = 0, scale: float = 1.0) -> Leaves:
    """Random leaves of ``family`` in its small architecture, N(0, ``scale``²), in flax's sorted order."""
    random = np.random.default_rng(seed)
    shapes = leaf_shapes(converters.FAMILIES[family], SMALL[family])
    return {
        path: np.float32(scale) * random.standard_normal(shape, dtype=np.float32)
        for path, shape in sorted(shapes.items())
    }


def nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """``leaves`` as nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def encode(tree: Any) -> bytes:
    """``tree`` as ``flax.serialization.to_bytes`` writes it, in its own order."""
    packed = msgpack.packb(tree, default=_extension)
    assert packed is not None
    return packed


def _extension(value: Any) -> msgpack.ExtType:
    assert isinstance(value, (np.ndarray, np.generic))
    code = 1 if isinstance(value, np.ndarray) else 3
    return msgpack.ExtType(code, array_payload(list(value.shape), value.dtype.name, value.tobytes()))


def array_payload(shape: list[Any], dtype: str, data: bytes) -> bytes:
    """The content of an array's msgpack extension."""
    return msgpack.packb([shape, dtype, data]) or b""


def synthetic_artifact(family: str, scale: float = 0.1) -> Artifact:
    """An artifact of random weights."""
    with TemporaryDirectory() as directory:
        return convert(family, source=write_theta(Path(directory), family, scale=scale))


def write_theta(directory: Path, family: str, seed: int = 0, scale: float = 1.0) -> Path:
    """``theta.state`` of a synthetic checkpoint."""
    path = directory / "theta.state"
    path.write_bytes(encode(nested(theta(family, seed, scale))))
    return path


GIN = """# Parameters for HyperV2:
opt_from_checkpoint__6cf1d6ba_d295/HyperV2.lstm_hidden_size = {hidden}
opt_from_checkpoint__6cf1d6ba_d295/HyperV2.param_inits = {inits}
opt_from_checkpoint__6cf1d6ba_d295/HyperV2.use_bugged_loss_features = False
"""


def write_params(directory: Path, gin: str | None = None) -> Path:
    """Google's ``params`` and ``config.gin`` of a synthetic VeLO; ``gin`` replaces the configuration."""
    small = SMALL["velo"]
    gin = GIN.format(hidden=small.lstm_hidden_size, inits=small.param_inits) if gin is None else gin
    (directory / "config.gin").write_text(gin)
    path = directory / "params"
    path.write_bytes(encode({"params": nested(theta("velo")), "gen_id": "5620", "step": 200_000}))
    return path


def write_checkpoint(directory: Path) -> Path:
    """Google's older 3-tuple of a synthetic VeLO."""
    path = directory / "old.checkpoint"
    path.write_bytes(encode({"0": nested(theta("velo")), "1": "", "2": 0}))
    return path
