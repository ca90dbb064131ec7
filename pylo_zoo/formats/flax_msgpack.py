"""flax's msgpack: a tree of maps whose leaves are arrays, alone or inside one of Google's two containers.

flax's own reader sorts the keys, which loses the file's bytes, and accepts negative shapes and unknown extension codes
(HUB.md, "Untrusted checkpoints"): this one keeps the order and accepts nothing that it cannot write back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import msgpack
import numpy as np

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_TEXT, PLAIN, Array, Budget, Decoded, Path, collect, flatten, rebuild
from pylo_zoo.formats.msgpack_reader import HINT, Incomplete, Reader
from pylo_zoo.formats.pickles import WRAPPERS

CONTAINERS: Mapping[str, tuple[str, frozenset[str]] | None] = {
    "flax-msgpack": None,
    "flax-params": ("params", frozenset({"gen_id", "step"})),
    "flax-checkpoint": ("0", frozenset({"1", "2"})),
}
"""Container to the key that holds theta and the other keys; None where the file is theta itself (SPEC §8)."""

ARRAY, SCALAR = 1, 3
"""flax's extension codes for an array and for a numpy scalar."""


@dataclass(frozen=True, eq=False)
class Extension:
    """An array with the extension code that it stood under."""

    code: int
    array: Array


def recognizes(data: bytes) -> bool:
    """Whether ``data`` begins with a msgpack map of at least one entry."""
    return data[:1] in (b"\xde", b"\xdf") or 0x81 <= int.from_bytes(data[:1], "big") <= 0x8F


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` is what an error calls it.

    Raises:
        ZooError: the bytes are damaged, or hold anything but maps, arrays and a container's own fields.
    """
    budget = Budget()
    reader = Reader(memoryview(data), lambda code, payload: _extension(code, payload, budget))
    try:
        tree = reader.value()
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None
    except Incomplete as error:
        raise ZooError(
            f"{name} is not a complete flax msgpack file.",
            "Download or copy it again, and compare its sha256 with the publisher's.",
        ) from error
    if reader.left:
        raise ZooError(
            f"{name} is longer than the flax msgpack file that it begins with, by {reader.left:,} bytes.",
            "Download or copy it again, and compare its sha256 with the publisher's.",
        )
    try:
        return _split(_kind(tree), tree)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def encode(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any]) -> bytes:
    """The inverse of :func:`decode`.

    Raises:
        ZooError: the layout is malformed, or lists other leaves.
    """
    return b"".join(_encoded(leaves, layout))


def matches(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any], data: bytes) -> bool:
    """Whether :func:`encode` gives ``data``, found out piece by piece and without a second copy of it.

    Raises:
        ZooError: as :func:`encode`.
    """
    view, position = memoryview(data), 0
    for piece in _encoded(leaves, layout):
        end = position + len(piece)
        if view[position:end] != piece:
            return False
        position = end
    return position == len(view)


def _encoded(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The pieces of the file, in order; the content of an array is a piece of its own."""
    try:
        order = [_path(path) for path in layout["leaves"]]
        if len(order) != len(set(order)) or set(order) != set(leaves):
            _refuse("the layout and the tensors name different leaves.")
        theta = _nest(order, leaves)
        described = CONTAINERS[layout["container"]]
        around = described[0] if described is not None else layout.get("wrapper")
        if around is not None:
            values = {around: theta, **{key: _header(value) for key, value in layout["header"].items()}}
            if set(layout["keys"]) != set(values):
                _refuse("the layout's keys and header disagree.")
            theta = {key: values[key] for key in layout["keys"]}
        return _pieces(theta)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(
            f"The source layout is malformed ({type(error).__name__}: {str(error)[:80]}).",
            "Convert the checkpoint again.",
        ) from error


def _refuse(what: str) -> NoReturn:
    raise ZooError(what, HINT)


# --- decoding ----------------------------------------------------------------------------------------------------


def _extension(code: int, payload: Reader, budget: Budget) -> Extension:
    """An array from ``payload``, a msgpack list of shape, dtype name and raw bytes."""
    if code not in (ARRAY, SCALAR):
        _refuse(f"unknown msgpack extension code {code}.")
    try:
        payload.list_of(3)
        shape, dtype, data = payload.sizes(), payload.value(), payload.value()
    except Incomplete:
        _refuse("an array is not stored as shape, dtype and bytes.")
    if not isinstance(dtype, str) or not isinstance(data, memoryview) or payload.left:
        _refuse("an array is not stored as shape, dtype and bytes.")
    return Extension(code, rebuild(shape, dtype, data, budget))


def _kind(tree: Mapping[str, Any]) -> str:
    for kind, described in CONTAINERS.items():
        if described is not None and set(tree) == {described[0], *described[1]}:
            return kind
    return "flax-msgpack"


def _wrapper(tree: Mapping[str, Any]) -> str | None:
    """The key that holds theta, if only plain values are beside it.

    Raises:
        ZooError: arrays or maps are beside it.
    """
    around = next((key for key in WRAPPERS if isinstance(tree.get(key), dict)), None)
    if around is None:
        return None
    beside = [key for key, value in tree.items() if key != around and _holds_arrays(value)]
    if beside:
        _refuse(f"{around} stands beside {', '.join(beside)}, and either may be the checkpoint.")
    return around


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, Extension) and value.array.values.ndim > 0)


def _split(kind: str, tree: Mapping[str, Any]) -> Decoded:
    layout: dict[str, Any] = {}
    described = CONTAINERS[kind]
    theta: Any = tree
    if described is None and (wrapper := _wrapper(tree)):
        layout["wrapper"] = wrapper
    if around := described[0] if described else layout.get("wrapper"):
        theta = tree[around]
        layout["keys"] = list(tree)
        field = _field if described else _value
        layout["header"] = {key: field(key, value) for key, value in tree.items() if key != around}
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


def _value(key: str, value: Any) -> Any:
    """What is beside a wrapped tree as JSON: as in :func:`_field`, or another plain value."""
    if type(value) in (bool, type(None)) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, Extension) and value.array.dtype in ("float32", "float64"):
        number = value.array.values
        if number.shape == () and np.isfinite(number):
            return {"ext": value.code, "dtype": value.array.dtype, "value": float(number)}
    return _field(key, value)


# --- encoding ----------------------------------------------------------------------------------------------------


def _path(path: Any) -> Path:
    """A leaf's path as the layout has it: a list of texts."""
    if not isinstance(path, list) or not all(isinstance(key, str) for key in path):
        _refuse(f"the layout names a leaf {str(path)[:80]!r}.")
    return tuple(path)


def _nest(order: list[Path], leaves: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    theta: dict[str, Any] = {}
    for path in order:
        node = theta
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = Extension(ARRAY, Array(leaves[path], leaves[path].dtype.name))
    return theta


def _header(value: Any) -> Any:
    """A field next to theta, as the layout stores it: what :func:`_field` or :func:`_value` returns, nothing else."""
    match value:
        case {"ext": 1 | 3 as code, "dtype": str(dtype), "value": int(number)} if (
            len(value) == 3 and dtype in PLAIN and np.dtype(dtype).kind in "iu" and type(number) is int
        ):
            bounds = np.iinfo(dtype)  # numpy 1 wraps what a dtype cannot hold
            if not bounds.min <= number <= bounds.max:
                raise OverflowError(f"{str(number)[:40]} is not a {dtype}")
            return Extension(code, Array(np.array(number, dtype), dtype))
        case {"ext": 1 | 3 as code, "dtype": "float32" | "float64" as dtype, "value": float(number)} if len(
            value
        ) == 3 and math.isfinite(number):
            return Extension(code, Array(np.array(number, dtype), dtype))
        case None | bool():
            return value
        case float() if math.isfinite(value):
            return value
        case str() if len(value) <= MAX_TEXT:
            return value
        case int() if type(value) is int:
            return value
    _refuse(f"the layout's header holds {str(value)[:80]!r}.")


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Extension):
        return _array_pieces(value.code, value.array.values)
    packer = msgpack.Packer()
    if not isinstance(value, dict):
        return iter([packer.pack(value)])
    entries = (chain([packer.pack(key)], _pieces(child)) for key, child in value.items())
    return chain([packer.pack_map_header(len(value))], *entries)


def _array_pieces(code: int, array: np.ndarray) -> Iterator[bytes | memoryview]:
    """What msgpack.packb writes for an extension whose payload is a list of shape, dtype name and bytes."""
    packer = msgpack.Packer()
    size = array.nbytes
    about = packer.pack_array_header(3) + packer.pack(array.shape) + packer.pack(array.dtype.name)
    about += _lengthy((0xC4, 0xC5, 0xC6), size)
    total = len(about) + size
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(total)
    head = bytes((fixed,)) if fixed else _lengthy((0xC7, 0xC8, 0xC9), total)
    yield head + bytes((code,)) + about
    stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    yield stored.reshape(-1).view(np.uint8).data


def _lengthy(codes: tuple[int, int, int], size: int) -> bytes:
    """The first byte for ``size``, of three for lengths of 1, 2 and 4 bytes, and the length."""
    for code, width in zip(codes, (1, 2, 4), strict=True):
        if size < 1 << 8 * width:
            return bytes((code,)) + size.to_bytes(width, "big")
    raise OverflowError(f"{size:,} bytes")
