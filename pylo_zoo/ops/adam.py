"""Bias-corrected Adam direction (arXiv 1412.6980; SPEC §5, §6, §7)."""

from __future__ import annotations

import torch
from torch import Tensor

from pylo_zoo.ops.accumulators import advance
from pylo_zoo.ops.trace import note


def adam_direction(
    m: Tensor,
    v: Tensor,
    g: Tensor,
    count: Tensor,
    betas: tuple[Tensor, Tensor],
    eps: float,
    eps_root: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Advance the moments by ``g``, in place, and return ``m̂ / (eps + sqrt(v̂ + eps_root))``.

    Args:
        m: first moment ``[1, *shape]``; v: second moment ``[1, *shape]``.
        g: gradient ``[*shape]``.
        count: updates including this one, a scalar from 1 on.
        betas: decays of m and v, ``[1]`` each.
        eps: added outside the root; eps_root: added inside it.
        nesterov: look one step ahead: ``β1·m + (1 − β1)·g`` takes the place of ``m`` in ``m̂`` (NAdamW, SPEC §7).
    """
    beta1, beta2 = betas
    advance(m, g, beta1)
    advance(v, g.square(), beta2)
    m = beta1 * m + (1 - beta1) * g if nesterov else m
    m_hat, v_hat = m[0] / (1 - beta1**count), v[0] / (1 - beta2**count)
    note("m_hat", m_hat)
    note("v_hat", v_hat)
    direction = m_hat / (eps + torch.sqrt(v_hat + eps_root))
    note("direction", direction)
    return direction
