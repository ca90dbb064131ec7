"""What every reader gives, and the checks that arrays from an untrusted file go through before they exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from pylo_zoo.errors import ZooError

Path = tuple[str, ...]

MAX_AXES = 8
MAX_NESTING = 16
MAX_LEAVES = 10_000
MAX_TEXT = 1_024
MAX_UNPACKED = 64 * 1024 * 1024
"""Largest content of a file that may be compressed or sparse: seven times the largest published checkpoint."""


@dataclass(frozen=True, eq=False)
class Array:
    """An array, and ``dtype``, the name of what the file stores it as.

    The floats that numpy has no dtype for (bf16, fp8) are widened to float32, which holds each of them exactly.
    """

    values: np.ndarray
    dtype: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """A checkpoint's content.

    Attributes:
        container: kind of file.
        leaves: path to array, in file order.
        dtypes: path to the name of the dtype that the file has.
        layout: what is to be known of the file besides; where it can be written again, all that writing needs.
        naming: whose names the leaves have: ``"jax"``, a theta tree's, or ``"pylo"``.
    """

    container: str
    leaves: dict[Path, np.ndarray]
    dtypes: dict[Path, str]
    layout: dict[str, Any] = field(default_factory=dict)
    naming: str = "jax"


def refuse(what: str, hint: str = "Only trees of plain arrays of numbers are read.") -> NoReturn:
    """Raise the ZooError of a file that is damaged or hostile."""
    raise ZooError(what, hint)


# --- arrays ------------------------------------------------------------------------------------------------------

PLAIN = frozenset(
    {"float16", "float32", "float64", "bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""numpy's dtypes that are read."""


def _widen_bfloat16(data: bytes) -> np.ndarray:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def _widen_float8_e5m2(data: bytes) -> np.ndarray:
    """float8_e5m2 is the upper byte of a float16."""
    return (np.frombuffer(data, np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def _widen_float8_e4m3fn(data: bytes) -> np.ndarray:
    """Sign, four bits of exponent with bias 7, three of mantissa; no infinity, and only all ones is NaN."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)[np.frombuffer(data, np.uint8)]


NARROW: Mapping[str, tuple[int, Callable[[bytes], np.ndarray]]] = {
    "bfloat16": (2, _widen_bfloat16),
    "float8_e4m3fn": (1, _widen_float8_e4m3fn),
    "float8_e5m2": (1, _widen_float8_e5m2),
}
"""Bytes a value, and the exact widening, of floats that numpy does not know."""


def rebuild(
    shape: Sequence[Any], dtype: str, data: bytes | bytearray, *, fortran: bool = False, big_endian: bool = False
) -> Array:
    """An array from what a file says of it; nothing is allocated but what ``data`` fills.

    Raises:
        ZooError: the shape is not one of positive sizes, the dtype is none of numbers, or the bytes are not as many.
    """
    if len(shape) > MAX_AXES or any(type(size) is not int or size < 1 for size in shape):
        refuse(f"an array has the shape {list(shape)[: MAX_AXES + 1]}.")
    if dtype not in PLAIN and dtype not in NARROW:
        refuse(f"an array has the dtype {dtype[:MAX_TEXT]!r}.")
    size = NARROW[dtype][0] if dtype in NARROW else np.dtype(dtype).itemsize
    expected = math.prod(shape) * size
    if expected != len(data):
        refuse(f"an array of shape {list(shape)} and dtype {dtype} has {len(data)} bytes instead of {expected}.")
    if dtype in NARROW:
        if big_endian and size > 1:
            refuse(f"an array of dtype {dtype} is big-endian.")
        values = NARROW[dtype][1](bytes(data))
    else:
        stored = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
        values = np.frombuffer(bytes(data), stored).astype(np.dtype(dtype), copy=False)
    values = values.reshape(tuple(shape), order="F" if fortran else "C")
    return Array(values.copy(order="C") if fortran else values, dtype)


# --- trees -------------------------------------------------------------------------------------------------------


def flatten(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Array]]:
    """Paths and arrays of nested mappings with texts as keys, in their order.

    Raises:
        ZooError: there is anything else in it, an empty mapping, or one too deep.
    """
    where = "/".join(path) or "the top"
    if isinstance(tree, Array) and path:
        yield path, tree
    elif not isinstance(tree, Mapping):
        what = "an array" if isinstance(tree, Array) else type(tree).__name__
        refuse(f"{where} holds {what}, not {'an array' if path else 'a tree of arrays'}.")
    elif not tree or len(path) == MAX_NESTING:
        refuse(f"{where} holds {'maps nested too deeply' if tree else 'an empty map'}.")
    else:
        for key, child in tree.items():
            yield from flatten(child, (*path, key))


def collect(
    container: str, items: Iterable[tuple[Path, Array]], layout: Mapping[str, Any] | None = None, naming: str = "jax"
) -> Decoded:
    """The content of a file of kind ``container`` from its leaves.

    Raises:
        ZooError: there are no leaves or too many, or their names collide or are not for printing.
    """
    leaves: dict[Path, np.ndarray] = {}
    dtypes: dict[Path, str] = {}
    joined: set[str] = set()
    for path, array in items:
        name = "/".join(path)
        if not name.isprintable() or len(name) > MAX_TEXT:
            refuse(f"the name {name[:MAX_TEXT]!r} is too long or holds control characters.")
        if name in joined:
            refuse(f"two leaves are called {name}.")
        if len(joined) == MAX_LEAVES:
            refuse(f"there are more than {MAX_LEAVES:,} leaves.")
        joined.add(name)
        leaves[path], dtypes[path] = array.values, array.dtype
    if not leaves:
        refuse("it holds no array.")
    return Decoded(container, leaves, dtypes, {"container": container, **(layout or {})}, naming)
