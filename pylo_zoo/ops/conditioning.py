"""What VeLO's and Celo's LSTM sees of the run and of each tensor (SPEC §4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
LOSS_DECAYS = 10
LOSS_MINIMUM_START = 999999999999.0
"""Where the running minimum of the loss averages starts."""
MAX_RANK = 5


def loss_decays(num_steps: int, like: Tensor) -> Tensor:
    """``exp(−1/h)`` for ten horizons ``h``, log-spaced from 10 to ``num_steps``: ``[10]`` in ``like``'s dtype."""
    exponents = torch.linspace(1, math.log10(num_steps), LOSS_DECAYS, dtype=like.dtype, device=like.device)
    return torch.exp(-1 / 10**exponents)


def advance_loss(average: Tensor, minimum: Tensor, step: Tensor, loss: Tensor, decays: Tensor) -> None:
    """Take one loss into the buffer, in place.

    Args:
        average: means μ of the loss ``[10]``, 0 at the start.
        minimum: running minimum r of the bias-corrected means ``[10]``.
        step: losses taken in so far, i, a scalar.
        loss: the new loss, a scalar; capped at twice the largest corrected mean.
        decays: ``[10]``.
    """
    cap = torch.where(step == 0, loss, (average / (1 - decays ** (step + 1))).max())
    loss = torch.minimum(2 * cap.abs(), loss)
    average.mul_(decays).add_((1 - decays) * loss)
    minimum.copy_(torch.minimum(minimum, average / (1 - decays ** (step + 1))))


def loss_features(average: Tensor, minimum: Tensor, step: Tensor, decays: Tensor) -> Tensor:
    """Nine features of the loss buffer after ``step`` losses: ``[9]`` in [−1, 1], zero while ``step ≤ 2``."""
    corrected = average / (1 - decays**step)
    ratios = (corrected[:-1] - minimum[:-1]) / (corrected[1:] - minimum[:-1]).clamp(min=1e-8)
    return torch.where(step <= 2, 0.0, (ratios - 1).clamp(-1, 1))


def fraction_features(step: Tensor, num_steps: int, like: Tensor) -> Tensor:
    """``tanh(10·(t/num_steps − τ))``: ``[9]``."""
    fractions = torch.tensor(FRACTIONS, dtype=like.dtype, device=like.device)
    return torch.tanh(10 * (step.to(like) / num_steps - fractions))


def tensor_features(p: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of one tensor from its parameter and old accumulators.

    Args:
        p: ``[*shape]``; m: ``[3, *shape]``; v: ``[1, *shape]``, all before this step's update.

    Returns:
        ``mean_rms [1]``, ``rank [5]``, ``var_m [3]``, ``var_rms [3]``, in the order that the LSTM reads them.
        ``var_rms`` is taken around the mean of *m*: a quirk that the weights were trained with.
    """
    axes = tuple(range(1, m.ndim))
    scale = torch.rsqrt(p.square().mean().clamp(min=1e-9))
    m, v = scale * m, scale * v
    mean_m = m.mean(dim=axes, keepdim=True)
    var_m = (m - mean_m).square().mean(dim=axes)
    var_rms = (v - mean_m).square().mean(dim=axes)
    rank = sum(size > 1 for size in p.shape)
    one_hot = torch.zeros(MAX_RANK, dtype=p.dtype, device=p.device)
    if rank < MAX_RANK:
        one_hot[rank] = 1
    return _log(v.mean(dim=axes)), one_hot, _log(var_m), _log(var_rms)


def _log(x: Tensor) -> Tensor:
    """``½·clip(ln(1e-8 + |10·x|), −5, 5)``."""
    return 0.5 * torch.log(1e-8 + (10 * x).abs()).clamp(-5, 5)
