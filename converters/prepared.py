"""Preparing a file's leaves for conversion: leaving out scratch memory, and casting if allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pylo_zoo.converters.base import Family, Leaves, Path

CASTABLE = frozenset({"float16", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
"""Dtypes that ``--cast float32`` casts. Integers and booleans are not weights."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The result of :func:`prepare`.

    Attributes:
        leaves: path to array.
        dtypes: path to the name of the dtype in the file, or ``"float32"`` if the leaf was cast.
        cast: names of the dtypes that were cast.
        ignored: names of the leaves that were left out.
    """

    leaves: dict[Path, np.ndarray]
    dtypes: dict[Path, str]
    cast: tuple[str, ...]
    ignored: tuple[str, ...]


def prepare(family: Family, leaves: Leaves, dtypes: Mapping[Path, str], *, cast: bool) -> Prepared:
    """Leave out the leaves that ``family`` ignores. With ``cast``, round floats of other dtypes to float32."""
    kept = used_leaves(family, leaves)
    changed = {path for path in kept if cast and dtypes[path] in CASTABLE}
    with np.errstate(over="ignore"):  # the check for infinities comes later
        kept |= {path: kept[path].astype(np.float32) for path in changed}
    return Prepared(
        leaves=kept,
        dtypes={path: "float32" if path in changed else dtypes[path] for path in kept},
        cast=tuple(sorted({dtypes[path] for path in changed})),
        ignored=tuple("/".join(path) for path in leaves if path not in kept),
    )


def used_leaves(family: Family, leaves: Leaves) -> dict[Path, np.ndarray]:
    """``leaves`` without those that ``family`` ignores."""
    pattern = family.ignored
    return {path: leaf for path, leaf in leaves.items() if not (pattern and pattern.fullmatch("/".join(path)))}
