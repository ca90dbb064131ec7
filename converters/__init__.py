"""Conversion of JAX theta trees and PyLO's tensors to torch state_dicts and back. Each family has a file of tables.

>>> from pylo_zoo.converters import FAMILIES, to_torch
>>> family = FAMILIES["velo"]
>>> tensors = to_torch(family, leaves, family.infer(leaves))  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from types import MappingProxyType

from pylo_zoo import plugins
from pylo_zoo.converters.base import Family, Leaves, Path, leaf_shapes
from pylo_zoo.converters.conversion import structure_problems, to_jax, to_torch, value_problems
from pylo_zoo.converters.prepared import Prepared, prepare, used_leaves
from pylo_zoo.errors import UsageError, ZooError, did_you_mean

__all__ = [
    "FAMILIES",
    "Family",
    "Prepared",
    "candidates",
    "diagnose",
    "get",
    "nearest",
    "prepare",
    "to_jax",
    "to_torch",
]

OWN = plugins.defined_in(__name__, __path__, Family)
"""The families of this package: every :class:`Family` that a module in it defines."""


class Families(Mapping[str, Family]):
    """Families by name, for one naming of their leaves: this package's, then those of other packages.

    Other packages are loaded when families are listed, or when a name is not one of this package's.
    """

    def __init__(self, named: Callable[[Family], Family | None]) -> None:
        self._named = functools.cache(named)

    def __getitem__(self, name: str) -> Family:
        family = self._named(OWN[name] if name in OWN else third_party()[name])
        if family is None:
            raise KeyError(name)
        return family

    def __iter__(self) -> Iterator[str]:
        families = {**OWN, **third_party()}
        return (name for name, family in families.items() if self._named(family) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@functools.cache
def third_party() -> Mapping[str, Family]:
    """The families that other installed packages declare, loaded once. A broken one is left out with a warning."""
    return MappingProxyType(plugins.collect(plugins.FAMILIES, _load_declared, OWN))


def _load_declared(point: EntryPoint) -> dict[str, Family]:
    value = point.load()
    families = (value,) if isinstance(value, Family) else tuple(value)
    for family in families:
        if not isinstance(family, Family):
            hint = "Declare a pylo_zoo.converters.Family, or a sequence of them."
            raise ZooError(f"{family!r} is not a Family.", hint)
        if not NAME.fullmatch(family.name):
            raise ZooError(f"{family.name!r} is not a valid family name.", "Use lower case, digits, - and _.")
    return {family.name: family for family in families}


NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
"""A valid name of a family."""

FAMILIES: Mapping[str, Family] = Families(lambda family: family)
"""Every family by the name that users type."""

NAMINGS: Mapping[str, Mapping[str, Family]] = MappingProxyType({"jax": FAMILIES, "pylo": Families(Family.in_pylo)})
"""The families, for each naming of their leaves."""


def get(name: str, naming: str = "jax") -> Family:
    """The family called ``name``, with its leaves named as in ``naming``.

    Raises:
        ZooError: the family is unknown, or it has no such naming.
    """
    if name not in FAMILIES:
        listing = f"Known families: {', '.join(FAMILIES)}."
        raise UsageError(f"Unknown family {name!r}.", did_you_mean(name, FAMILIES, listing))
    if name not in NAMINGS[naming]:
        raise ZooError(
            f"A torch file must have PyLO's names, and PyLO has none for {name}.",
            f"Pass the JAX checkpoint of {name}; PyLO publishes {', '.join(NAMINGS[naming])}.",
        )
    return NAMINGS[naming][name]


def candidates(leaves: Leaves, naming: str = "jax") -> list[str]:
    """Names of the families that match the names and shapes of ``leaves``. Several families can share a tree."""
    return [name for name, family in NAMINGS[naming].items() if not _misfits(family, leaves)]


def diagnose(
    family: Family, leaves: Leaves, dtypes: Mapping[Path, str] | None = None, *, finite: bool = True
) -> list[str]:
    """The differences of ``leaves`` from this family's theta, as sentences. Empty if they match.

    Args:
        family: the family.
        leaves: path to array.
        dtypes: names of the dtypes in the file, if they differ from the arrays'.
        finite: whether NaN and infinities are problems.
    """
    return [*_misfits(family, leaves), *value_problems("leaves", used_leaves(family, leaves), dtypes, finite=finite)]


def _misfits(family: Family, leaves: Leaves) -> list[str]:
    leaves = used_leaves(family, leaves)
    try:
        shapes = leaf_shapes(family, family.infer(leaves))
    except ZooError as error:
        return [error.message]
    left_out = family.optional - leaves.keys()
    return structure_problems("leaves", leaves, {path: shape for path, shape in shapes.items() if path not in left_out})


def nearest(leaves: Leaves, naming: str = "jax") -> Family:
    """The family that shares most leaf names with ``leaves``, for the error message of a tree without a match."""

    def distance(family: Family) -> tuple[int, int]:
        expected = {path for row in family.table(family.released) for path in row.leaves}
        return len(expected.symmetric_difference(leaves)), len(_misfits(family, leaves))

    return min(NAMINGS[naming].values(), key=distance)
