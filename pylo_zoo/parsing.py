"""Strict reading of parsed JSON and YAML: an error names the field by its path and quotes the value, shortened.

>>> root = Field({"lr": 0.1, "names": ["a", 3]}, "settings.json")
>>> fields = root.fields(("lr", "names"))
>>> fields["lr"].number()
0.1
>>> fields["names"].items(Field.text)
Traceback (most recent call last):
    ...
pylo_zoo.errors.ZooError: settings.json: names[1] is 3. It must be a string of at most 10,000 characters.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from pylo_zoo.errors import QUOTED, ZooError, did_you_mean, printable, quoted, shortened

T = TypeVar("T")

MAX_INTEGER = 2**63 - 1
"""Largest integer: numpy, torch and safetensors use int64."""
MAX_ITEMS = 2_000
MAX_TEXT = 10_000
MAX_SHOWN = 200
"""Maximum length of a list of valid values in an error, in characters."""


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number in the range of a float; booleans, NaN and infinities are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_integer(value: object, least: int, most: int) -> bool:
    """Whether ``value`` is an integer from ``least`` to ``most``; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_text(value: object, most: int = MAX_TEXT) -> bool:
    """Whether ``value`` is a string of at most ``most`` characters."""
    return isinstance(value, str) and len(value) <= most


_PROBLEMS = {
    "int": "{value} is not an integer.",
    "float": "{value} is not a number.",
    "bool": "{value} is not true or false.",
    "greater_than_equal": "{value} is less than {ge}, the smallest allowed value.",
    "less_than_equal": "{value} is more than {le}, the largest allowed value.",
    "value_error": "{error}",
}
"""Sentences for pydantic's types of errors; the part before ``_parsing`` or ``_type`` for those that have it."""


def describe_problem(problem: Mapping[str, Any]) -> str:
    """One sentence for an error of pydantic, an element of ``ValidationError.errors()``."""
    kind, value = problem["type"], quoted(problem["input"])
    sentence = _PROBLEMS.get(kind) or _PROBLEMS.get(kind.partition("_")[0], "{value} is not valid.")
    return sentence.format(value=value.strip("'") if "than" in kind else value, **problem.get("ctx", {}))


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The ``object_pairs_hook`` of a JSON parser that rejects repeated keys with a :class:`ValueError`."""
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError("an object has the same key twice")
    return unique


class Field:
    """A value in a parsed document. Each method checks the value and returns it, or raises :class:`ZooError`.

    Args:
        value: the value, as parsed.
        path: the name of the document, such as ``config.json``; fields in it are named ``config.json: source.uri``.
        hint: the hint of every error. Without it, an error's hint states which values are valid.
    """

    __slots__ = ("_joint", "hint", "path", "value")

    def __init__(self, value: Any, path: str, hint: str = "", *, _joint: str = ": ") -> None:
        self.value = value
        self.path = path
        self.hint = hint
        self._joint = _joint

    # --- errors --------------------------------------------------------------------------------------------------

    def wrong(self, expected: str) -> ZooError:
        """The error for a value that is not ``expected``."""
        if self.hint:
            return ZooError(f"{self.path} is {quoted(self.value)}, not {expected}.", self.hint)
        return ZooError(f"{self.path} is {quoted(self.value)}.", f"It must be {expected}.")

    def error(self, problem: str, hint: str = "") -> ZooError:
        """The error for another ``problem``, which continues a sentence that starts with the path."""
        return ZooError(f"{self.path}{problem}.", self.hint or hint)

    # --- objects and lists ---------------------------------------------------------------------------------------

    def fields(self, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Field]:
        """The fields of an object that has all ``keys``, may have those in ``optional``, and has no other."""
        values, required = self.object(), tuple(keys)
        known = (*required, *optional)
        if unknown := [key for key in values if key not in known]:
            listing = f"Known fields: {', '.join(sorted(known)) or 'none'}."
            hint = did_you_mean(str(unknown[0]), known, listing)
            raise self.error(f": unknown field {quoted(unknown[0])}", hint)
        if missing := [key for key in required if key not in values]:
            raise self.error(f": {', '.join(missing)} missing", "Add the missing fields.")
        return {key: self._child(value, self._joint + key) for key, value in values.items()}

    def mapping(self, item: Callable[[Field], T], most: int = MAX_ITEMS) -> dict[str, T]:
        """An object of at most ``most`` values with any keys, each read by ``item``."""
        values = self.object()
        if len(values) > most:
            raise self.error(f" has {len(values):,} fields", f"The limit is {most:,}.")
        for key in values:
            if not is_text(key):
                raise self.error(f" has the key {quoted(key)}", "A key must be a string.")
        return {
            key: item(self._child(value, self._joint + shortened(printable(key), QUOTED)))
            for key, value in values.items()
        }

    def items(self, item: Callable[[Field], T], most: int = MAX_ITEMS, least: int = 0) -> list[T]:
        """A list of ``least`` to ``most`` values, each read by ``item``."""
        if not isinstance(self.value, (list, tuple)) or not least <= len(self.value) <= most:
            raise self.wrong(f"a list of {f'{least:,} to' if least else 'at most'} {most:,} entries")
        return [item(self._child(value, f"[{place}]")) for place, value in enumerate(self.value)]

    def object(self) -> Mapping[Any, Any]:
        """An object."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("a mapping of names to values")
        return self.value

    def record(self, kind: type[T], ignored: Iterable[str] = ()) -> T:
        """An object with the fields of the dataclass ``kind``, each of its annotated type, and any ``ignored`` ones.

        The types are bool, int, float, str, Literal, tuples of these, and each ``| None``. An integer is positive
        unless the field's metadata contain another ``least``; they may also contain its ``most``.
        """
        hints = typing.get_type_hints(kind)
        fields = {each.name: each for each in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
        required = [each.name for each in fields.values() if each.default is dataclasses.MISSING]
        values = self.fields(required, (*(fields.keys() - {*required}), *ignored))
        known = {name: value for name, value in values.items() if name in fields}
        return kind(**{name: value.typed(hints[name], **fields[name].metadata) for name, value in known.items()})

    def _child(self, value: Any, suffix: str) -> Field:
        return Field(value, self.path + suffix, self.hint, _joint=".")

    # --- values --------------------------------------------------------------------------------------------------

    def typed(self, kind: Any, *, least: int = 1, most: int = MAX_INTEGER) -> Any:
        """A value of type ``kind``; see :meth:`record`. A list becomes a tuple."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (Union, types.UnionType):
            options = [each for each in arguments if each is not types.NoneType]
            return None if self.value is None else self.typed(options[0], least=least, most=most)
        if origin is Literal:
            return self.choice(arguments)
        if origin is tuple:
            if arguments[-1] is ...:
                return tuple(
                    self.items(lambda each: each.typed(arguments[0], least=least, most=most), most=MAX_INTEGER)
                )
            if not isinstance(self.value, (list, tuple)) or len(self.value) != len(arguments):
                raise self.wrong(f"a list of length {len(arguments)}")
            return tuple(self._child(each, f"[{i}]").typed(arguments[i]) for i, each in enumerate(self.value))
        readers = {bool: self.boolean, int: lambda: self.integer(least, most), float: self.number, str: self.text}
        return readers[kind]()

    def optional(self, item: Callable[[Field], T]) -> T | None:
        """The value that ``item`` reads, or None."""
        return None if self.value is None else item(self)

    def text(self, most: int = MAX_TEXT) -> str:
        """A string of at most ``most`` characters."""
        if not is_text(self.value, most):
            raise self.wrong(f"a string of at most {most:,} characters")
        return self.value

    def printable(self, most: int = MAX_TEXT, least: int = 0) -> str:
        """A string of ``least`` to ``most`` printable characters."""
        if not is_text(self.value, most) or len(self.value) < least or not self.value.isprintable():
            raise self.wrong(f"a string of {f'{least:,} to' if least else 'at most'} {most:,} printable characters")
        return self.value

    def match(self, pattern: re.Pattern[str], expected: str) -> str:
        """A string that ``pattern`` matches as a whole; ``expected`` describes it for the error."""
        if not isinstance(self.value, str) or not pattern.fullmatch(self.value):
            raise self.wrong(expected)
        return self.value

    def choice(self, known: Iterable[str]) -> str:
        """A string in ``known``."""
        if not isinstance(self.value, str) or self.value not in (known := tuple(known)):
            raise self.wrong(f"one of {shortened(', '.join(map(repr, known)), MAX_SHOWN)}")
        return self.value

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def integer(self, least: int, most: int) -> int:
        """An integer from ``least`` to ``most``."""
        if not is_integer(self.value, least, most):
            raise self.wrong(f"an integer from {least:,} to {'2**63 - 1' if most == MAX_INTEGER else f'{most:,}'}")
        return self.value

    def number(self) -> float:
        """A finite number."""
        if not is_finite(self.value):
            raise self.wrong("a finite number")
        return float(self.value)
