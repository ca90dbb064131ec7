"""The section ``source`` of an artifact's ``config.json``: its record and its strict parsing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.parsing import MAX_INTEGER, Field, is_finite

MAX_ENTRIES = 10_000
"""Maximum length of a list."""
MAX_TEXT = 1_024
"""Maximum length of a name, address or version in ``config.json``, in characters."""
CONVERT_AGAIN = "Convert the checkpoint again, or fetch the artifact again."


@dataclass(frozen=True)
class SourceRecord:
    """Where the weights came from: names and hashes, never a local path.

    :func:`pylo_zoo.formats.write` rebuilds the source file's bytes from the leaves and ``layout``.
    """

    uri: str
    sha256: str
    bytes: int
    license: str
    format: str
    layout: Mapping[str, Any] = field(default_factory=dict)


def read_source(section: Field) -> SourceRecord:
    """Parse the section ``source``."""
    texts = ("uri", "sha256", "license", "format")
    fields = section.fields((*texts, "bytes", "layout"))
    layout = fields["layout"]
    return SourceRecord(
        **{key: read_string(fields[key]) for key in texts},
        bytes=fields["bytes"].integer(1, MAX_INTEGER),
        layout=check_layout(layout.value, layout.path),
    )


def read_string(entry: Field) -> str:
    """A string of at most :data:`MAX_TEXT` characters that UTF-8 can encode."""
    text = entry.text(MAX_TEXT)
    if any("\ud800" <= character <= "\udfff" for character in text):  # half of a surrogate pair, valid in JSON
        raise entry.wrong("a string that UTF-8 can encode")
    return text


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
