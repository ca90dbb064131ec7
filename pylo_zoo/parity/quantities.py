"""The chain of an update: its intermediate quantities, in the order in which each depends on those before."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PARAMETER = "parameter"
"""The last link: the parameter after the step. Its errors are in units of the update, not of its value."""

PER_TENSOR = ("lstm_inputs", "lr_mult", "controls", "written/")
"""Quantities of all tensors at once, a row each."""

_FEATURES = {
    "gradient": "the gradient, as the rule conditions it",
    "clipped_gradient": "the gradient clipped to ±0.1",
    "parameter": "the parameter before the step",
    "momentum": "running means of the gradient",
    "second_moment": "running mean of the squared gradient",
    "normalized_momentum": "momentum · rsqrt(second moment + ε)",
    "rsqrt_second_moment": "rsqrt(second moment + ε)",
    "factored_gradient": "gradient · row factor · column factor",
    "normalized_gradient": "gradient · rsqrt(second moment + ε)",
    "row": "row accumulator, spread over the largest axis",
    "col": "column accumulator, spread over the second largest axis",
    "rsqrt_row": "rsqrt(row + 1e-8)",
    "rsqrt_col": "rsqrt(column + 1e-8)",
    "factored_momentum": "momentum · row factor · column factor",
}

QUANTITIES: Mapping[str, str] = MappingProxyType(
    {
        "loss_average": "running means of the loss (SPEC §4)",
        "loss_minimum": "running minimum of these means (SPEC §4)",
        "loss_features": "what the LSTM sees of the loss (SPEC §4)",
        "fraction_features": "what the LSTM sees of the progress of the run (SPEC §4)",
        "lstm_inputs": "inputs of the LSTM (SPEC §4)",
        "lstm_cell": "cell of the LSTM after the step (SPEC §4)",
        "lstm_hidden": "hidden state of the LSTM after the step (SPEC §4)",
        "lr_mult": "step size that the LSTM chose (SPEC §4)",
        "controls": "how the LSTM mixes the bank of MLPs (SPEC §4)",
        **{f"written/{k}": f"weights that the LSTM wrote, layer {k} (SPEC §4)" for k in range(9)},
        "features/gradient": "the gradient, as the rule conditions it (SPEC §3, §4)",
        "momentum": "running means of the gradient, after the step (SPEC §1)",
        "second_moment": "running mean of the squared gradient, after the step (SPEC §1)",
        "row": "factored second moment, averaged over the largest axis (SPEC §1)",
        "col": "factored second moment, averaged over the second largest axis (SPEC §1)",
        "diag": "second moment of an unfactored parameter (SPEC §1)",
        "row_factor": "rsqrt(row / (mean row + 1e-9)) (SPEC §1)",
        "col_factor": "rsqrt(column) (SPEC §1)",
        **{
            f"features/{name}": f"feature: {meaning} (SPEC §3, §4)"
            for name, meaning in _FEATURES.items()
            if name != "gradient"
        },
        **{f"normalized/{name}": f"the feature {name}, normalised (SPEC §2)" for name in _FEATURES},
        "time_features": "tanh(t/τ − 1) (SPEC §3)",
        "m_hat": "first moment of Adam's rule, bias-corrected (SPEC §5, §6)",
        "v_hat": "second moment of Adam's rule, bias-corrected (SPEC §5, §6)",
        "direction": "first output of the MLP; in Adam's rule, its direction (SPEC §3, §5, §6)",
        "magnitude": "second output of the MLP (SPEC §3)",
        "parameter_scale": "root mean square of the parameter (SPEC §4, §6)",
        "orthogonalized": "the step after Newton–Schulz (SPEC §6)",
        "step": "the step, before learning rate and weight decay (SPEC §3–§6)",
        "count": "steps taken so far",
        PARAMETER: "the parameter after the step",
    }
)
"""Name and meaning, first things first. Those of other packages' families come just before the last."""


_ORDER = {name: place for place, name in enumerate(QUANTITIES)}


def order(quantity: str) -> int:
    """Where ``quantity`` stands in the chain."""
    return _ORDER.get(quantity, _ORDER["count"])


def meaning(quantity: str) -> str:
    """What ``quantity`` is, in words."""
    return QUANTITIES.get(quantity, "a quantity of this family's own")
