"""JAX theta trees to torch state_dicts and back: one file a checkpoint family, each a rename table.

>>> from pylo_zoo.converters import FAMILIES, to_torch
>>> family = FAMILIES["velo"]
>>> tensors = to_torch(family, leaves, family.infer(leaves))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pylo_zoo.converters.adafac import ADAFAC_MLP, MULO
from pylo_zoo.converters.base import Family, Leaves, leaf_shapes, structure_problems, to_jax, to_torch, value_problems
from pylo_zoo.converters.celo import CELO, CELO_ADAM
from pylo_zoo.converters.celo2 import CELO2, CELO2_BASE, ELO_CELO2
from pylo_zoo.converters.elo import ELO
from pylo_zoo.converters.velo import VELO
from pylo_zoo.errors import ZooError

__all__ = ["FAMILIES", "Family", "candidates", "diagnose", "get", "nearest", "to_jax", "to_torch"]

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (VELO, CELO, CELO_ADAM, CELO2, CELO2_BASE, ELO, ELO_CELO2, ADAFAC_MLP, MULO)}
)
"""Every family by the name that users type."""


def get(name: str) -> Family:
    """The family called ``name``."""
    if name not in FAMILIES:
        raise ZooError(f"There is no family {name!r}.", f"Known families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def candidates(leaves: Leaves) -> list[str]:
    """Names of the families whose names and shapes ``leaves`` have; more than one where families share a tree."""
    return [name for name, family in FAMILIES.items() if not _misfits(family, leaves)]


def diagnose(family: Family, leaves: Leaves) -> list[str]:
    """What keeps ``leaves`` from being this family's theta; empty where nothing does."""
    return [*_misfits(family, leaves), *value_problems("leaves", leaves)]


def _misfits(family: Family, leaves: Leaves) -> list[str]:
    try:
        return structure_problems("leaves", leaves, leaf_shapes(family, family.infer(leaves)))
    except ZooError as error:
        return [error.message]


def nearest(leaves: Leaves) -> Family:
    """The family that shares most leaf names with ``leaves``, to say what is wrong with a tree that fits none."""

    def distance(family: Family) -> tuple[int, int]:
        expected = {path for row in family.table(family.released) for path in row.leaves}
        return len(expected.symmetric_difference(leaves)), len(_misfits(family, leaves))

    return min(FAMILIES.values(), key=distance)
