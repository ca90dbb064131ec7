"""Collects what each source states about a checkpoint's fields, and requires that they agree.

The tree's shapes, the gin file, the container, the registry and the settings may all state a value for one field. No
source overrides another: two different values are an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pylo_zoo import config, plain_yaml
from pylo_zoo.converters import FAMILIES, Family
from pylo_zoo.errors import UsageError, ZooError, quoted
from pylo_zoo.formats import Source, gin
from pylo_zoo.parsing import Field

OPTION = "--set"
SETTINGS = f"the settings ({OPTION})"
"""How errors name the ``settings`` argument of a conversion."""


@dataclass(frozen=True)
class Statement:
    """Values of architecture or behavior fields, and their ``origin``, as an error names it."""

    origin: str
    values: Mapping[str, Any]


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse the arguments of ``--set``, such as ``["ff_mult=1.0", …]`` with YAML values.

    Raises:
        ZooError: a pair has no ``=``, a value is not YAML, or a field has two values.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        field, equals, text = pair.partition("=")
        if not equals or not field:
            raise UsageError(f"{OPTION} {pair} is not FIELD=VALUE.", f"Write it like {OPTION} ff_mult=1.0.")
        try:
            value = _parse_floats(plain_yaml.load(text))
        except plain_yaml.NotPlain as error:
            raise UsageError(
                f"{OPTION} {field}: {quoted(text)} is not YAML: {error}.", "Write lists as [0.9, 0.99, 0.999]."
            ) from error
        if field in settings and settings[field] != value:
            raise UsageError(f"{OPTION} has two values for {field}.", "Set it once.")
        settings[field] = value
    return settings


def from_source(family: Family, source: Source) -> list[Statement]:
    """The statements of the gin file and of the container.

    Raises:
        ZooError: the gin file configures another family, or a setting that this family does not support.
    """
    statements = []
    if source.config is not None:
        for other in FAMILIES.values():
            if other.gin and other.name != family.name and gin.bindings(source.config, other.gin.name):
                raise ZooError(
                    f"config.gin configures {other.gin.name}, so this is a {other.name} checkpoint, not {family.name}.",
                    f"Convert it as {other.name}, or remove config.gin if it belongs to another checkpoint.",
                )
        if family.gin:
            values = family.gin.read(gin.bindings(source.config, family.gin.name))
            statements.append(Statement("config.gin", values))
    if values := family.containers.get(source.format):
        statements.append(Statement(f"the {source.format} container", values))
    return statements


def resolve_fields(
    family: Family, inferred: Any, statements: Sequence[Statement], fallback: Any | None = None
) -> tuple[Any, Any]:
    """Merge all statements into an architecture and a behavior.

    Args:
        family: the family.
        inferred: the architecture inferred from the tree's shapes.
        statements: the other statements; contradictions are reported in this order.
        fallback: behavior for fields without a statement; by default the family's released values.

    Raises:
        ZooError: a field is unknown or malformed, or two statements differ.
    """
    fields = {field.name for kind in (family.architecture, family.behavior) for field in dataclasses.fields(kind)}
    for statement in statements:
        with _usage_errors(statement.origin):
            Field(statement.values, statement.origin).fields((), optional=fields)
    tree = Statement("the tree of leaves", config.to_dict(inferred))
    return (
        _merge(inferred, [tree, *statements]),
        _merge(fallback or family.behavior(), statements),
    )


def _merge(record: Any, statements: Sequence[Statement]) -> Any:
    """``record`` with the values of ``statements``; raise ZooError if two differ."""
    base, kind = config.to_dict(record), type(record)
    merged: dict[str, tuple[str, Any]] = {}
    for statement in statements:
        for name in base.keys() & statement.values.keys():
            with _usage_errors(statement.origin):
                parsed = config.parse(kind, {**base, name: statement.values[name]}, statement.origin)
            value = getattr(parsed, name)
            origin, first = merged.setdefault(name, (statement.origin, value))
            if first != value:
                raise ZooError(
                    f"{name} is {_format(value)} in {statement.origin}, but {_format(first)} in {origin}.",
                    "Correct the wrong one; the checkpoint's files cannot be overridden.",
                )
    return dataclasses.replace(record, **{name: value for name, (_, value) in merged.items()})


@contextmanager
def _usage_errors(origin: str) -> Iterator[None]:
    """Raise errors of the block as :class:`UsageError` if ``origin`` is the settings, which the user gave."""
    try:
        yield
    except ZooError as error:
        if origin != SETTINGS:
            raise
        raise UsageError(error.message, error.hint) from None


def _format(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def _parse_floats(value: Any) -> Any:
    """Convert strings such as ``1e-3``, which are not numbers in YAML 1.1, to floats."""
    if isinstance(value, list):
        return [_parse_floats(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
