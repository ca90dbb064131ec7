"""The result type of every reader, and the checks for arrays from an untrusted file before they are allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

import numpy as np

from pylo_zoo import limits
from pylo_zoo.errors import ZooError

Path = tuple[str, ...]

MAX_AXES = 8
MAX_NESTING = 16
MAX_LEAVES = 10_000
MAX_TEXT = 1_024


@dataclass(frozen=True, eq=False)
class Array:
    """An array, and ``dtype``, the name of its dtype in the file.

    Float dtypes that numpy lacks are widened: bf16 to float32 and fp8 to float16. The wider dtype represents each value
    exactly.
    """

    values: np.ndarray
    dtype: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """A checkpoint's content.

    Attributes:
        container: the file's format.
        leaves: path to array, in file order.
        dtypes: path to the name of the dtype in the file.
        layout: additional data about the file; for a writable format, everything that writing needs.
        naming: naming scheme of the leaves: ``"jax"`` (a theta tree) or ``"pylo"``.
    """

    container: str
    leaves: dict[Path, np.ndarray]
    dtypes: dict[Path, str]
    layout: dict[str, Any] = field(default_factory=dict)
    naming: str = "jax"


def refuse(message: str, hint: str = "Save a tree of plain numeric arrays.") -> NoReturn:
    """Raise the ZooError for a damaged or malicious file."""
    raise ZooError(message, hint)


# --- arrays ------------------------------------------------------------------------------------------------------

PLAIN = frozenset(
    {"float16", "float32", "float64", "bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""Supported numpy dtypes."""


def _bfloat16() -> np.ndarray:
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


def _float8_e5m2() -> np.ndarray:
    """float8_e5m2 is the upper byte of a float16."""
    return (np.arange(1 << 8, dtype=np.uint16) << 8).view(np.float16)


def _float8_e4m3fn() -> np.ndarray:
    """One sign bit, four exponent bits with bias 7, three mantissa bits; no infinities, and only all ones is NaN."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float16)


@dataclass(frozen=True, eq=False)
class Narrow:
    """A float dtype that numpy does not have.

    Attributes:
        codes: numpy dtype of the stored bits.
        wide: dtype of the rebuilt array.
        table: the value of each code.
    """

    codes: str
    wide: str
    table: Callable[[], np.ndarray]


NARROW: Mapping[str, Narrow] = {
    "bfloat16": Narrow("uint16", "float32", cache(_bfloat16)),
    "float8_e4m3fn": Narrow("uint8", "float16", cache(_float8_e4m3fn)),
    "float8_e5m2": Narrow("uint8", "float16", cache(_float8_e5m2)),
}
"""Float dtypes that numpy does not have."""

BLOCK = 1 << 13
"""Values per widening block, because each needs a temporary 8-byte index."""


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype in which a file stores ``dtype``.

    Raises:
        ZooError: ``dtype`` is not a dtype of numbers.
    """
    if dtype not in PLAIN and dtype not in NARROW:
        refuse(f"an array has the dtype {dtype[:80]!r}.")
    return np.dtype(NARROW[dtype].codes if dtype in NARROW else dtype)


def rebuilt_bytes(shape: Sequence[int], dtype: str) -> int:
    """Size of the rebuilt array for ``shape`` and ``dtype``, after widening."""
    return math.prod(shape) * np.dtype(NARROW[dtype].wide if dtype in NARROW else dtype).itemsize


class Budget:
    """The number of bytes that the arrays of one checkpoint may still use. Arrays are counted before they are copied.

    A file may refer to the same bytes many times, so its arrays can be larger than the file.
    """

    def __init__(self) -> None:
        self.limit = self.left = limits.max_bytes()

    def take(self, count: int) -> None:
        """Subtract ``count`` bytes.

        Raises:
            ZooError: fewer are left.
        """
        if count > self.left:
            refuse(f"its arrays have more than {self.limit:,} bytes.", limits.RAISE)
        self.left -= count


def check_shape(shape: Sequence[Any]) -> None:
    """Reject a shape that has more than :data:`MAX_AXES` axes or a size that is not positive."""
    if len(shape) > MAX_AXES:
        refuse(f"an array has {len(shape):,} axes; the limit is {MAX_AXES}.")
    if any(type(size) is not int or size < 1 for size in shape):
        refuse(f"an array has the shape {_format_shape(shape)}.")


def _format_shape(shape: Sequence[Any]) -> str:
    return f"[{', '.join(repr(size)[:24] for size in shape)}]"


def widen(values: np.ndarray, dtype: str) -> np.ndarray:
    """Widen ``values``, a contiguous array of ``stored_dtype(dtype)``, if numpy lacks ``dtype``."""
    if dtype not in NARROW:
        return values
    narrow = NARROW[dtype]
    wide = np.empty(values.shape, narrow.wide)
    codes, target, table = values.reshape(-1), wide.reshape(-1), narrow.table()
    for start in range(0, codes.size, BLOCK):
        block = slice(start, start + BLOCK)
        target[block] = table[codes[block]]
    return wide


def rebuild(
    shape: Sequence[Any],
    dtype: str,
    data: bytes | bytearray | memoryview,
    budget: Budget,
    *,
    fortran: bool = False,
    big_endian: bool = False,
) -> Array:
    """Build an array from its description in a file. The allocation never exceeds the size of ``data`` after widening.

    Raises:
        ZooError: a size is not positive, the dtype is not numeric, the number of bytes does not fit, or the array
            exceeds ``budget``.
    """
    check_shape(shape)
    stored = stored_dtype(dtype)
    expected = math.prod(shape) * stored.itemsize
    if expected != len(data):
        size = str(expected)[:24]
        refuse(f"an array of shape {_format_shape(shape)} and dtype {dtype} has {len(data)} bytes instead of {size}.")
    if big_endian and dtype in NARROW and stored.itemsize > 1:
        refuse(f"an array of dtype {dtype} is big-endian.")
    budget.take(rebuilt_bytes(shape, dtype))
    values = np.frombuffer(data, stored.newbyteorder(">" if big_endian else "<"))
    values = values.reshape(tuple(shape), order="F" if fortran else "C")
    if dtype not in NARROW:
        return Array(np.array(values, stored, order="C"), dtype)  # an aligned copy
    return Array(widen(np.ascontiguousarray(values), dtype), dtype)


def wrapper_record(wrapper: str, others: Sequence[str]) -> dict[str, Any]:
    """The layout fields for a theta tree under the key ``wrapper``, next to plain values under ``others``."""
    return {"wrapper": wrapper, **({"beside": list(others)} if others else {})}


# --- trees -------------------------------------------------------------------------------------------------------


def flatten(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Array]]:
    """Yield the paths and arrays of nested mappings with string keys, in order.

    Raises:
        ZooError: the tree has any other value, an empty mapping, or too many levels.
    """
    where = "/".join(path) or "the top"
    if isinstance(tree, Array) and path:
        yield path, tree
    elif not isinstance(tree, Mapping):
        kind = "an array" if isinstance(tree, Array) else type(tree).__name__
        refuse(f"{where} contains {kind}, not {'an array' if path else 'a tree of arrays'}.")
    elif not tree or len(path) == MAX_NESTING:
        refuse(f"{where} contains {'maps nested too deeply' if tree else 'an empty map'}.")
    else:
        for key, child in tree.items():
            if len(key) > MAX_TEXT:  # checked before names are joined: a pickle may share one long string many times
                refuse(f"the name {key[:40]!r}… has {len(key):,} characters.")
            yield from flatten(child, (*path, key))


def collect(
    container: str, items: Iterable[tuple[Path, Array]], layout: Mapping[str, Any] | None = None, naming: str = "jax"
) -> Decoded:
    """Collect the leaves of a file of format ``container``.

    Raises:
        ZooError: the file has no leaves or too many, or names that collide or are not printable.
    """
    leaves: dict[Path, np.ndarray] = {}
    dtypes: dict[Path, str] = {}
    joined: set[str] = set()
    budget = Budget()  # an array with two names counts twice because a conversion copies it twice
    for path, array in items:
        name = "/".join(path)
        if not name.isprintable() or len(name) > MAX_TEXT:
            refuse(f"the name {name[:80]!r} is too long or has control characters.")
        if name in joined:
            refuse(f"two leaves are called {name}.")
        if len(joined) == MAX_LEAVES:
            refuse(f"it has more than {MAX_LEAVES:,} leaves.")
        budget.take(array.values.nbytes)
        joined.add(name)
        leaves[path], dtypes[path] = array.values, array.dtype
    if not leaves:
        refuse("it has no arrays.")
    return Decoded(container, leaves, dtypes, {"container": container, **(layout or {})}, naming)
