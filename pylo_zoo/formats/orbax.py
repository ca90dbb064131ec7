"""Orbax checkpoint directories, read through orbax itself (``pip install 'pylo-zoo[orbax]'``).

Only arrays are restored, and as numpy arrays. What the directory's metadata claims is bounded before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_UNPACKED, NARROW, PLAIN, Decoded, collect, flatten, rebuild, refuse
from pylo_zoo.formats.pickles import unwrap
from pylo_zoo.formats.quiet import quietly

CONTAINER = "orbax"
METADATA = "_METADATA"
ITEM = "default"
"""Where orbax's CheckpointManager puts a step's only item."""
COPY_AGAIN = "Save or copy the checkpoint again, all of it."
HINT = "Only trees of plain arrays, saved by orbax's StandardCheckpointer or PyTreeCheckpointer, are read."


def recognises(directory: FilePath) -> bool:
    """Whether ``directory`` is an orbax checkpoint, or a step of orbax's CheckpointManager."""
    return _root(directory) is not None


def decode(directory: FilePath, name: str) -> Decoded:
    """Decode the checkpoint in ``directory``; ``name`` is what an error calls it.

    Raises:
        ZooError: orbax is not installed, cannot read the checkpoint, or it holds anything but arrays of numbers, or
            more than :data:`~pylo_zoo.formats.arrays.MAX_UNPACKED` bytes of them.
    """
    if find_spec("orbax") is None or find_spec("orbax.checkpoint") is None:
        raise ZooError(
            f"{name} is an orbax checkpoint, and orbax is not installed.", "pip install 'pylo-zoo[orbax]' reads it."
        )
    try:
        tree, layout = unwrap(_restore((_root(directory) or directory).absolute()))
        return collect(CONTAINER, flatten(tree), layout)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from error


def _root(directory: FilePath) -> FilePath | None:
    return next((place for place in (directory, directory / ITEM) if (place / METADATA).is_file()), None)


def _restore(directory: FilePath) -> Any:
    with quietly():
        return _restored(directory)


def _restored(directory: FilePath) -> Any:
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata: Any = checkpointer.metadata(directory)
            item = getattr(metadata, "item_metadata", metadata)
            tree = getattr(item, "tree", item)
            if tree is None:
                refuse("orbax cannot read its metadata.", COPY_AGAIN)
            _bound(tree)
            arguments = _mapped(tree, lambda _: ocp.RestoreArgs(restore_type=np.ndarray))
            return _mapped(checkpointer.restore(directory, restore_args=arguments), _array)
    except ZooError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged directory
        raise ZooError(f"orbax cannot read it ({type(error).__name__}).", COPY_AGAIN) from error


def _bound(tree: Any) -> None:
    """Refuse, before anything is read, arrays that are no numbers or claim too much."""
    total = 0
    for leaf in _leaves(tree):
        shape, dtype = getattr(leaf, "shape", None), np.dtype(getattr(leaf, "dtype", None) or "O").name
        if shape is None or (dtype not in PLAIN and dtype not in NARROW):
            refuse(f"it holds a value of dtype {dtype}.", HINT)
        chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or shape
        total += 8 * max(math.prod(shape), math.prod(chunk))
    if total > 2 * MAX_UNPACKED:
        refuse(f"its arrays claim {total // 8:,} values; up to {MAX_UNPACKED // 4:,} are read.", HINT)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for child in tree.values():
            yield from _leaves(child)
    else:
        yield tree


def _mapped(tree: Any, change: Any) -> Any:
    return {key: _mapped(child, change) for key, child in tree.items()} if isinstance(tree, Mapping) else change(tree)


def _array(value: Any) -> Any:
    array = np.asarray(value)
    return rebuild(array.shape, array.dtype.name, array.tobytes())
