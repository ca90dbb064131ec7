"""Reads orbax checkpoint directories with orbax (``pip install 'pylo-zoo[orbax]'``).

Only arrays are restored, as numpy arrays. The sizes in the directory's metadata are checked before any array is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from pylo_zoo import limits
from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import (
    MAX_LEAVES,
    NARROW,
    PLAIN,
    Budget,
    Decoded,
    check_shape,
    collect,
    flatten,
    rebuild,
    rebuilt_bytes,
    refuse,
    stored_dtype,
)
from pylo_zoo.formats.pickles import unwrap
from pylo_zoo.formats.quiet import quietly

CONTAINER = "orbax"
METADATA = "_METADATA"
DESCRIPTIONS = frozenset({METADATA, "_CHECKPOINT_METADATA", "_sharding", ".zarray", ".zgroup", ".zattrs", "zarr.json"})
"""Names of the JSON files that describe the arrays."""
ARRAYS = (".zarray", "zarr.json")
"""Those that state an array's compression."""
MAX_DESCRIPTION = 4 * 1024 * 1024
MAX_CHUNKS = 4 * MAX_LEAVES
"""Maximum number of chunks of all arrays together. orbax reads each chunk separately."""
ITEM = "default"
"""Directory of the only item of a step of orbax's CheckpointManager. Version 1 of orbax uses ``state``."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""Part of the name of a directory that orbax has not finished writing."""
SHOWN = 8
COPY_AGAIN = "Save or copy the whole checkpoint again."
HINT = "Save a tree of plain arrays with orbax's StandardCheckpointer or PyTreeCheckpointer."


def recognizes(directory: FilePath) -> bool:
    """Whether ``directory`` is an orbax checkpoint, a step of a CheckpointManager, or a directory of steps."""
    return bool(_roots(directory) or _steps(directory))


def decode(directory: FilePath, name: str) -> Decoded:
    """Decode the checkpoint in ``directory``; ``name`` identifies it in errors.

    Raises:
        ZooError: orbax is not installed or cannot read the checkpoint, or the checkpoint contains anything except
            numeric arrays, or more than :func:`pylo_zoo.limits.max_bytes`.
    """
    if find_spec("orbax") is None or find_spec("orbax.checkpoint") is None:
        raise ZooError(
            f"{name} is an orbax checkpoint, and orbax is not installed.", "Run pip install 'pylo-zoo[orbax]'."
        )
    try:
        tree, layout = unwrap(_restore(_root(directory).absolute()))
        return collect(CONTAINER, flatten(tree), layout)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def _root(directory: FilePath) -> FilePath:
    """The directory of the only tree in ``directory``, which is a checkpoint or contains one.

    Raises:
        ZooError: it contains several.
    """
    for _ in range(2):
        places = _roots(directory) or _steps(directory)
        if len(places) != 1:
            names = ", ".join(place.name for place in places[:SHOWN]) + (", …" if len(places) > SHOWN else "")
            refuse(
                f"it contains {len(places)} checkpoints: {names}.", f"Use one, such as {directory / places[-1].name}."
            )
        (directory,) = places
        if (directory / METADATA).is_file():
            break
    return directory


def _roots(directory: FilePath) -> list[FilePath]:
    """The directories of the trees in the checkpoint ``directory``: itself, or subdirectories."""
    preferred = [place for place in (directory, directory / ITEM) if (place / METADATA).is_file()]
    return preferred[:1] or [place for place in _below(directory) if (place / METADATA).is_file()]


def _steps(directory: FilePath) -> list[FilePath]:
    """The checkpoints in ``directory``, for example the root of a CheckpointManager."""
    return [place for place in _below(directory) if _roots(place)]


def _below(directory: FilePath) -> list[FilePath]:
    """The finished subdirectories of ``directory``, with the steps of a run in order."""
    finished = [place for place in directory.iterdir() if place.is_dir() and UNFINISHED not in place.name]
    return sorted(finished, key=lambda place: (len(place.name), place.name))


def _restore(directory: FilePath) -> Any:
    with quietly():
        return _restored(directory)


def _restored(directory: FilePath) -> Any:
    import orbax.checkpoint as ocp

    _check_descriptions(directory)
    try:
        _check_compression(directory)
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata: Any = checkpointer.metadata(directory)
            item = getattr(metadata, "item_metadata", metadata)
            tree = getattr(item, "tree", item)
            if tree is None:
                refuse("orbax cannot read its metadata.", COPY_AGAIN)
            _check_bounds(tree)
            arguments = _mapped(tree, lambda leaf: ocp.RestoreArgs(restore_type=str if _is_text(leaf) else np.ndarray))
            budget = Budget()
            return _mapped(checkpointer.restore(directory, restore_args=arguments), lambda value: _array(value, budget))
    except ZooError:
        raise
    except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
        raise ZooError(f"orbax cannot read it ({type(error).__name__}).", COPY_AGAIN) from error


def _check_descriptions(directory: FilePath) -> None:
    """Reject large JSON files, because parsing needs many times their size."""
    for path in directory.rglob("*"):
        if path.name in DESCRIPTIONS and path.is_file() and (size := path.stat().st_size) > MAX_DESCRIPTION:
            refuse(f"its {path.name} has {size:,} bytes; the limit is {MAX_DESCRIPTION:,}.", HINT)


def _check_compression(directory: FilePath) -> None:
    """Reject arrays compressed by blosc, which tensorstore unpacks without a bound. orbax does not write them."""
    import tensorstore

    texts = [path.read_bytes() for path in directory.rglob("*") if path.name in ARRAYS]
    if (directory / "manifest.ocdbt").is_file():
        store: Any = tensorstore.KvStore.open({"driver": "ocdbt", "base": directory.as_uri() + "/"}).result()
        names = [name for name in store.list().result() if name.decode("latin1").endswith(ARRAYS)]
        texts += [store.read(name).result().value for name in names]
    if any('"blosc"' in json.dumps(json.loads(text)) for text in texts):
        refuse("it is compressed by blosc.", HINT)


def _check_bounds(tree: Any) -> None:
    """Reject arrays that are not numeric or are too large, before anything is read."""
    budget, values, chunks = Budget(), 0, 0
    for leaf in _leaves(tree):
        if _is_text(leaf):  # stored in a file whose size was checked
            continue
        shape, dtype = getattr(leaf, "shape", None), np.dtype(getattr(leaf, "dtype", None) or "O").name
        if shape is None or (dtype not in PLAIN and dtype not in NARROW):
            refuse(f"it contains a value of dtype {dtype}.", HINT)
        check_shape(shape)
        storage = getattr(leaf, "storage", None)
        pieces = [getattr(storage, name, None) or shape for name in ("chunk_shape", "write_shape")]
        for piece in pieces:
            if len(piece) != len(shape) or min(piece, default=1) < 1:
                refuse(f"an array of shape {list(shape)} has the chunk {list(piece)[:9]}.", HINT)
        values = max(values, *(math.prod(each) for each in (shape, *pieces)))
        if values * stored_dtype(dtype).itemsize > budget.limit:
            refuse(f"an array has {values:,} values; the limit is {budget.limit:,} bytes.", limits.RAISE)
        chunks += math.prod(-(-size // part) for size, part in zip(shape, pieces[0], strict=True))
        if chunks > MAX_CHUNKS:
            refuse(f"its arrays have {chunks:,} chunks; the limit is {MAX_CHUNKS:,}.", HINT)
        budget.take(rebuilt_bytes(shape, dtype))


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for child in tree.values():
            yield from _leaves(child)
    else:
        yield tree


def _mapped(tree: Any, change: Any) -> Any:
    return {key: _mapped(child, change) for key, child in tree.items()} if isinstance(tree, Mapping) else change(tree)


def _is_text(leaf: Any) -> bool:
    """Whether the metadata ``leaf`` describes a string, such as Google's ``gen_id``."""
    return type(leaf).__name__ == "StringMetadata"


def _array(value: Any, budget: Budget) -> Any:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return rebuild(array.shape, array.dtype.name, data, budget)
