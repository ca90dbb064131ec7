"""Gradient preprocessing: clipping by the global norm (SPEC §3, §6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def global_norm_scale(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """``min(1, max_norm / ‖g‖)`` with the norm over all gradients, a scalar on the first gradient's device."""
    device = gradients[0].device
    norms = [torch.linalg.vector_norm(g, dtype=_accumulation_dtype(g)).to(device) for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return (max_norm / norm).clamp(max=1.0)


def _accumulation_dtype(g: Tensor) -> torch.dtype:
    return torch.float64 if g.dtype == torch.float64 else torch.float32
