"""Frozen, strictly validated architecture and behavior records of a checkpoint.

An artifact's ``config.json`` stores one ``architecture`` and one ``behavior`` record of its family. Every value that
meta-training fixed is stored there, never in a class default of the optimizer.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from pylo_zoo.errors import ZooError, did_you_mean, quoted

Record = TypeVar("Record")

Triple = tuple[float, float, float]
MOMENTUM_DECAYS: Triple = (0.9, 0.99, 0.999)
RMS_DECAYS: tuple[float] = (0.999,)
ADAFACTOR_DECAYS: Triple = (0.9, 0.99, 0.999)

LIMITS: Mapping[str, int] = {"ns_iters": 100}
"""Upper bounds of fields that set a loop count in a step."""


# --- architectures: inferred from the shapes of the leaves ----------------------------------------------------------


@dataclass(frozen=True)
class HyperNetArchitecture:
    """VeLO and Celo: a per-tensor LSTM generates per-parameter MLP weights (SPEC §4, §5)."""

    lstm_hidden_size: int
    param_inits: int
    ff_hidden_size: int
    ff_hidden_layers: int


@dataclass(frozen=True)
class ControllerArchitecture:
    """celo-adam: only the LSTM (SPEC §5)."""

    lstm_hidden_size: int


@dataclass(frozen=True)
class CELO2Architecture:
    """CELO2, CELO2-base and ELO-CELO2: a per-parameter MLP (SPEC §6)."""

    ff_hidden_size: int
    ff_hidden_layers: int


@dataclass(frozen=True)
class MLPArchitecture:
    """AdafacMLP, μLO and ELO: a per-parameter MLP with 39 input features (SPEC §3)."""

    hidden_size: int
    hidden_layers: int


# --- behavior: not visible in any shape ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CeloBehavior:
    """Celo (SPEC §5). The defaults are the released values."""

    step_mult: float = 0.001
    exp_mult: float = 0.001
    initial_momentum_decays: Triple = MOMENTUM_DECAYS
    initial_rms_decays: tuple[float] = RMS_DECAYS
    initial_adafactor_decays: Triple = ADAFACTOR_DECAYS


@dataclass(frozen=True)
class VeLOBehavior(CeloBehavior):
    """VeLO (SPEC §4). The defaults are the released values."""

    ff_mult: float = 100.0
    use_bugged_next_lstm_state: bool = False
    use_bugged_loss_features: bool = False


@dataclass(frozen=True)
class CeloAdamBehavior:
    """celo-adam (SPEC §5)."""

    step_mult: float = 0.001
    initial_momentum_decays: tuple[float] = (0.9,)
    initial_rms_decays: tuple[float] = RMS_DECAYS


@dataclass(frozen=True)
class CELO2Behavior:
    """CELO2 and ELO-CELO2 (SPEC §6)."""

    mlp_activation: Literal["relu", "tanh"] = "relu"
    exp_mult: float = 0.0
    param_scale_mult: bool = False
    orthogonalize: bool = True
    rmsmult: float = 1.0
    ns_coeffs: Triple = (3.4445, -4.7750, 2.0315)
    ns_iters: int = 5
    ns_eps: float = 1e-8
    initial_momentum_decays: Triple = MOMENTUM_DECAYS
    initial_rms_decays: tuple[float] = (0.95,)
    initial_adafactor_decays: Triple = ADAFACTOR_DECAYS


@dataclass(frozen=True)
class CELO2BaseBehavior(CELO2Behavior):
    """CELO2-base: the learned rule for every parameter, without orthogonalization (SPEC §6)."""

    orthogonalize: bool = False


@dataclass(frozen=True)
class ELOBehavior:
    """ELO (SPEC §3)."""

    exp_mult: float = 0.001
    initial_momentum_decays: Triple = MOMENTUM_DECAYS
    initial_rms_decays: tuple[float] = RMS_DECAYS
    initial_adafactor_decays: Triple = ADAFACTOR_DECAYS


@dataclass(frozen=True)
class AdafacBehavior(ELOBehavior):
    """AdafacMLP, small_fc_lopt (SPEC §3)."""

    step_mult: float = 0.001


@dataclass(frozen=True)
class MuLOBehavior(AdafacBehavior):
    """μLO (SPEC §3)."""

    step_mult: float = 0.01


LARGEST = 2**63 - 1
"""Largest integer: numpy, torch and safetensors use int64."""


# --- reading -----------------------------------------------------------------------------------------------------


def parse(record: type[Record], values: Mapping[str, Any], label: str) -> Record:
    """Build ``record`` from ``values``.

    Args:
        record: one of the dataclasses above, or a third party's.
        values: field name to value, as parsed from JSON or YAML (with lists instead of tuples).
        label: the name of ``values`` in an error, such as ``"behavior"``.

    Raises:
        ZooError: a field is unknown, missing, of the wrong type or out of range.
    """
    hints = typing.get_type_hints(record)
    fields = {field.name: field for field in dataclasses.fields(record)}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in fields:
            raise ZooError(f"{label}: unknown field {quoted(name)}.", suggest(str(name), fields))
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    for name, limit in LIMITS.items():
        if isinstance(value := values.get(name), int) and value > limit:
            raise ZooError(f"{label}: {name} is {str(value)[:24]}.", f"The largest {name} is {limit}.")
    if missing:
        raise ZooError(f"{label}: {', '.join(missing)} missing.", "Add the missing fields.")
    return record(**{name: _coerce(hints[name], value, f"{label}: {name}") for name, value in values.items()})


def to_dict(record: Any) -> dict[str, Any]:
    """The fields of ``record`` for JSON, with lists instead of tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(record).items()
    }


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number in the range of a float; booleans, NaN and infinities are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def suggest(name: str, known: Collection[str]) -> str:
    """A hint for an unknown field: the most similar known field, and all known fields."""
    return did_you_mean(name, known, f"Known fields: {', '.join(sorted(known)) or 'none'}.")


def _coerce(kind: Any, value: Any, label: str) -> Any:
    """Convert ``value`` to type ``kind`` (bool, int, float, str, Literal, tuple, optional), or raise ZooError."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
        return _coerce(kind, value, label)
    if origin is Literal:
        if isinstance(value, str) and value in typing.get_args(kind):
            return value
        raise ZooError(
            f"{label} is {quoted(value)}.", f"It must be one of {', '.join(map(repr, typing.get_args(kind)))}."
        )
    if origin is tuple:
        items = typing.get_args(kind)
        if isinstance(value, (list, tuple)) and len(value) == len(items):
            return tuple(_coerce(item, each, label) for item, each in zip(items, value, strict=True))
        raise ZooError(f"{label} is {quoted(value)}.", f"It must be a list of length {len(items)}.")
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST:
        return value
    if kind is float and is_finite(value):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    expected = {
        bool: "true or false",
        int: "a positive integer below 2**63",
        float: "a finite number",
        str: "a string",
    }[kind]
    raise ZooError(f"{label} is {quoted(value)}.", f"It must be {expected}.")
