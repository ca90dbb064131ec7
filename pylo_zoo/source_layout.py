"""Type checks for ``source.layout`` of an artifact's ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.parsing import is_finite

MAX_ENTRIES = 10_000
"""Longest list."""
MAX_TEXT = 1_024
CONVERT_AGAIN = "Convert the checkpoint again, or fetch the artifact again."


def check_layout(layout: Any, label: str) -> dict[str, Any]:
    """Validate ``layout`` and return it.

    Raises:
        ZooError: it is not an object, or one of its fields has the wrong type.
    """
    if not isinstance(layout, dict):
        raise ZooError(f"{label} is {quoted(layout)}.", CONVERT_AGAIN)
    for name, value in layout.items():
        is_valid, expected = FIELDS.get(name, (lambda value: True, ""))
        if not is_valid(value):
            raise ZooError(f"{label}.{name} is {quoted(value)}, not {expected}.", CONVERT_AGAIN)
    return layout


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _texts(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_ENTRIES and all(map(_text, value))


def _paths(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_ENTRIES and all(map(_texts, value))


def _cast(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"to", "from"} and _text(value["to"]) and _texts(value["from"])


def _supplied(value: Any) -> bool:
    def numbers(item: Any) -> bool:
        return isinstance(item, list) and len(item) <= MAX_ENTRIES and all(map(is_finite, item))

    return isinstance(value, dict) and all(map(numbers, value.values()))


def _header(value: Any) -> bool:
    def integer(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool) and -(2**63) <= item < 2**64

    def field(item: Any) -> bool:
        if isinstance(item, dict):
            known = item.keys() == {"ext", "dtype", "value"}
            return known and integer(item["ext"]) and _text(item["dtype"]) and is_finite(item["value"])
        return item is None or isinstance(item, bool) or integer(item) or _text(item) or is_finite(item)

    return isinstance(value, dict) and all(map(field, value.values()))


FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "container": (_text, "a string"),
    "leaves": (_paths, "a list of paths"),
    "keys": (_texts, "a list of strings"),
    "header": (_header, "an object of strings and numbers"),
    "files": (_texts, "a list of strings"),
    "exact": (lambda value: isinstance(value, bool), "true or false"),
    "cast": (_cast, "an object of `to` and `from`"),
    "nonfinite": (_texts, "a list of strings"),
    "ignored": (_texts, "a list of strings"),
    "supplied": (_supplied, "an object of lists of numbers"),
}
"""By field: the check, and the expected type for the error. Readers may record more fields; nothing uses those."""
