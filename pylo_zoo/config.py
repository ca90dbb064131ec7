"""Frozen, strictly validated architecture and behavior records of a checkpoint.

An artifact's ``config.json`` stores one ``architecture`` and one ``behavior`` record of its family. Every value that
meta-training fixed is stored there, never in a class default of the optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pylo_zoo.parsing import Field

Record = TypeVar("Record")

Triple = tuple[float, float, float]
MOMENTUM_DECAYS: Triple = (0.9, 0.99, 0.999)
RMS_DECAYS: tuple[float] = (0.999,)
ADAFACTOR_DECAYS: Triple = (0.9, 0.99, 0.999)


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
    ns_iters: int = field(default=5, metadata={"most": 100})  # a loop count in each step
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
    return Field(values, label).record(record)


def to_dict(record: Any) -> dict[str, Any]:
    """The fields of ``record`` for JSON, with lists instead of tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(record).items()
    }
