"""Interprets pickles without running code: the values are strings, numbers, containers and recorded calls.

Python's unpickler calls the functions that a file names and allocates the sizes that it declares (a memo index alone
can cost gigabytes). This machine supports the opcodes that protocols 2 to 5 use for trees of arrays. A call becomes a
:class:`Call`, which :mod:`pylo_zoo.formats.pickles` interprets. Every opcode costs constant memory, or as much as its
bytes in the file.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_TEXT, refuse

MAX_OPCODES = 50_000
"""VeLO's tree uses about two thousand."""
MAX_INTEGER_BYTES = 8


@dataclass(frozen=True)
class Global:
    """A permitted ``module.attribute`` name in the file."""

    name: str


@dataclass(eq=False)
class Call:
    """A recorded call ``function(*args)``, and the ``state`` and ``items`` that the file sets on its result."""

    function: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to data outside the pickle, such as a torch storage."""

    id: Any


HINT = "Save nested dicts of numpy or jax arrays; the code of a pickle is never run."


def _reject(problem: str) -> NoReturn:
    refuse(f"{problem}.", HINT)


class Machine:
    """Interprets one pickle.

    Args:
        data: the whole file.
        known: the permitted globals.
        persistent: whether references to data outside the pickle are permitted.
    """

    def __init__(self, data: bytes, known: Collection[str], *, persistent: bool = False) -> None:
        self.data = data
        self.position = 0
        self.known = known
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle.

        Raises:
            ZooError: the pickle is damaged, or uses an unknown global or an unsupported opcode.
        """
        if self.data[:1] != b"\x80" or self.data[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
            _reject("it is not a pickle of protocol 2 to 5")
        self.position = 2
        for _ in range(MAX_OPCODES):
            code = self._take(1)
            if code == b".":
                return self._end()
            handler = HANDLERS.get(code)
            if handler is None:
                names = (opcode.name for opcode in pickletools.opcodes if opcode.code == code.decode("latin1"))
                _reject(f"the pickle uses the opcode {next(names, repr(code))}")
            handler(self)
        _reject(f"the pickle has more than {MAX_OPCODES:,} opcodes")

    def _end(self) -> Any:
        if self.position != len(self.data) or len(self.stack) != 1 or self.marks:
            _reject("the pickle does not end where it should")
        return self.stack.pop()

    # --- reading and the stack -----------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        start, end = self.position, self.position + count
        if end > len(self.data):
            _reject("the pickle is truncated, or declares more bytes than it has")
        self.position = end
        return self.data[start:end]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_TEXT)
        if end < 0:
            _reject("a global's name does not end")
        text = _text(self._take(end - self.position))
        self.position += 1
        return text

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            _reject("the pickle pops a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        self.stack.append(value := self.pop())
        return value

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            _reject("the pickle pops a value from an empty stack")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # --- opcodes -------------------------------------------------------------------------------------------------

    def frame(self) -> None:
        if self._number(8) > len(self.data) - self.position:
            _reject("a frame declares more bytes than the pickle has")

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            _reject("the pickle refers to an undefined value")
        self.stack.append(self.memo[index])

    def integer(self) -> None:
        size = self._number(1)
        if size > MAX_INTEGER_BYTES:
            _reject(f"an integer has {size} bytes; the limit is {MAX_INTEGER_BYTES}")
        self.stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def text(self, size: int) -> None:
        self.stack.append(_text(self._take(self._number(size))))

    def bytes(self, size: int) -> None:
        self.stack.append(self._take(self._number(size)))

    def name(self, module: Any, attribute: Any) -> None:
        name = f"{module}.{attribute}" if isinstance(module, str) and isinstance(attribute, str) else "?"
        if name not in self.known:
            _reject(f"the pickle uses {name[:MAX_TEXT]!r}, which a tree of arrays does not need")
        self.stack.append(Global(name))

    def stack_global(self) -> None:
        attribute = self.pop()
        self.name(self.pop(), attribute)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(args, tuple):
            _reject("the pickle calls an unknown function")
        self.stack.append(Call(function.name, args))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call) or target.state is not None or state is None:
            _reject("the pickle sets the state of a value that does not permit it")
        target.state = state

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            _reject("the pickle appends to a value that is not a list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        items = target.items if isinstance(target, Call) else target
        if not isinstance(items, dict) or len(values) % 2:
            _reject("the pickle sets items of a value that is not a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                _reject(f"a key is {type(key).__name__}, not a string")
            if len(key) > MAX_TEXT:
                _reject(f"the key {key[:40]!r}… has {len(key):,} characters")
            if key in items:
                _reject(f"the key {key[:80]!r} is repeated in a dict")
            items[key] = value

    def persistent_id(self) -> None:
        if not self.persistent:
            _reject("the pickle refers to something outside itself")
        self.stack.append(Persistent(self.pop()))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZooError("a string in the pickle is not UTF-8.", HINT) from error


def _push(make: Callable[[], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(make())


def _unpacked(form: str) -> Callable[[Machine], None]:
    size = struct.calcsize(form)
    return lambda machine: machine.stack.append(struct.unpack(form, machine._take(size))[0])


HANDLERS: dict[bytes, Callable[[Machine], None]] = {
    b"\x95": Machine.frame,
    b"(": Machine.mark,
    b"N": _push(lambda: None),
    b"\x88": _push(lambda: True),
    b"\x89": _push(lambda: False),
    b"}": _push(dict),
    b"]": _push(list),
    b")": _push(tuple),
    b"J": _unpacked("<i"),
    b"K": _unpacked("<B"),
    b"M": _unpacked("<H"),
    b"G": _unpacked(">d"),
    b"\x8a": Machine.integer,
    b"X": lambda machine: machine.text(4),
    b"\x8c": lambda machine: machine.text(1),
    b"\x8d": lambda machine: machine.text(8),
    b"B": lambda machine: machine.bytes(4),
    b"C": lambda machine: machine.bytes(1),
    b"\x8e": lambda machine: machine.bytes(8),
    b"\x96": lambda machine: machine.bytes(8),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"t": lambda machine: machine.stack.append(tuple(machine.pop_marked())),
    b"a": lambda machine: machine.append([machine.pop()]),
    b"e": lambda machine: machine.append(machine.pop_marked()),
    b"s": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    b"u": lambda machine: machine.set_items(machine.pop_marked()),
    b"q": lambda machine: machine.put(machine._number(1)),
    b"r": lambda machine: machine.put(machine._number(4)),
    b"\x94": lambda machine: machine.put(len(machine.memo)),
    b"h": lambda machine: machine.get(machine._number(1)),
    b"j": lambda machine: machine.get(machine._number(4)),
    b"c": lambda machine: machine.name(machine._line(), machine._line()),
    b"\x93": Machine.stack_global,
    b"R": Machine.call,
    b"\x81": Machine.call,
    b"b": Machine.build,
    b"Q": Machine.persistent_id,
}
"""The handler of each supported opcode; all others are rejected."""
