"""flax's msgpack: a tree of maps whose leaves are arrays, alone or inside one of Google's two containers.

flax's own reader sorts the keys, which loses the file's bytes, and accepts negative shapes and unknown extension codes
(HUB.md, "Untrusted checkpoints"): this one keeps the order and accepts nothing that it cannot write back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgpack
import numpy as np

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_AXES, MAX_TEXT, Array, Decoded, Path, collect, flatten, rebuild

CONTAINERS: Mapping[str, tuple[str, frozenset[str]] | None] = {
    "flax-msgpack": None,
    "flax-params": ("params", frozenset({"gen_id", "step"})),
    "flax-checkpoint": ("0", frozenset({"1", "2"})),
}
"""Container to the key that holds theta and the other keys; None where the file is theta itself (SPEC §8)."""

ARRAY, SCALAR = 1, 3
"""flax's extension codes for an array and for a numpy scalar."""
MAX_KEYS = 10_000


@dataclass(frozen=True, eq=False)
class Extension:
    """An array with the extension code that it stood under."""

    code: int
    array: Array


def recognises(data: bytes) -> bool:
    """Whether ``data`` begins with a msgpack map of at least one entry."""
    return data[:1] in (b"\xde", b"\xdf") or 0x81 <= int.from_bytes(data[:1], "big") <= 0x8F


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` is what an error calls it.

    Raises:
        ZooError: the bytes are damaged, or hold anything but maps, arrays and a container's own fields.
    """
    try:
        tree = msgpack.unpackb(
            data,
            raw=False,
            ext_hook=_extension,
            object_pairs_hook=_unique,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_TEXT,
            max_array_len=0,
            max_map_len=MAX_KEYS,
            max_ext_len=len(data),
        )
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from error
    except msgpack.ExtraData as error:
        raise ZooError(
            f"{name} is longer than the flax msgpack file that it begins with, by {len(error.extra):,} bytes.",
            "Download or copy it again, and compare its sha256 with the publisher's.",
        ) from error
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ZooError(
            f"{name} is not a complete flax msgpack file ({type(error).__name__}).",
            "Download or copy it again, and compare its sha256 with the publisher's.",
        ) from error
    kind = _kind(tree)
    try:
        return _split(kind, tree)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from error


def encode(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any]) -> bytes:
    """The inverse of :func:`decode`.

    Raises:
        ZooError: the layout is malformed, or lists other leaves.
    """
    try:
        order = [tuple(map(str, path)) for path in layout["leaves"]]
        if len(order) != len(set(order)) or set(order) != set(leaves):
            _refuse("the layout and the tensors name different leaves.")
        theta = _nest(order, leaves)
        described = CONTAINERS[layout["container"]]
        if described is not None:
            values = {described[0]: theta, **{key: _pack_field(value) for key, value in layout["header"].items()}}
            if set(layout["keys"]) != set(values):
                _refuse("the layout's keys and header disagree.")
            theta = {key: values[key] for key in layout["keys"]}
        return _pack(theta)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(
            f"The source layout is malformed ({type(error).__name__}: {error}).", "Convert the checkpoint again."
        ) from error


def _refuse(what: str) -> NoReturn:
    raise ZooError(what, "Only files that flax's serialization.to_bytes writes for a theta tree are read.")


# --- decoding ----------------------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            _refuse(f"a key is {type(key).__name__}, not text.")
        if not key.isprintable():
            _refuse(f"the key {key!r} holds control characters.")
        if key in found:
            _refuse(f"the key {key!r} stands twice in one map.")
        found[key] = value
    return found


def _extension(code: int, payload: bytes) -> Extension:
    """An array from ``payload``, a msgpack list of shape, dtype name and raw bytes."""
    if code not in (ARRAY, SCALAR):
        _refuse(f"unknown msgpack extension code {code}.")
    fields = msgpack.unpackb(payload, raw=False, max_array_len=MAX_AXES, max_map_len=0, max_ext_len=0)
    match fields:
        case [list(shape), str(dtype), bytes(data)]:
            return Extension(code, rebuild(shape, dtype, data))
        case _:
            _refuse("an array is not stored as shape, dtype and bytes.")


def _kind(tree: Mapping[str, Any]) -> str:
    for kind, described in CONTAINERS.items():
        if described is not None and set(tree) == {described[0], *described[1]}:
            return kind
    return "flax-msgpack"


def _split(kind: str, tree: Mapping[str, Any]) -> Decoded:
    layout: dict[str, Any] = {}
    described = CONTAINERS[kind]
    theta: Any = tree
    if described is not None:
        theta = tree[described[0]]
        layout["keys"] = list(tree)
        layout["header"] = {key: _field(key, value) for key, value in tree.items() if key != described[0]}
    decoded = collect(kind, flatten(_arrays(theta)), layout)
    decoded.layout["leaves"] = [list(path) for path in decoded.leaves]
    return decoded


def _arrays(node: Any) -> Any:
    """``node`` with its arrays out of their extensions; a numpy scalar stays in its own, and is no array."""
    if isinstance(node, dict):
        return {key: _arrays(child) for key, child in node.items()}
    return node.array if isinstance(node, Extension) and node.code == ARRAY else node


def _field(key: str, value: Any) -> Any:
    """A container's own field as JSON: a text, a whole number, or a 0-d integer array with its extension code."""
    if (isinstance(value, str) and value.isprintable()) or type(value) is int:
        return value
    if isinstance(value, Extension) and value.array.values.shape == () and value.array.values.dtype.kind in "iu":
        return {"ext": value.code, "dtype": value.array.dtype, "value": int(value.array.values)}
    _refuse(f"{key} is neither a text nor a whole number.")


# --- encoding ----------------------------------------------------------------------------------------------------


def _nest(order: list[Path], leaves: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    theta: dict[str, Any] = {}
    for path in order:
        node = theta
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = _pack_array(ARRAY, leaves[path])
    return theta


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None  # only a Packer with autoreset=False returns None
    return packed


def _pack_array(code: int, array: np.ndarray) -> msgpack.ExtType:
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return msgpack.ExtType(code, _pack((array.shape, array.dtype.name, data)))


def _pack_field(value: Any) -> Any:
    if isinstance(value, Mapping):
        array = np.array(value["value"]).astype(value["dtype"])  # numpy 1 wraps what np.array(value, dtype) cannot hold
        if array != value["value"]:
            raise OverflowError(f"{value['value']} is not a {value['dtype']}")
        return _pack_array(value["ext"], array)
    return value
