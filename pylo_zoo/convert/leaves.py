"""Selects, casts and checks the leaves of a checkpoint, and records the changes for the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pylo_zoo import converters
from pylo_zoo.convert.statements import SETTINGS
from pylo_zoo.converters import Family
from pylo_zoo.converters.prepared import CASTABLE
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.formats import Source
from pylo_zoo.parsing import is_finite
from pylo_zoo.registry import Entry

CAST, ALLOW_NONFINITE = "--cast float32", "--allow-nonfinite"
ARGUMENTS = {CAST: "cast='float32'", ALLOW_NONFINITE: "nonfinite=True"}
"""Argument of :class:`ConversionPolicy` by flag."""
FLOAT32_MAX = float(np.finfo(np.float32).max)
DTYPES = ("float32",)
"""Choices of ``--cast``."""


@dataclass(frozen=True)
class ConversionPolicy:
    """Permitted changes of a checkpoint that is not float32 or not finite.

    Attributes:
        cast: ``"float32"`` to convert other floats to float32, or None to reject them.
        nonfinite: whether to accept NaN and infinities.
    """

    cast: str | None = None
    nonfinite: bool = False

    def __post_init__(self) -> None:
        if self.cast is not None and self.cast not in DTYPES:
            raise ZooError(f"A checkpoint cannot be cast to {self.cast}.", f"Cast to {' or '.join(DTYPES)}.")


def select_leaves(
    family: Family, source: Source, entry: Entry | None, settings: Mapping[str, Any], policy: ConversionPolicy
) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, Any], dict[str, Any]]:
    """The leaves of ``source`` that ``family`` converts.

    Returns:
        The leaves, the settings that are not leaves, and the source's layout with a record of the changes.

    Raises:
        ZooError: the leaves do not fit the family, or need a change that ``policy`` does not permit.
    """
    prepared = converters.prepare(family, source.leaves, source.dtypes, cast=policy.cast is not None)
    if problems := converters.diagnose(family, prepared.leaves, prepared.dtypes, finite=not policy.nonfinite):
        raise ZooError(
            f"{source.path.name} is not a checkpoint of the family {family.name}: {'; '.join(problems)}.",
            _hint(family, source, prepared.leaves, policy),
        )
    supplied, rest = _supplied(family, source, entry, settings)
    leaves = prepared.leaves | supplied
    if problems := converters.diagnose(family, leaves, finite=not policy.nonfinite):
        raise ZooError(f"{'; '.join(problems)}.", f"Correct {', '.join(map('/'.join, supplied))} in {SETTINGS}.")
    record = {
        "cast": {"to": policy.cast, "from": list(prepared.cast)} if prepared.cast else None,
        "nonfinite": ["/".join(path) for path in nonfinite(leaves)],
        "ignored": list(prepared.ignored),
        "supplied": {"/".join(path): leaf.tolist() for path, leaf in supplied.items()},
    }
    return leaves, rest, {**source.layout, **{key: value for key, value in record.items() if value}}


def required_flags(family: Family, source: Source) -> list[str]:
    """The flags of ``convert`` that permit the changes that ``source`` needs."""
    prepared = converters.prepare(family, source.leaves, source.dtypes, cast=True)
    flags = {CAST: bool(prepared.cast), ALLOW_NONFINITE: bool(nonfinite(prepared.leaves))}
    return [flag for flag, required in flags.items() if required]


def nonfinite(leaves: Mapping[tuple[str, ...], np.ndarray]) -> list[tuple[str, ...]]:
    """Paths of the leaves with NaN or infinities."""
    return [path for path, leaf in leaves.items() if leaf.dtype.kind == "f" and not np.isfinite(leaf).all()]


def _hint(
    family: Family, source: Source, leaves: Mapping[tuple[str, ...], np.ndarray], policy: ConversionPolicy
) -> str:
    fits = converters.candidates(leaves, source.naming)
    if family.name in fits:
        not_floats = {dtype for dtype in source.dtypes.values() if dtype != "float32"} - CASTABLE
        permitted = {CAST: policy.cast is not None, ALLOW_NONFINITE: policy.nonfinite}
        flags = [flag for flag in required_flags(family, source) if not permitted[flag]]
        if not_floats or not flags:
            return "Convert a checkpoint whose weights are floats."
        arguments = ", ".join(ARGUMENTS[flag] for flag in flags)
        return f"If that is intended, convert with {' '.join(flags)} (in Python, ConversionPolicy({arguments}))."
    if fits:
        return f"Convert it as {' or '.join(fits)}: its leaves fit."
    return family.hint or f"`pylo-zoo inspect {source.path}` shows its leaves."


def _supplied(
    family: Family, source: Source, entry: Entry | None, settings: Mapping[str, Any]
) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, Any]]:
    """Learned decays that the file omits, from the registry or the settings; and the other settings."""
    names = {"/".join(path): path for path in sorted(family.optional)}
    values = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    absent = [name for name, path in names.items() if path not in source.leaves]
    if redundant := [name for name in values if name not in absent]:
        raise ZooError(f"{source.path.name} already contains {redundant[0]}.", f"Remove it from {SETTINGS}.")
    learned = entry.learned_decays if entry and absent else None
    if learned is not None:
        known = {"momentum_decays": learned.momentum, "rms_decays": learned.rms, "adafactor_decays": learned.adafactor}
        if differing := [name for name, value in values.items() if value != list(known[name])]:
            name = differing[0]
            raise ZooError(
                f"{name} is {quoted(values[name])}, but the registry has {list(known[name])} for this file.",
                f"Remove it from {SETTINGS}.",
            )
        values = known
    if missing := [name for name in absent if name not in values]:
        raise ZooError(
            f"{source.path.name} lacks the learned decays {', '.join(missing)}, and the registry does not have them.",
            f"Pass each in {SETTINGS}, such as rms_decays=[0.01]; `pylo-zoo info mulo` shows those of μLO.",
        )
    return {names[name]: _array(name, value) for name, value in values.items()}, rest


def _array(name: str, value: Any) -> np.ndarray:
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else ()
    if not items or not all(is_finite(item) and abs(item) <= FLOAT32_MAX for item in items):
        raise ZooError(f"{name} is {quoted(value)}.", "It must be a list of numbers, such as [0.1, 0.2, 0.3].")
    return np.array(items, np.float32)
