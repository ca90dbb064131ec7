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

CONTAINER = "orbax"
METADATA = "_METADATA"
ITEM = "default"
"""Where orbax's CheckpointManager puts a step's only item; version 1 of orbax calls it ``state``."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""Part of the name of a directory that orbax has not finished writing."""
SHOWN = 8
HINT = "Only trees of plain arrays, saved by orbax's StandardCheckpointer or PyTreeCheckpointer, are read."


def recognises(directory: FilePath) -> bool:
    """Whether ``directory`` is an orbax checkpoint, a step of a CheckpointManager, or a directory with its steps."""
    return bool(_roots(directory) or _steps(directory))


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
        tree, layout = unwrap(_restore(_root(directory).absolute()))
        return collect(CONTAINER, flatten(tree), layout)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def _root(directory: FilePath) -> FilePath:
    """The directory of the one tree in ``directory``, which is a checkpoint or holds one.

    Raises:
        ZooError: it holds several.
    """
    for _ in range(2):
        places = _roots(directory) or _steps(directory)
        if len(places) != 1:
            names = ", ".join(place.name for place in places[:SHOWN]) + (", …" if len(places) > SHOWN else "")
            refuse(f"it holds {len(places)} checkpoints: {names}.", f"Give one, such as {directory / places[-1].name}.")
        (directory,) = places
        if (directory / METADATA).is_file():
            break
    return directory


def _roots(directory: FilePath) -> list[FilePath]:
    """Where the trees of the checkpoint ``directory`` are: in itself, or one level down, each in its own directory."""
    preferred = [place for place in (directory, directory / ITEM) if (place / METADATA).is_file()]
    return preferred[:1] or [place for place in _below(directory) if (place / METADATA).is_file()]


def _steps(directory: FilePath) -> list[FilePath]:
    """The checkpoints in ``directory``, which is the root of a CheckpointManager or the like."""
    return [place for place in _below(directory) if _roots(place)]


def _below(directory: FilePath) -> list[FilePath]:
    """The finished directories in ``directory``, the steps of a run in order."""
    found = [place for place in directory.iterdir() if place.is_dir() and UNFINISHED not in place.name]
    return sorted(found, key=lambda place: (len(place.name), place.name))


def _restore(directory: FilePath) -> Any:
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata: Any = checkpointer.metadata(directory)
            item = getattr(metadata, "item_metadata", metadata)
            tree = getattr(item, "tree", item)
            _bound(tree)
            arguments = _mapped(tree, lambda leaf: ocp.RestoreArgs(restore_type=str if _is_text(leaf) else np.ndarray))
            return _mapped(checkpointer.restore(directory, restore_args=arguments), _array)
    except ZooError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged directory
        raise ZooError(
            f"orbax cannot read it ({type(error).__name__}).", "Save or copy the checkpoint again, all of it."
        ) from error


def _bound(tree: Any) -> None:
    """Refuse, before anything is read, arrays that are no numbers or claim too much."""
    total = 0
    for leaf in _leaves(tree):
        if _is_text(leaf):  # its length is that of a file that is read whole
            continue
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


def _is_text(leaf: Any) -> bool:
    """Whether the metadata ``leaf`` describes a text, such as Google's ``gen_id``."""
    return type(leaf).__name__ == "StringMetadata"


def _array(value: Any) -> Any:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return rebuild(array.shape, array.dtype.name, array.tobytes())
