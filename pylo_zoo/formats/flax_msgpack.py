"""Reads and writes flax's msgpack: a tree of maps with arrays as leaves, optionally inside one of Google's containers.

flax's reader sorts the keys, so the original bytes are lost, and it accepts negative shapes and unknown extension codes
(docs/formats.md). This reader keeps the order and accepts only what it can write back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import msgpack
import numpy as np

from pylo_zoo.errors import ZooError, count
from pylo_zoo.formats.arrays import MAX_TEXT, PLAIN, Array, Budget, Decoded, Path, collect, flatten, rebuild
from pylo_zoo.formats.msgpack_reader import HINT, Incomplete, Reader
from pylo_zoo.formats.pickles import WRAPPERS

CONTAINERS: Mapping[str, tuple[str, frozenset[str]] | None] = {
    "flax-msgpack": None,
    "flax-params": ("params", frozenset({"gen_id", "step"})),
    "flax-checkpoint": ("0", frozenset({"1", "2"})),
}
"""Container to the key of theta and the other keys; None if the file is theta itself (SPEC §8)."""

ARRAY, SCALAR = 1, 3
"""flax's extension codes for an array and for a numpy scalar."""


@dataclass(frozen=True, eq=False)
class Extension:
    """An array and its extension code in the file."""

    code: int
    array: Array


def recognizes(data: bytes) -> bool:
    """Whether ``data`` begins with a msgpack map of at least one entry."""
    return data[:1] in (b"\xde", b"\xdf") or 0x81 <= int.from_bytes(data[:1], "big") <= 0x8F


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` identifies it in errors.

    Raises:
        ZooError: the file is damaged, or contains anything except maps, arrays and the container's fields.
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
            f"{name} has {count(reader.left, 'byte')} after its flax msgpack data.",
            "Download or copy it again, and compare its sha256 with the publisher's.",
        )
    try:
        return _split(_kind(tree), tree)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def encode(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any]) -> bytes:
    """The inverse of :func:`decode`.

    Raises:
        ZooError: the layout is malformed, or its leaves differ from ``leaves``.
    """
    return b"".join(_encoded(leaves, layout))


def matches(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any], data: bytes) -> bool:
    """Whether :func:`encode` returns ``data``. The comparison needs no second copy of it.

    Raises:
        ZooError: see :func:`encode`.
    """
    view, position = memoryview(data), 0
    for piece in _encoded(leaves, layout):
        end = position + len(piece)
        if view[position:end] != piece:
            return False
        position = end
    return position == len(view)


def _encoded(leaves: Mapping[Path, np.ndarray], layout: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The pieces of the file, in order. The content of each array is a separate piece."""
    try:
        order = [_path(path) for path in layout["leaves"]]
        if len(order) != len(set(order)) or set(order) != set(leaves):
            _refuse("the layout and the tensors have different leaves.")
        theta = _nest(order, leaves)
        container = CONTAINERS[layout["container"]]
        wrapper = container[0] if container is not None else layout.get("wrapper")
        if wrapper is not None:
            values = {wrapper: theta, **{key: _header(value) for key, value in layout["header"].items()}}
            if set(layout["keys"]) != set(values):
                _refuse("the layout's keys and header differ.")
            theta = {key: values[key] for key in layout["keys"]}
        return _pieces(theta)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(
            f"The source layout is malformed ({type(error).__name__}: {str(error)[:80]}).",
            "Convert the checkpoint again.",
        ) from error


def _refuse(message: str) -> NoReturn:
    raise ZooError(message, HINT)


# --- decoding ----------------------------------------------------------------------------------------------------


def _extension(code: int, payload: Reader, budget: Budget) -> Extension:
    """Build an array from ``payload``, a msgpack list of shape, dtype name and bytes."""
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
    for kind, container in CONTAINERS.items():
        if container is not None and set(tree) == {container[0], *container[1]}:
            return kind
    return "flax-msgpack"


def _wrapper(tree: Mapping[str, Any]) -> str | None:
    """The key of theta, if the other keys have plain values; None if theta is not wrapped.

    Raises:
        ZooError: another key has an array or a map.
    """
    wrapper = next((key for key in WRAPPERS if isinstance(tree.get(key), dict)), None)
    if wrapper is None:
        return None
    others = [key for key, value in tree.items() if key != wrapper and _has_arrays(value)]
    if others:
        _refuse(f"it has both {wrapper} and {', '.join(others)}, and each may be the checkpoint.")
    return wrapper


def _has_arrays(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, Extension) and value.array.values.ndim > 0)


def _split(kind: str, tree: Mapping[str, Any]) -> Decoded:
    layout: dict[str, Any] = {}
    container = CONTAINERS[kind]
    theta: Any = tree
    if container is None and (wrapper := _wrapper(tree)):
        layout["wrapper"] = wrapper
    if theta_key := container[0] if container else layout.get("wrapper"):
        theta = tree[theta_key]
        layout["keys"] = list(tree)
        field = _field if container else _value
        layout["header"] = {key: field(key, value) for key, value in tree.items() if key != theta_key}
    decoded = collect(kind, flatten(_arrays(theta)), layout)
    decoded.layout["leaves"] = [list(path) for path in decoded.leaves]
    return decoded


def _arrays(node: Any) -> Any:
    """``node`` with arrays unwrapped from their extensions. A numpy scalar stays wrapped because it is not a leaf."""
    if isinstance(node, dict):
        return {key: _arrays(child) for key, child in node.items()}
    return node.array if isinstance(node, Extension) and node.code == ARRAY else node


def _field(key: str, value: Any) -> Any:
    """A container's field as JSON: a string, an integer, or a 0-d integer array with its extension code."""
    if (isinstance(value, str) and value.isprintable()) or type(value) is int:
        return value
    if isinstance(value, Extension) and value.array.values.shape == () and value.array.values.dtype.kind in "iu":
        return {"ext": value.code, "dtype": value.array.dtype, "value": int(value.array.values)}
    _refuse(f"{key} is neither a string nor an integer.")


def _value(key: str, value: Any) -> Any:
    """A value next to a wrapped tree as JSON: see :func:`_field`, or another plain value."""
    if type(value) in (bool, type(None)) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, Extension) and value.array.dtype in ("float32", "float64"):
        number = value.array.values
        if number.shape == () and np.isfinite(number):
            return {"ext": value.code, "dtype": value.array.dtype, "value": float(number)}
    return _field(key, value)


# --- encoding ----------------------------------------------------------------------------------------------------


def _path(path: Any) -> Path:
    """A leaf's path from the layout, a list of strings."""
    if not isinstance(path, list) or not all(isinstance(key, str) for key in path):
        _refuse(f"the layout has a leaf {str(path)[:80]!r}.")
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
    """The inverse of :func:`_field` and :func:`_value`."""
    match value:
        case {"ext": 1 | 3 as code, "dtype": str(dtype), "value": int(number)} if (
            len(value) == 3 and dtype in PLAIN and np.dtype(dtype).kind in "iu" and type(number) is int
        ):
            bounds = np.iinfo(dtype)  # numpy 1 wraps values outside the range
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
    _refuse(f"the layout's header contains {str(value)[:80]!r}.")


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Extension):
        return _array_pieces(value.code, value.array.values)
    packer = msgpack.Packer()
    if not isinstance(value, dict):
        return iter([packer.pack(value)])
    entries = (chain([packer.pack(key)], _pieces(child)) for key, child in value.items())
    return chain([packer.pack_map_header(len(value))], *entries)


def _array_pieces(code: int, array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The output of msgpack.packb for an extension whose payload is a list of shape, dtype name and bytes."""
    packer = msgpack.Packer()
    size = array.nbytes
    about = packer.pack_array_header(3) + packer.pack(array.shape) + packer.pack(array.dtype.name)
    about += _length_prefix((0xC4, 0xC5, 0xC6), size)
    total = len(about) + size
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(total)
    head = bytes((fixed,)) if fixed else _length_prefix((0xC7, 0xC8, 0xC9), total)
    yield head + bytes((code,)) + about
    stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    yield stored.reshape(-1).view(np.uint8).data


def _length_prefix(codes: tuple[int, int, int], size: int) -> bytes:
    """The length ``size`` after its type code; ``codes`` are those for lengths of 1, 2 and 4 bytes."""
    for code, width in zip(codes, (1, 2, 4), strict=True):
        if size < 1 << 8 * width:
            return bytes((code,)) + size.to_bytes(width, "big")
    raise OverflowError(f"{size:,} bytes")
