"""What every reader gives, and the checks that arrays from an untrusted file go through before they exist."""

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
    """An array, and ``dtype``, the name of what the file stores it as.

    The floats that numpy has no dtype for are widened: bf16 to float32 and fp8 to float16. The wider dtype represents
    each value exactly.
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


def _bfloat16() -> np.ndarray:
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


def _float8_e5m2() -> np.ndarray:
    """float8_e5m2 is the upper byte of a float16."""
    return (np.arange(1 << 8, dtype=np.uint16) << 8).view(np.float16)


def _float8_e4m3fn() -> np.ndarray:
    """Sign, four bits of exponent with bias 7, three of mantissa; no infinity, and only all ones is NaN."""
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
"""The floats that numpy does not have, and their exact widening."""

BLOCK = 1 << 13
"""Values that are widened at once: an index takes eight bytes meanwhile."""


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of the values of ``dtype`` as a file holds them.

    Raises:
        ZooError: ``dtype`` is not a dtype of numbers.
    """
    if dtype not in PLAIN and dtype not in NARROW:
        refuse(f"an array has the dtype {dtype[:80]!r}.")
    return np.dtype(NARROW[dtype].codes if dtype in NARROW else dtype)


def rebuilt_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of the array that is rebuilt for ``shape`` and ``dtype``; a narrow dtype is rebuilt as its wide one."""
    return math.prod(shape) * np.dtype(NARROW[dtype].wide if dtype in NARROW else dtype).itemsize


class Budget:
    """The bytes that the arrays of one checkpoint may still take. They are counted before each array is copied.

    A file may name the same bytes many times, so that its arrays are larger than the file.
    """

    def __init__(self) -> None:
        self.limit = self.left = limits.max_bytes()

    def take(self, count: int) -> None:
        """Count ``count`` bytes.

        Raises:
            ZooError: they are more than are left.
        """
        if count > self.left:
            refuse(f"its arrays take more than {self.limit:,} bytes.", limits.RAISE)
        self.left -= count


def check_shape(shape: Sequence[Any]) -> None:
    """Refuse a shape that is not of up to :data:`MAX_AXES` positive sizes."""
    if len(shape) > MAX_AXES:
        refuse(f"an array has {len(shape):,} axes; up to {MAX_AXES} are read.")
    if any(type(size) is not int or size < 1 for size in shape):
        refuse(f"an array has the shape {_shown(shape)}.")


def _shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join(repr(size)[:24] for size in shape)}]"


def widen(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values``, contiguous and of ``stored_dtype(dtype)``, as the array that is handed out; narrow floats widened."""
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
    """A copy of an array from what a file says of it; nothing is allocated but what ``data`` fills.

    Raises:
        ZooError: the shape is not one of positive sizes, the dtype is none of numbers, the bytes are not as many, or
            the array exceeds ``budget``.
    """
    check_shape(shape)
    stored = stored_dtype(dtype)
    expected = math.prod(shape) * stored.itemsize
    if expected != len(data):
        wanted = str(expected)[:24]
        refuse(f"an array of shape {_shown(shape)} and dtype {dtype} has {len(data)} bytes instead of {wanted}.")
    if big_endian and dtype in NARROW and stored.itemsize > 1:
        refuse(f"an array of dtype {dtype} is big-endian.")
    budget.take(rebuilt_bytes(shape, dtype))
    values = np.frombuffer(data, stored.newbyteorder(">" if big_endian else "<"))
    values = values.reshape(tuple(shape), order="F" if fortran else "C")
    if dtype not in NARROW:
        return Array(np.array(values, stored, order="C"), dtype)  # aligned, and apart from the file's bytes
    return Array(widen(np.ascontiguousarray(values), dtype), dtype)


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
            if len(key) > MAX_TEXT:  # before names are joined: a pickle may use one long text many times
                refuse(f"the name {key[:40]!r}… has {len(key):,} characters.")
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
    budget = Budget()  # an array that is rebuilt once and named twice counts twice: a conversion copies it twice
    for path, array in items:
        name = "/".join(path)
        if not name.isprintable() or len(name) > MAX_TEXT:
            refuse(f"the name {name[:80]!r} is too long or holds control characters.")
        if name in joined:
            refuse(f"two leaves are called {name}.")
        if len(joined) == MAX_LEAVES:
            refuse(f"there are more than {MAX_LEAVES:,} leaves.")
        budget.take(array.values.nbytes)
        joined.add(name)
        leaves[path], dtypes[path] = array.values, array.dtype
    if not leaves:
        refuse("it holds no array.")
    return Decoded(container, leaves, dtypes, {"container": container, **(layout or {})}, naming)
