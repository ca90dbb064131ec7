"""What other installed packages declare under our entry points, docs/adding-a-family.md: a broken one costs a warning.

The groups are ``pylo_zoo.families`` (a ``Family``, or a sequence of them) and ``pylo_zoo.registries`` (a file like
``registry.yaml`` inside the package, written ``package:file.yaml``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import TypeVar

from pylo_zoo.errors import ZooError
from pylo_zoo.warn import warn

Value = TypeVar("Value")

FAMILIES = "pylo_zoo.families"
REGISTRIES = "pylo_zoo.registries"


def collect(
    group: str, load: Callable[[metadata.EntryPoint], Mapping[str, Value]], taken: Iterable[str]
) -> dict[str, Value]:
    """What the entry points of ``group`` name, in the order of their packages' names.

    Args:
        group: the group.
        load: reads one entry point as names and values; whatever it raises leaves that entry point out.
        taken: names that no entry point may take. Of two that claim a name the second is left out, whole.

    Warns:
        UserWarning: once an entry point that is left out, naming its package.
    """
    taken, found = set(taken), {}
    for point in _entry_points(group):
        try:
            values = load(point)
            if clash := sorted((taken | found.keys()) & values.keys()):
                raise ZooError(f"{', '.join(clash)} is there already.", "Names are given once.")
        except Exception as error:  # the code of others: any failure is theirs, and must not become ours
            why = error.message if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"
            what = f"{group} entry point {point.name!r} ({point.value}) of the package {_package(point)}"
            warn(f"The {what} is left out: {why}")
        else:
            found |= values
    return found


def _entry_points(group: str) -> Iterator[metadata.EntryPoint]:
    yield from sorted(metadata.entry_points(group=group), key=lambda point: (_package(point), point.name))


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "?"
