"""Orthogonalization by Newton–Schulz iterations (kellerjordan.github.io/posts/muon; SPEC §6, §7)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Triple = tuple[float, float, float]


def newton_schulz(matrices: Tensor, coefficients: Sequence[Triple], eps: float) -> Tensor:
    """Drive the singular values of each matrix towards 1.

    Args:
        matrices: ``[*batch, rows, columns]``.
        coefficients: one triple ``(a, b, c)`` an iteration, ``X ← a·X + (b·A + c·A²)·X`` with ``A = X·Xᵀ``.
        eps: added to the Frobenius norm that divides each matrix first.

    Returns:
        A tensor of the same shape and dtype. The iterations run on the smaller side.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + eps)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
