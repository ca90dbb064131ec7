"""Gradient preprocessing: clipping by the global norm (SPEC §3, §6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pylo_zoo.ops.apply import foreach


def global_norm_scale(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """``min(1, max_norm / ‖g‖)`` with the norm over all gradients, a scalar on the first gradient's device."""
    device = gradients[0].device
    norms = [
        norm.to(device) for norm in (_norms(gradients) if _on_one_accelerator(gradients) else map(_norm, gradients))
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return (max_norm / norm).clamp(max=1.0)


def _norm(g: Tensor) -> Tensor:
    return torch.linalg.vector_norm(g, dtype=_accumulation_dtype(g))


def _norms(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """:func:`_norm` of gradients of one dtype and device, in few launches."""
    return foreach._foreach_norm(gradients, 2, _accumulation_dtype(gradients[0]))


def _on_one_accelerator(gradients: Sequence[Tensor]) -> bool:
    return not gradients[0].is_cpu and len({(g.device, g.dtype) for g in gradients}) == 1


def _accumulation_dtype(g: Tensor) -> torch.dtype:
    return torch.float64 if g.dtype == torch.float64 else torch.float32
