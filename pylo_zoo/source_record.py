"""The section ``source`` of an artifact's ``config.json``: its record and its strict parsing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    return SourceRecord(
        **{key: read_string(fields[key]) for key in texts},
        bytes=fields["bytes"].integer(1, MAX_INTEGER),
        layout=read_layout(fields["layout"]),
    )


def read_string(entry: Field) -> str:
    """A string of at most :data:`MAX_TEXT` characters that UTF-8 can encode."""
    text = entry.text(MAX_TEXT)
    if any("\ud800" <= character <= "\udfff" for character in text):  # half of a surrogate pair, valid in JSON
        raise entry.wrong("a string that UTF-8 can encode")
    return text


def read_layout(layout: Field) -> dict[str, Any]:
    """Validate ``layout`` and return it. Readers of checkpoints may record more fields, which nothing uses."""
    for name, entry in layout.mapping(lambda each: each, MAX_ENTRIES).items():
        if name in LAYOUT:
            LAYOUT[name](entry)
    return dict(layout.value)


def _text(field: Field) -> str:
    return field.printable(MAX_TEXT)


def _texts(field: Field) -> list[str]:
    return field.items(_text, MAX_ENTRIES, 1)


def _cast(field: Field) -> None:
    fields = field.fields(("to", "from"))
    _text(fields["to"])
    _texts(fields["from"])


def _header(field: Field) -> None:
    """A number, string or null of msgpack, or one number that flax stores as an extension."""
    if isinstance(field.value, dict):
        fields = field.fields(("ext", "dtype", "value"))
        fields["ext"].integer(-(2**63), 2**64 - 1)
        _text(fields["dtype"])
        fields["value"].number()
    elif field.value is not None and not isinstance(field.value, bool) and not is_finite(field.value):
        _text(field)


LAYOUT: Mapping[str, Callable[[Field], object]] = {
    "container": _text,
    "leaves": lambda field: field.items(_texts, MAX_ENTRIES, 1),
    "keys": _texts,
    "header": lambda field: field.mapping(_header, MAX_ENTRIES),
    "files": _texts,
    "exact": Field.boolean,
    "cast": _cast,
    "nonfinite": _texts,
    "ignored": _texts,
    "supplied": lambda field: field.mapping(lambda values: values.items(Field.number, MAX_ENTRIES), MAX_ENTRIES),
}
"""The reader of each known field of ``layout``."""
