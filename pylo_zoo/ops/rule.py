"""The settings in which the learned rules differ. :mod:`pylo_zoo.ops.step` computes all of them."""

from __future__ import annotations

from dataclasses import dataclass

from pylo_zoo.ops.features import ADAFAC_FEATURES, CELO2_UNFACTORED_FEATURES, VELO_FEATURES


@dataclass(frozen=True)
class Rule:
    """A rule from gradient and accumulators to a step ``direction · exp(magnitude · exp_mult)`` (SPEC §2–§6)."""

    features: tuple[str, ...]
    """Names of feature groups (:data:`pylo_zoo.ops.features.FEATURES`), in the order of the network's inputs."""
    unfactored: tuple[str, ...]
    """The same for parameters whose second moment is not factored."""
    rsqrt_eps: float
    """Added to the second moment under the root."""
    diag_eps: float
    """Added to ``diag`` under the root, in the feature ``factored_momentum`` of a parameter that is not factored."""
    norm_eps: float
    """Added to a feature's mean square."""
    per_matrix: bool = False
    """Whether features are normalized over the last two axes in JAX layout, instead of over all axes."""
    time: bool = False
    """Whether AdafacMLP's time features follow the others."""
    activation: str = "relu"
    """``"relu"`` or ``"tanh"``, between the network's layers."""
    exp_mult: float = 0.001
    parameter_scale: bool = False
    """Whether the step is multiplied by ``sqrt(mean(p²) + 1e-9)``."""


def velo_rule(exp_mult: float) -> Rule:
    """The rule of VeLO and Celo (SPEC §4)."""
    return Rule(VELO_FEATURES, VELO_FEATURES, 1e-6, 0.0, 1e-5, exp_mult=exp_mult, parameter_scale=True)


def celo2_rule(activation: str, exp_mult: float, parameter_scale: bool) -> Rule:
    """The rule of CELO2, before orthogonalization (SPEC §6)."""
    return Rule(
        VELO_FEATURES,
        CELO2_UNFACTORED_FEATURES,
        1e-8,
        0.0,
        1e-9,
        per_matrix=True,
        activation=activation,
        exp_mult=exp_mult,
        parameter_scale=parameter_scale,
    )


def adafac_rule(exp_mult: float) -> Rule:
    """The rule of AdafacMLP, μLO and ELO (SPEC §3)."""
    return Rule(ADAFAC_FEATURES, ADAFAC_FEATURES, 1e-6, 1e-6, 1e-5, time=True, exp_mult=exp_mult)
