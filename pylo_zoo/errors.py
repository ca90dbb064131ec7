"""The exceptions that the package raises for bad input, and helpers for their texts."""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Iterable
from typing import Any

MAX_LENGTH = 480
"""Maximum length of a message, and of a hint, in characters. With its label, a printed line stays under 500."""
MAX_WARNING = 1_000
"""Maximum length of a warning in characters, including quoted values."""
QUOTED = 80
"""Maximum length of a quoted value, in characters."""
TAIL = 3
"""A shortened text keeps its last third because file names and causes are at the end."""


class ZooError(ValueError):
    """Bad input, or an impossible request.

    Args:
        message: what is wrong, in one sentence.
        hint: what the user can do, in one sentence.

    Message and hint are one printable line of at most :data:`MAX_LENGTH` characters each, whatever input they quote.
    The command line prints them as an ``Error:`` and a ``Hint:`` line and exits with status 1.
    """

    def __init__(self, message: str, hint: str) -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


class UsageError(ZooError):
    """An argument that no file, download or machine can make valid: an unknown name, or a value out of range.

    The command line exits with status 2.
    """


def debugging() -> bool:
    """Whether ``PYLO_ZOO_DEBUG`` enables tracebacks and the messages of other libraries."""
    return os.environ.get("PYLO_ZOO_DEBUG", "0") not in ("", "0")


def quoted(value: Any) -> str:
    """``repr(value)`` in at most :data:`QUOTED` printable characters, for an error message.

    The cost is also bounded: only the first items of a YAML bomb, a deep or a recursive structure are visited. An
    integer with thousands of digits, which Python refuses to print, is described by its number of digits.
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
    """``text`` with control characters escaped, such as ``\\x1b[31m`` and line breaks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: str, limit: int = MAX_LENGTH) -> str:
    """``text`` in one printable line of at most ``limit`` characters."""
    bound = 2 * limit  # escaping only lengthens the text, so this cut stays invisible
    return shortened(printable(" ".join(shortened(text, bound).split())), limit)


def reason(error: BaseException) -> str:
    """The cause that ``error`` states, without an error number and the path, which the message names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def count(n: int, noun: str) -> str:
    """``1 leaf``, ``2 leaves``."""
    plural = {"leaf": "leaves", "loss": "losses", "quantity": "quantities", "family": "families"}.get(noun, noun + "s")
    return f"{n:,} {noun if n == 1 else plural}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name in ``known`` that is most similar to ``name``, or None.

    Args:
        name: a name that a user typed. Case is ignored, and ``_`` equals ``-``.
        known: the valid names.
        cutoff: the lowest accepted similarity, from 0 to 1.
    """
    folded = {_fold(each): each for each in known}
    return next((folded[each] for each in difflib.get_close_matches(_fold(name), folded, 1, cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], more: str = "") -> str:
    """A hint for the unknown ``name``: the name in ``known`` that is most similar, if one is, and then ``more``."""
    similar = nearest(name, known)
    return " ".join([*([f"Did you mean {similar!r}?"] if similar else []), *([more] if more else [])])


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


class _Bounded(reprlib.Repr):
    """The start of a value's repr, at bounded cost."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, QUOTED, QUOTED
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        """The number, or its number of digits if it has more than 40."""
        if abs(x) < 10**40:
            return repr(x)
        digits = int((x.bit_length() - 1) * math.log10(2)) + 1
        return f"a number of {digits + (abs(x) >= 10**digits):,} digits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """The first bytes."""
        return repr(x) if len(x) <= QUOTED else f"{x[:QUOTED]!r}…"
