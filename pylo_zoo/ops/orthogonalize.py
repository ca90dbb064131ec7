"""Orthogonalization by Newton–Schulz iterations (kellerjordan.github.io/posts/muon; SPEC §6, §7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError

Triple = tuple[float, float, float]
"""``(a, b, c)`` of the odd quintic ``a·x + b·x³ + c·x⁵`` that one iteration applies to every singular value."""
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]
"""What :func:`resolve_coefficients` reads: a preset's name, one triple, or several."""

COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    # kellerjordan.github.io/posts/muon: the steepest slope at 0; values end up spread around 1
    "original": ((3.4445, -4.7750, 2.0315),),
    # leloykun.github.io/ponder/muon-opt-coeffs: a triple of its own for each of five iterations
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Polar Express, arXiv 2505.16932: each triple is the best for what the one before leaves; ends at x = 1 exactly
    "polar_express": (
        (8.237312490495555, -23.157747414558198, 16.680568411445915),
        (4.082441999064835, -2.893047735332586, 0.5252849256975648),
        (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
        (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
        (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
        (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
        (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
        (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
    ),
    # the same with a wider margin for rounding
    "polar_express_safer": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
        (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
        (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
        (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
        (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
        (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
        (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
    ),
}
"""Presets by name, one triple an iteration (SPEC §7)."""


def newton_schulz(matrices: Tensor, coefficients: Sequence[Triple], eps: float) -> Tensor:
    """Drive the singular values of each matrix towards 1, as CELO2 does (SPEC §6).

    Args:
        matrices: ``[*batch, rows, columns]``.
        coefficients: one triple an iteration.
        eps: added to the Frobenius norm that divides each matrix first.

    Returns:
        A tensor of the same shape and dtype.
    """
    return _iterate(matrices / (_frobenius(matrices) + eps), coefficients)


def orthogonalize(
    matrices: Tensor,
    coefficients: Sequence[Triple],
    *,
    eps: float = 1e-7,
    safety_factor: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Drive the singular values of each matrix towards 1, as Muon does (SPEC §7).

    Each matrix is first divided by ``max(‖X‖_F · safety_factor, eps)``, in float32 at least: whatever its scale, the
    values iterated in a narrow dtype then neither overflow nor vanish.

    Args:
        matrices: ``[*batch, rows, columns]``.
        coefficients: one triple an iteration, as :func:`resolve_coefficients` returns them.
        eps: smallest divisor; a matrix of zeros stays zero.
        safety_factor: leaves room below 1 for rounding; 1.01 is usual with the Polar Express presets.
        dtype: of the iterations.

    Returns:
        A tensor of the matrices' shape and dtype, near ``U·Vᵀ`` of ``X = U·S·Vᵀ``.
    """
    wide = torch.promote_types(torch.promote_types(matrices.dtype, dtype), torch.float32)
    x = matrices.to(wide)
    x = x / (_frobenius(x) * safety_factor).clamp(min=eps)
    return _iterate(x.to(dtype), coefficients).to(matrices.dtype)


def resolve_coefficients(coefficients: Coefficients, steps: int) -> tuple[Triple, ...]:
    """One triple for each of ``steps`` iterations (SPEC §7).

    Args:
        coefficients: the name of a preset (:data:`COEFFICIENTS`), one triple ``(a, b, c)``, or a sequence of triples.
        steps: iterations; fewer than there are triples cut the list, more repeat its last.

    Raises:
        ZooError: an unknown preset, no triples, a triple that is not three finite numbers, or ``steps`` below 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ZooError(f"ns_steps is {steps!r}.", "Use a whole number of iterations, 1 or more; 5 is usual.")
    triples = _triples(coefficients)
    return (*triples, *[triples[-1]] * (int(steps) - len(triples)))[: int(steps)]


def _triples(coefficients: Any) -> tuple[Triple, ...]:
    if isinstance(coefficients, str):
        if coefficients not in COEFFICIENTS:
            raise ZooError(f"There is no coefficient preset {coefficients!r}.", f"Presets: {', '.join(COEFFICIENTS)}.")
        return COEFFICIENTS[coefficients]
    usage = 'Use a preset such as "quintic", one triple (a, b, c), or a sequence of triples.'
    if not isinstance(coefficients, Sequence) or not coefficients:
        raise ZooError(f"ns_coefficients is {coefficients!r}.", usage)
    triples = [coefficients] if all(isinstance(each, Real) for each in coefficients) else coefficients
    for triple in triples:
        numbers = isinstance(triple, Sequence) and all(_is_finite_number(each) for each in triple)
        if not numbers or len(triple) != 3:
            raise ZooError(f"ns_coefficients has {triple!r}, which is not three finite numbers.", usage)
    return tuple((float(a), float(b), float(c)) for a, b, c in triples)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _frobenius(matrices: Tensor) -> Tensor:
    return matrices.norm(dim=(-2, -1), keepdim=True)


def _iterate(x: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    """``X ← a·X + (b·A + c·A²)·X`` with ``A = X·Xᵀ``, on the smaller side; X has a spectral norm of 1 at most."""
    shape = x.shape
    tall = shape[-2] > shape[-1]
    x = x.mT if tall else x
    x = x.flatten(0, -3) if x.ndim > 3 else x
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = _add_product(a, x, 1.0, _add_product(b, gram, c, gram, gram), x)
    return (x.mT if tall else x).reshape(shape)


def _add_product(beta: float, x: Tensor, alpha: float, y: Tensor, z: Tensor) -> Tensor:
    """``β·x + α·y·z`` of matrices or stacks of them.

    In 16 bits torch's fused operation computes it: that rounds once, which halves the error of the whole iteration.
    """
    if x.element_size() > 2:
        return beta * x + alpha * (y @ z)
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    return fused(x, y, z, beta=beta, alpha=alpha)
