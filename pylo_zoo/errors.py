"""The one exception that the package raises for bad input, and how it quotes that input."""

from __future__ import annotations

import os
import reprlib
from typing import Any

LONGEST = 480
"""Characters of an error's message and of its hint: with its label, a line of the terminal's stays under 500."""
QUOTED = 80
"""Characters of a quoted value."""
TAIL = 3
"""A shortened text keeps its last third: file names and causes are at the end."""


class ZooError(ValueError):
    """Bad input, or a request that cannot be met.

    Args:
        message: what was wrong, in one sentence.
        hint: what the user can do about it, in one sentence.

    Both become one printable line of at most :data:`LONGEST` characters, whatever input they quote. The command line
    prints the two as an ``Error:`` and a ``Hint:`` line and exits with status 1.
    """

    def __init__(self, message: str, hint: str) -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


def debugging() -> bool:
    """Whether ``PYLO_ZOO_DEBUG`` asks for tracebacks, and for what other libraries print."""
    return os.environ.get("PYLO_ZOO_DEBUG", "0") not in ("", "0")


def quoted(value: Any) -> str:
    """``repr(value)`` in at most :data:`QUOTED` printable characters, for an error's message.

    The cost is bounded as well: of a YAML bomb, a deep or a recursive structure only the first items are looked at, and
    of a number with thousands of digits, which Python refuses to print, only the size.
    """
    try:
        text = _Bounded().repr(value)
    except Exception:  # a foreign object's own __repr__
        text = f"<{type(value).__name__}>"
    return shortened(printable(text), QUOTED)


def shortened(text: str, limit: int) -> str:
    """``text`` with its middle left out if it has more than ``limit`` characters."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // TAIL
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal would act upon, such as ``\\x1b[31m`` or a line break."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def one_line(text: str, limit: int = LONGEST) -> str:
    """``text`` in one printable line of at most ``limit`` characters."""
    room = 2 * limit  # escaping only lengthens: what is cut here cannot be shown
    return shortened(printable(" ".join(shortened(text, room).split())), limit)


class _Bounded(reprlib.Repr):
    """The start of a value's repr, at a bounded cost."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, QUOTED, QUOTED
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        """The number, or its size where it has more digits than anybody reads."""
        return repr(x) if abs(x) < 10**40 else f"a number of {int(x.bit_length() * 0.30103) + 1:,} digits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """The first bytes."""
        return repr(x) if len(x) <= QUOTED else f"{x[:QUOTED]!r}…"
