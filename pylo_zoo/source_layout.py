"""``source.layout`` of an artifact's ``config.json``: the types of its fields, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pylo_zoo.config import is_finite
from pylo_zoo.errors import ZooError, quoted

MOST = 10_000
"""Entries of a list."""
MAX_TEXT = 1_024
CONVERT_AGAIN = "Convert the checkpoint again, or fetch the artifact again."


def check_layout(layout: Any, what: str) -> dict[str, Any]:
    """``layout`` itself.

    Raises:
        ZooError: it is not an object, or one of its fields has the wrong type.
    """
    if not isinstance(layout, dict):
        raise ZooError(f"{what} is {quoted(layout)}.", CONVERT_AGAIN)
    for name, value in layout.items():
        sound, expected = FIELDS.get(name, (lambda value: True, ""))
        if not sound(value):
            raise ZooError(f"{what}.{name} is {quoted(value)}, not {expected}.", CONVERT_AGAIN)
    return layout


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _texts(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST and all(map(_text, value))


def _paths(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST and all(map(_texts, value))


def _cast(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"to", "from"} and _text(value["to"]) and _texts(value["from"])


def _supplied(value: Any) -> bool:
    def numbers(item: Any) -> bool:
        return isinstance(item, list) and len(item) <= MOST and all(map(is_finite, item))

    return isinstance(value, dict) and all(map(numbers, value.values()))


def _header(value: Any) -> bool:
    def whole(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool) and -(2**63) <= item < 2**64

    def field(item: Any) -> bool:
        if isinstance(item, dict):
            known = item.keys() == {"ext", "dtype", "value"}
            return known and whole(item["ext"]) and _text(item["dtype"]) and is_finite(item["value"])
        return item is None or isinstance(item, bool) or whole(item) or _text(item) or is_finite(item)

    return isinstance(value, dict) and all(map(field, value.values()))


FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "container": (_text, "a text"),
    "leaves": (_paths, "a list of paths"),
    "keys": (_texts, "a list of texts"),
    "header": (_header, "an object of texts and numbers"),
    "files": (_texts, "a list of texts"),
    "exact": (lambda value: isinstance(value, bool), "true or false"),
    "cast": (_cast, "an object of `to` and `from`"),
    "nonfinite": (_texts, "a list of texts"),
    "ignored": (_texts, "a list of texts"),
    "supplied": (_supplied, "an object of lists of numbers"),
}
"""By field: whether a value is sound, and what it should be. Readers may record more; nothing uses that."""
