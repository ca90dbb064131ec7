"""Finds families: those that this package's modules define, and those of other packages (docs/adding-a-family.md).

Other packages declare families and registries as entry points. The groups are ``pylo_zoo.families`` (a ``Family``, or a
sequence of them) and ``pylo_zoo.registries`` (a file like ``registry.yaml`` inside the package, written
``package:file.yaml``). A broken entry point causes a warning.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module, metadata
from typing import Protocol, TypeVar

from pylo_zoo.errors import ZooError
from pylo_zoo.warn import warn

Value = TypeVar("Value")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


NamedValue = TypeVar("NamedValue", bound=_Named)

FAMILIES = "pylo_zoo.families"
REGISTRIES = "pylo_zoo.registries"


def defined_in(package: str, path: Iterable[str], kind: type[NamedValue]) -> dict[str, NamedValue]:
    """The instances of ``kind`` that are attributes of a package's modules, by their ``name``, which sorts them.

    Args:
        package: the name of the package. Its modules are imported.
        path: its ``__path__``.
        kind: the class. An instance may be an attribute of several modules.

    Raises:
        ZooError: two different instances have the same name.
    """
    values: dict[str, NamedValue] = {}
    for module in pkgutil.iter_modules(path):
        for value in vars(import_module(f"{package}.{module.name}")).values():
            if isinstance(value, kind) and values.setdefault(value.name, value) is not value:
                raise ZooError(f"{package} defines {value.name!r} twice.", "Choose another name in one of its modules.")
    return dict(sorted(values.items()))


def collect(
    group: str, load: Callable[[metadata.EntryPoint], Mapping[str, Value]], taken: Iterable[str]
) -> dict[str, Value]:
    """Load all entry points of ``group``, in the order of their packages' names.

    Args:
        group: the entry point group.
        load: reads the named values of one entry point. If it raises, the entry point is skipped.
        taken: reserved names. An entry point with a reserved name, or a name of an earlier one, is skipped as a whole.

    Warns:
        UserWarning: an entry point is skipped. The warning names its package.
    """
    reserved, collected = set(taken), {}
    for point in _entry_points(group):
        try:
            values = load(point)
            if clash := sorted((reserved | collected.keys()) & values.keys()):
                raise ZooError(f"the name {', '.join(clash)} exists already.", "Choose other names.")
        except Exception as error:  # third-party code may raise anything; it must not break this package
            reason = error.message if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"
            package = _package(point)
            warn(f"Skipped the {group} entry point {point.name!r} ({point.value}) of the package {package}: {reason}")
        else:
            collected |= values
    return collected


def _entry_points(group: str) -> Iterator[metadata.EntryPoint]:
    yield from sorted(metadata.entry_points(group=group), key=lambda point: (_package(point), point.name))


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "?"
