"""Who says what about a checkpoint, and that nobody contradicts anybody.

The tree's shapes, its gin file, its kind of container, the registry and ``--set`` may all speak of one field. Each is
right or wrong; none overrides another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pylo_zoo import config, plain_yaml
from pylo_zoo.converters import FAMILIES, Family
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.formats import Source, gin

SETTINGS = "--set"


@dataclass(frozen=True)
class Statement:
    """Fields of an architecture or behaviour, and ``origin``, who gives them these values."""

    origin: str
    values: Mapping[str, Any]


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """``["ff_mult=1.0", …]``, as ``--set`` takes them with YAML values, as a mapping.

    Raises:
        ZooError: a pair has no ``=``, its value is not YAML, or a field has two values.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        field, equals, text = pair.partition("=")
        if not equals or not field:
            raise ZooError(f"{SETTINGS} {pair} is not field=value.", "Write it like --set ff_mult=1.0.")
        try:
            value = _numbers(plain_yaml.load(text))
        except plain_yaml.NotPlain as error:
            raise ZooError(
                f"{SETTINGS} {field}: {quoted(text)} is not YAML: {error}.", "Write lists as [0.9, 0.99, 0.999]."
            ) from error
        if field in settings and settings[field] != value:
            raise ZooError(f"{SETTINGS} gives {field} two values.", "Give it once.")
        settings[field] = value
    return settings


def from_source(family: Family, source: Source) -> list[Statement]:
    """What the files of ``source`` say besides its leaves: the gin configuration, and the kind of container.

    Raises:
        ZooError: the gin file configures another family, or something that this family's mathematics does not know.
    """
    statements = []
    if source.config is not None:
        for other in FAMILIES.values():
            if other.gin and other.name != family.name and gin.bindings(source.config, other.gin.name):
                raise ZooError(
                    f"config.gin configures {other.gin.name}, so this is a {other.name} checkpoint, not {family.name}.",
                    f"Convert it as {other.name}, or move a config.gin of another checkpoint away.",
                )
        if family.gin:
            read = family.gin.read(gin.bindings(source.config, family.gin.name))
            statements.append(Statement("config.gin", read))
    if said := family.containers.get(source.format):
        statements.append(Statement(f"the {source.format} container", said))
    return statements


def resolve_fields(
    family: Family, inferred: Any, statements: Sequence[Statement], fallback: Any | None = None
) -> tuple[Any, Any]:
    """The architecture and behaviour that all statements agree on.

    Args:
        family: the family.
        inferred: the architecture that the tree's shapes say.
        statements: what else is said, in the order in which contradictions are reported.
        fallback: behaviour where nobody says anything; by default the family's released values.

    Raises:
        ZooError: a field is unknown or malformed, or two statements differ.
    """
    fields = {field.name for kind in (family.architecture, family.behavior) for field in dataclasses.fields(kind)}
    for statement in statements:
        for name in statement.values:
            if name not in fields:
                raise ZooError(f"{statement.origin}: unknown field {quoted(name)}.", config.suggest(name, fields))
    tree = Statement("the tree of leaves", config.to_dict(inferred))
    return (
        _agree(inferred, [tree, *statements]),
        _agree(fallback or family.behavior(), statements),
    )


def _agree(record: Any, statements: Sequence[Statement]) -> Any:
    """``record`` with the fields that ``statements`` set, once they are shown to agree."""
    base, kind = config.to_dict(record), type(record)
    said: dict[str, tuple[str, Any]] = {}
    for statement in statements:
        for name in base.keys() & statement.values.keys():
            parsed = config.parse(kind, {**base, name: statement.values[name]}, statement.origin)
            value = getattr(parsed, name)
            origin, before = said.setdefault(name, (statement.origin, value))
            if before != value:
                raise ZooError(
                    f"{statement.origin} says {name} = {_plain(value)}, but {origin} says {_plain(before)}.",
                    "One of the two is wrong about this checkpoint; what its own files say cannot be overridden.",
                )
    return dataclasses.replace(record, **{name: value for name, (_, value) in said.items()})


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def _numbers(value: Any) -> Any:
    """``value`` with texts such as ``1e-3``, which YAML 1.1 takes for text, as numbers."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
