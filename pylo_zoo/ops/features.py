"""Per-parameter features, their normalization, and the step from the MLP's outputs (SPEC §2–§6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.ops.accumulators import Factors
from pylo_zoo.ops.trace import record
from pylo_zoo.ops.transfer import constant, number

TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""τ of AdafacMLP's time features, in steps."""


class Inputs(NamedTuple):
    """The inputs of the features: the old parameter, the gradient, and the advanced accumulators."""

    p: Tensor
    """``[*shape]``"""
    g: Tensor
    """``[*shape]``"""
    m: Tensor
    """momentum ``[3, *shape]``"""
    v: Tensor
    """second moment ``[1, *shape]``"""
    factors: Factors
    rsqrt_eps: float
    """added to ``v`` under the root"""
    diag_eps: float
    """added to ``diag`` under the root in the unfactored ``factored_momentum``"""


def _rsqrt_v(x: Inputs) -> Tensor:
    return torch.rsqrt(x.v + x.rsqrt_eps)


def _factored_gradient(x: Inputs) -> Tensor:
    scaled = x.g * x.factors.row_factor
    return scaled if x.factors.col_factor is None else scaled * x.factors.col_factor


def _factored_momentum(x: Inputs) -> Tensor:
    if x.factors.col_factor is None:
        return x.m * torch.rsqrt(x.factors.row + x.diag_eps)
    return x.m * x.factors.row_factor * x.factors.col_factor


FEATURES: dict[str, Callable[[Inputs], Tensor]] = {
    "gradient": lambda x: x.g[None],
    "clipped_gradient": lambda x: x.g.clamp(-0.1, 0.1)[None],
    "parameter": lambda x: x.p[None],
    "momentum": lambda x: x.m,
    "second_moment": lambda x: x.v,
    "normalized_momentum": lambda x: x.m * _rsqrt_v(x),
    "rsqrt_second_moment": _rsqrt_v,
    "factored_gradient": _factored_gradient,
    "normalized_gradient": lambda x: x.g * _rsqrt_v(x),
    "row": lambda x: x.factors.row,
    "col": lambda x: x.factors.col,
    "rsqrt_row": lambda x: torch.rsqrt(x.factors.row + 1e-8),
    "rsqrt_col": lambda x: torch.rsqrt(x.factors.col + 1e-8),
    "factored_momentum": _factored_momentum,
}
"""Feature groups by name: ``[channels, *shape]``. An axis along which the feature is constant has size 1."""

VELO_FEATURES = tuple(FEATURES)
"""The 14 groups, 30 channels, of VeLO, Celo and CELO2, in order (SPEC §4)."""
CELO2_UNFACTORED_FEATURES = VELO_FEATURES[:9]
"""The 9 groups, 15 channels, of CELO2 for vectors and scalars (SPEC §6)."""
ADAFAC_FEATURES = tuple(name for name in FEATURES if name not in ("clipped_gradient", "normalized_gradient"))
"""The 12 groups, 28 channels, of AdafacMLP, μLO and ELO (SPEC §3)."""


def mean_square(x: Tensor, axes: Sequence[int]) -> Tensor:
    """``mean(x²)`` over ``axes``, which stay at size 1; the channel axis stays."""
    return x.square().mean(dim=tuple(axes), keepdim=True)


def normalize(x: Tensor, mean_square: Tensor, eps: float) -> Tensor:
    """``x · rsqrt(eps + mean(x²))`` (SPEC §2)."""
    return x * torch.rsqrt(eps + mean_square)


def columns(
    names: Sequence[str], inputs: Inputs, axes: Sequence[int], eps: float, means: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Normalized features of every element, ``[channels, n]`` with ``n = p.numel()``.

    Features that are constant along an axis are normalized before they expand over it, which does not change the mean.

    Args:
        names: feature groups, in order.
        inputs: the inputs of the features.
        axes: axes of the normalizer's means.
        eps: epsilon of the normalizer.
        means: the whole parameter's mean squares by name, if ``inputs`` are a part of it. Computed here by default.
    """
    shape = inputs.p.shape

    def group(name: str) -> Tensor:
        feature = FEATURES[name](inputs)
        normalized = normalize(feature, mean_square(feature, axes) if means is None else means[name], eps)
        record(f"features/{name}", feature)
        record(f"normalized/{name}", normalized)
        return normalized.expand(-1, *shape).flatten(1)

    return torch.cat([group(name) for name in names])


def time_features(step: Tensor, like: Tensor) -> Tensor:
    """AdafacMLP's time features ``tanh(t/τ − 1)``, ``[11]``; ``step`` is the 0-based t."""
    scales = constant(TIME_SCALES, like)
    features = torch.tanh(number(step, scales) / scales - 1)
    record("time_features", features)
    return features


def step_of(outputs: Tensor, shape: Sequence[int], exp_mult: float) -> Tensor:
    """``direction · exp(magnitude · exp_mult)`` in the parameter's shape, from MLP outputs ``[≥ 2, n]``."""
    direction, magnitude = outputs[0].view(*shape), outputs[1].view(*shape)
    record("direction", direction)
    record("magnitude", magnitude)
    return direction * torch.exp(magnitude * exp_mult)


def parameter_scale(p: Tensor) -> Tensor:
    """``sqrt(mean(p²) + 1e-9)`` over all axes, a scalar (SPEC §4, §6)."""
    scale = torch.sqrt(p.square().mean() + 1e-9)
    record("parameter_scale", scale)
    return scale
