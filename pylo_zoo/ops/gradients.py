"""Gradient preprocessing: clipping by the global norm (SPEC §3, §6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pylo_zoo.ops.apply import foreach


def global_norm_scale(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """``min(1, max_norm / ‖g‖)`` with the norm over all gradients, a scalar on the first gradient's device."""
    device = gradients[0].device
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for g in gradients:
        alike.setdefault((g.device, g.dtype), []).append(g)
    norms = [
        torch.stack(foreach._foreach_norm(each, 2, _accumulation_dtype(each[0]))).to(device) for each in alike.values()
    ]
    norm = torch.linalg.vector_norm(torch.cat(norms) if len(norms) > 1 else norms[0])
    return (max_norm / norm).clamp(max=1.0)


def _accumulation_dtype(g: Tensor) -> torch.dtype:
    return torch.float64 if g.dtype == torch.float64 else torch.float32
