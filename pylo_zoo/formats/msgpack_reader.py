"""Reads the subset of msgpack that flax uses, without copying arrays.

The msgpack package copies an extension's payload and then the array inside it, and it allocates an object per element
of a list. This reader returns views of the file and counts the values: a valid file needs less than three times its
size, and a malicious one no more than its own size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NoReturn

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_AXES, MAX_LEAVES, MAX_NESTING, MAX_TEXT

MAX_NODES = 4 * MAX_LEAVES
"""Maximum number of values in a tree: leaves, maps and keys."""
HINT = "Save the theta tree with flax's serialization.to_bytes."

MAPS, TEXTS, LISTS = {0xDE: 2, 0xDF: 4}, {0xD9: 1, 0xDA: 2, 0xDB: 4}, {0xDC: 2, 0xDD: 4}
BYTES, EXTENSIONS = {0xC4: 1, 0xC5: 2, 0xC6: 4}, {0xC7: 1, 0xC8: 2, 0xC9: 4}
"""Type code to the number of bytes of the length that follows."""
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = {0xCA: ">f", 0xCB: ">d"} | {0xCC + i: f">{form}" for i, form in enumerate("BHIQbhiq")}

Extend = Callable[[int, "Reader"], Any]


class Incomplete(ValueError):
    """The data ends too early, or is not msgpack."""


def _refuse(message: str) -> NoReturn:
    raise ZooError(message, HINT)


class Reader:
    """Reads consecutive msgpack values from ``data``.

    Args:
        data: the bytes.
        extend: builds a value from an extension's code and a reader of its payload.
    """

    def __init__(self, data: memoryview, extend: Extend | None = None) -> None:
        self.data = data
        self.extend = extend
        self.position = 0
        self.nodes = 0

    @property
    def left(self) -> int:
        """Number of unread bytes."""
        return len(self.data) - self.position

    def value(self, depth: int = 0) -> Any:
        """Read the next value.

        Raises:
            Incomplete: the data ends within it, or is not msgpack.
            ZooError: it is a list, too large or too deep, or has a key that is not a unique printable string.
        """
        self.nodes += 1
        if self.nodes > MAX_NODES:
            _refuse(f"it has more than {MAX_NODES:,} values.")
        first = self._take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0x90 or first in MAPS:
            return self._map(first - 0x80 if first < 0x90 else self._length(MAPS[first]), depth)
        if 0xA0 <= first < 0xC0 or first in TEXTS:
            return self._text(first - 0xA0 if first < 0xC0 else self._length(TEXTS[first]))
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first in NUMBERS:
            return struct.unpack(NUMBERS[first], self._take(struct.calcsize(NUMBERS[first])))[0]
        if first in BYTES:
            return self._take(self._length(BYTES[first]))
        if first in FIXED_EXTENSIONS or first in EXTENSIONS:
            size = FIXED_EXTENSIONS[first] if first in FIXED_EXTENSIONS else self._length(EXTENSIONS[first])
            return self._extension(size)
        if first < 0xA0 or first in LISTS:
            _refuse("it contains a list.")
        raise Incomplete

    def list_of(self, count: int) -> None:
        """Enter a list that must have ``count`` values."""
        if self._list() != count:
            raise Incomplete

    def sizes(self) -> list[Any]:
        """Read a list of up to :data:`MAX_AXES` numbers."""
        count = self._list()
        if count > MAX_AXES:
            _refuse(f"an array has {count:,} axes; the limit is {MAX_AXES}.")
        return [self.value() for _ in range(count)]

    def _list(self) -> int:
        first = self._take(1)[0]
        if 0x90 <= first < 0xA0:
            return first - 0x90
        if first not in LISTS:
            raise Incomplete
        return self._length(LISTS[first])

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        if depth > MAX_NESTING:
            _refuse("its maps are nested too deeply.")
        if count > MAX_LEAVES:
            _refuse(f"it contains a map of {count:,} entries; the limit is {MAX_LEAVES:,}.")
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(MAX_NESTING + 1)
            if not isinstance(key, str):
                _refuse(f"a key is {_describe_key(key)}, not a string.")
            if not key.isprintable():
                _refuse(f"the key {key[:80]!r} has control characters.")
            if key in entries:
                _refuse(f"the key {key[:80]!r} is repeated in a map.")
            entries[key] = self.value(depth + 1)
        return entries

    def _text(self, size: int) -> str:
        if size > MAX_TEXT:
            _refuse(f"it contains a string of {size:,} bytes; the limit is {MAX_TEXT:,}.")
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise Incomplete from error

    def _extension(self, size: int) -> Any:
        code = struct.unpack("b", self._take(1))[0]
        payload = self._take(size)
        if self.extend is None:
            _refuse("an array contains another extension.")
        return self.extend(code, Reader(payload))

    def _length(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise Incomplete
        view = self.data[self.position : end]
        self.position = end
        return view


def _describe_key(key: Any) -> str:
    """The type of a key that is not a string, and its value if it is a number."""
    if isinstance(key, memoryview):
        return "bytes"
    return f"{type(key).__name__} ({key})" if isinstance(key, int) else type(key).__name__
