"""Which leaves a conversion takes, what it was allowed to do to them, and the record of both in the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pylo_zoo import config, converters
from pylo_zoo.converters import Family
from pylo_zoo.converters.prepared import CASTABLE
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.formats import Source
from pylo_zoo.registry import Entry

CAST, ALLOW_NONFINITE = "--cast float32", "--allow-nonfinite"
FLOAT32_MAX = float(np.finfo(np.float32).max)
DTYPES = ("float32",)
"""What ``--cast`` casts to."""


@dataclass(frozen=True)
class ConversionPolicy:
    """What may be done to a checkpoint that is not float32, or not finite. Nothing happens where it is not needed.

    Attributes:
        cast: ``"float32"``, to round other floats to it.
        nonfinite: take NaN and infinities as they are.
    """

    cast: str | None = None
    nonfinite: bool = False

    def __post_init__(self) -> None:
        if self.cast is not None and self.cast not in DTYPES:
            raise ZooError(f"A checkpoint cannot be cast to {self.cast}.", f"Cast to {' or '.join(DTYPES)}.")


def take(
    family: Family, read: Source, entry: Entry | None, settings: Mapping[str, Any], allowed: ConversionPolicy
) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, Any], dict[str, Any]]:
    """The leaves of ``read`` as ``family`` converts them.

    Returns:
        The leaves, those settings that are none of them, and the source's layout with a record of what was done.

    Raises:
        ZooError: they are not this family's, or need a permission that is not given.
    """
    prepared = converters.prepare(family, read.leaves, read.dtypes, cast=allowed.cast is not None)
    if problems := converters.diagnose(family, prepared.leaves, prepared.dtypes, finite=not allowed.nonfinite):
        raise ZooError(
            f"{read.path.name} is no {family.name} checkpoint: {'; '.join(problems)}.",
            _hint(family, read, prepared.leaves, allowed),
        )
    supplied, rest = _supplied(family, read, entry, settings)
    leaves = prepared.leaves | supplied
    if problems := converters.diagnose(family, leaves, finite=not allowed.nonfinite):
        raise ZooError(f"{'; '.join(problems)}.", f"--set gives {', '.join(map('/'.join, supplied))}.")
    record = {
        "cast": {"to": allowed.cast, "from": list(prepared.cast)} if prepared.cast else None,
        "nonfinite": ["/".join(path) for path in nonfinite(leaves)],
        "ignored": list(prepared.ignored),
        "supplied": {"/".join(path): leaf.tolist() for path, leaf in supplied.items()},
    }
    return leaves, rest, {**read.layout, **{key: value for key, value in record.items() if value}}


def needed(family: Family, read: Source) -> list[str]:
    """The flags that permit what a conversion of ``read`` has to do."""
    prepared = converters.prepare(family, read.leaves, read.dtypes, cast=True)
    flags = {CAST: bool(prepared.cast), ALLOW_NONFINITE: bool(nonfinite(prepared.leaves))}
    return [flag for flag, needs in flags.items() if needs]


def nonfinite(leaves: Mapping[tuple[str, ...], np.ndarray]) -> list[tuple[str, ...]]:
    """Paths of the leaves with NaN or infinities."""
    return [path for path, leaf in leaves.items() if leaf.dtype.kind == "f" and not np.isfinite(leaf).all()]


def _hint(family: Family, read: Source, leaves: Mapping[tuple[str, ...], np.ndarray], allowed: ConversionPolicy) -> str:
    fits = converters.candidates(leaves, read.naming)
    if family.name in fits:
        strange = {dtype for dtype in read.dtypes.values() if dtype != "float32"} - CASTABLE
        given = {CAST: allowed.cast is not None, ALLOW_NONFINITE: allowed.nonfinite}
        flags = [flag for flag in needed(family, read) if not given[flag]]
        return "Weights are floats." if strange or not flags else f"If that is meant, convert with {' '.join(flags)}."
    if fits:
        return f"Its leaves fit {' or '.join(fits)}."
    return family.hint or f"`pylo-zoo inspect {read.path}` shows every leaf."


def _supplied(
    family: Family, read: Source, entry: Entry | None, settings: Mapping[str, Any]
) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, Any]]:
    """Learned decays that the file leaves out, from the registry or ``--set``, and the other settings."""
    names = {"/".join(path): path for path in sorted(family.optional)}
    said = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    absent = [name for name, path in names.items() if path not in read.leaves]
    if held := [name for name in said if name not in absent]:
        raise ZooError(f"--set gives {held[0]}, which {read.path.name} holds itself.", "Leave it out.")
    learned = entry.learned_decays if entry and absent else None
    if learned is not None:
        known = {"momentum_decays": learned.momentum, "rms_decays": learned.rms, "adafactor_decays": learned.adafactor}
        if differing := [name for name, value in said.items() if value != list(known[name])]:
            raise ZooError(
                f"--set gives {differing[0]} another value than the registry has for this file.", "Leave it out."
            )
        said = known
    if missing := [name for name in absent if name not in said]:
        raise ZooError(
            f"{read.path.name} lacks its learned decays, {', '.join(missing)}, and the registry does not know it.",
            "Give each, like --set rms_decays=[0.01]; `pylo-zoo info mulo` shows those of the published μLO.",
        )
    return {names[name]: _array(name, value) for name, value in said.items()}, rest


def _array(name: str, value: Any) -> np.ndarray:
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else ()
    if not items or not all(config.is_finite(item) and abs(item) <= FLOAT32_MAX for item in items):
        raise ZooError(f"--set {name} is {quoted(value)}.", "It must be a list of numbers, such as [0.1, 0.2, 0.3].")
    return np.array(items, np.float32)
