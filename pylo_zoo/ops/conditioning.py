"""Inputs of VeLO's and Celo's LSTM: features of the run and of each tensor (SPEC §4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pylo_zoo.ops.transfer import constant

FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
LOSS_DECAYS = 10
LOSS_MINIMUM_START = 999999999999.0
"""Initial value of the running minimum of the loss averages."""
MAX_RANK = 5


def loss_decays(num_steps: int, like: Tensor) -> Tensor:
    """``exp(−1/h)`` for ten horizons ``h``, log-spaced from 10 to ``num_steps``: ``[10]``, in ``like``'s dtype."""
    exponents = torch.linspace(1, math.log10(num_steps), LOSS_DECAYS, dtype=like.dtype, device=like.device)
    return torch.exp(-1 / 10**exponents)


def advance_loss(average: Tensor, minimum: Tensor, step: Tensor, loss: Tensor, decays: Tensor) -> None:
    """Add one loss to the running averages, in place.

    Args:
        average: means μ of the loss ``[10]``, initially 0.
        minimum: running minimum r of the bias-corrected means ``[10]``.
        step: number of earlier losses, i, a scalar.
        loss: the new loss, a scalar, which is capped at twice the largest corrected mean.
        decays: ``[10]``.
    """
    cap = torch.where(step == 0, loss, (average / (1 - decays ** (step + 1))).max())
    loss = torch.minimum(2 * cap.abs(), loss)
    average.mul_(decays).add_((1 - decays) * loss)
    minimum.copy_(torch.minimum(minimum, average / (1 - decays ** (step + 1))))


def loss_features(average: Tensor, minimum: Tensor, step: Tensor, decays: Tensor) -> Tensor:
    """Nine features of the loss averages after ``step`` losses: ``[9]`` in [−1, 1], zero while ``step ≤ 2``."""
    corrected = average / (1 - decays**step)
    ratios = (corrected[:-1] - minimum[:-1]) / (corrected[1:] - minimum[:-1]).clamp(min=1e-8)
    return torch.where(step <= 2, 0.0, (ratios - 1).clamp(-1, 1))


def fraction_features(step: Tensor, num_steps: int, like: Tensor) -> Tensor:
    """The features ``tanh(10·(t/num_steps − τ))``: ``[9]``."""
    fractions = constant(FRACTIONS, like)
    return torch.tanh(10 * (step.to(like) / num_steps - fractions))


def moments(p: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """Statistics of one tensor for :func:`tensor_features`.

    Args:
        p: parameter ``[*shape]``, before this step's update.
        m: momentum ``[3, *shape]``, before this step's update.
        v: second moment ``[1, *shape]``, before this step's update.

    Returns:
        ``[9]``: the mean of p², the means ``[3]`` and variances ``[3]`` of m, the mean and the variance of v.
    """
    axes = tuple(range(1, m.ndim))
    var_m, mean_m = torch.var_mean(m, dim=axes, correction=0)
    var_v, mean_v = torch.var_mean(v, dim=axes, correction=0)
    return torch.cat([p.square().mean()[None], mean_m, var_m, mean_v, var_v])


def ranks(shapes: Sequence[Sequence[int]]) -> Tensor:
    """The number of axes longer than 1 of each shape, one-hot: ``[N, 5]``, all zeros for five axes or more."""
    counts = torch.tensor([sum(size > 1 for size in shape) for shape in shapes])
    return (counts[:, None] == torch.arange(MAX_RANK)).float()


def tensor_features(moments: Tensor, ranks: Tensor) -> Tensor:
    """Features of N tensors in the LSTM's order: mean_rms, rank, var_m, var_rms.

    ``var_rms`` subtracts the mean of *m*, not of *v*: the weights were trained with this quirk. The statistics are
    those of ``q·m`` and ``q·v``, where ``q`` is the inverse root of p's mean square.

    Args:
        moments: ``[N, 9]`` (:func:`moments`).
        ranks: one-hot numbers of axes, ``[N, 5]`` (:func:`ranks`).

    Returns:
        ``[N, 12]``.
    """
    square, mean_m, var_m, mean_v, var_v = moments.split([1, 3, 3, 1, 1], dim=1)
    scale = torch.rsqrt(square.clamp(min=1e-9))
    around_m = var_v + (mean_v - mean_m).square()
    return torch.cat(
        [_log(scale * mean_v), ranks.to(moments), _log(scale.square() * var_m), _log(scale.square() * around_m)], dim=1
    )


def _log(x: Tensor) -> Tensor:
    """``½·clip(ln(1e-8 + |10·x|), −5, 5)``."""
    return 0.5 * torch.log(1e-8 + (10 * x).abs()).clamp(-5, 5)
