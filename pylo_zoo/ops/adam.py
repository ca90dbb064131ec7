"""Bias-corrected Adam direction (arXiv 1412.6980; SPEC §5, §6, §7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pylo_zoo.ops.accumulators import advance
from pylo_zoo.ops.apply import foreach
from pylo_zoo.ops.trace import record


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
        m: first moment ``[1, *shape]``.
        v: second moment ``[1, *shape]``.
        g: gradient ``[*shape]``.
        count: number of updates including this one, a scalar.
        betas: decays of m and v, ``[1]`` each.
        eps: added outside the root.
        eps_root: added inside the root.
        nesterov: use ``β1·m + (1 − β1)·g`` instead of ``m`` in ``m̂`` (NAdamW, SPEC §7).
    """
    beta1, beta2 = betas
    advance(m, g, beta1)
    advance(v, g.square(), beta2)
    m = beta1 * m + (1 - beta1) * g if nesterov else m
    m_hat, v_hat = m[0] / (1 - beta1**count), v[0] / (1 - beta2**count)
    record("m_hat", m_hat)
    record("v_hat", v_hat)
    direction = m_hat / (eps + torch.sqrt(v_hat + eps_root))
    record("direction", direction)
    return direction


def adam_directions(
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    g: Sequence[Tensor],
    counts: Sequence[int] | Tensor,
    betas: tuple[float, float],
    eps: float,
    nesterov: bool = False,
) -> list[Tensor]:
    """:func:`adam_direction` for many parameters, with ``torch._foreach_*``. The two agree to rounding.

    Args:
        m, v, g: moments and gradients ``[*shape]``, of one dtype, on one device.
        counts: number of updates of each parameter, including this one: numbers, or int64 ``[N]`` on the device of the
            moments, which is not read.
        betas, eps, nesterov: as in :func:`adam_direction`, with ``eps_root`` 0.
    """
    beta1, beta2 = betas
    foreach._foreach_lerp_(m, g, 1 - beta1)
    foreach._foreach_mul_(v, beta2)
    foreach._foreach_addcmul_(v, g, g, value=1 - beta2)
    # m/c1 / (sqrt(v/c2) + eps) = m / (sqrt(v)·c1/sqrt(c2) + eps·c1)
    if isinstance(counts, Tensor):
        divisors = _divisors(v, counts, betas, eps)
    else:
        divisors = list(foreach._foreach_sqrt(v))
        for count, same in _by_count(counts, divisors).items():
            c1, root = 1 - beta1**count, math.sqrt(1 - beta2**count)
            foreach._foreach_mul_(same, c1 / root)
            foreach._foreach_add_(same, eps * c1)
    if not nesterov:
        return list(foreach._foreach_div(m, divisors))
    numerators = foreach._foreach_lerp(g, m, beta1)
    foreach._foreach_div_(numerators, divisors)
    return list(numerators)


def _divisors(v: Sequence[Tensor], counts: Tensor, betas: tuple[float, float], eps: float) -> list[Tensor]:
    """``sqrt(v)·c1/sqrt(c2) + eps·c1`` with corrections computed on the device, in few operations for any number of v.

    The operations run over all v in one vector, because ``_foreach_*`` with one scalar tensor per v has one kernel per
    v.
    """
    exponents = counts.double()
    c1, c2 = (1 - beta**exponents for beta in betas)
    sizes = [each.numel() for each in v]
    flat = torch.cat([each.reshape(-1) for each in v]).sqrt_()
    for combine, factors in ((flat.mul_, c1 / c2.sqrt()), (flat.add_, eps * c1)):
        each_factor = factors.to(flat.dtype).unbind()
        combine(torch.cat([factor.expand(size) for factor, size in zip(each_factor, sizes, strict=True)]))
    return [part.view(each.shape) for part, each in zip(flat.split(sizes), v, strict=True)]


def _by_count(counts: Sequence[int], tensors: Sequence[Tensor]) -> dict[int, list[Tensor]]:
    """Group tensors by count. Usually all counts are equal, and one factor costs less than a list of factors."""
    groups: dict[int, list[Tensor]] = {}
    for count, tensor in zip(counts, tensors, strict=True):
        groups.setdefault(count, []).append(tensor)
    return groups
