"""AdamW for many parameters in one launch (SPEC §5–§7)."""

# Triton's types differ from Python's, so type checkers report false errors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.elements import fours, integer, pointer
from pylo_zoo.kernels.gpu.records import A_MOMENTUM, A_NESTEROV, A_P, A_SECOND_MOMENT, A_SIZE, A_TASK, ADAM_FIELDS

NUMBERS = ("beta1", "beta2", "correction1", "correction2", "eps", "eps_root", "coefficient", "shrink", "max_gradient")
"""float32 numbers per parameter. The corrections are ``1 − βᵗ``."""
NUMBERS_FIELDS = tl.constexpr(len(NUMBERS))


@triton.jit
def adam_elements(
    records, gradients, programs, numbers, scale, proceed,
    P_TYPE: tl.constexpr, G_TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Advance the moments, then ``p ← p − coefficient·m̂/(sqrt(v̂ + eps_root) + eps) − shrink·p``.

    Does nothing if ``proceed`` is 0."""
    if proceed is not None:  # noqa: SIM102 — a constexpr condition
        if tl.load(proceed) == 0:
            return
    number_of_row = tl.load(programs + 2 * tl.program_id(0))
    row = records + number_of_row * ADAM_FIELDS
    size = integer(row, A_SIZE)
    if ALIGNED:
        size = fours(size)
    e = tl.load(programs + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    mask = e < size
    p_at, g_at = pointer(row, A_P, P_TYPE, ALIGNED), pointer(gradients, number_of_row, G_TYPE, ALIGNED)
    m_at = pointer(row, A_MOMENTUM, tl.float32, ALIGNED)
    v_at = pointer(row, A_SECOND_MOMENT, tl.float32, ALIGNED)
    number = numbers + tl.load(row + A_TASK) * NUMBERS_FIELDS
    beta1, beta2, correction1, correction2 = (
        tl.load(number),
        tl.load(number + 1),
        tl.load(number + 2),
        tl.load(number + 3),
    )
    eps, eps_root, coefficient = tl.load(number + 4), tl.load(number + 5), tl.load(number + 6)
    shrink, limit = tl.load(number + 7), tl.load(number + 8)

    g = tl.load(g_at + e, mask, 0.0).to(tl.float32) * tl.load(scale)
    g = tl.where(g > limit, limit, tl.where(g < -limit, -limit, g))
    m = beta1 * tl.load(m_at + e, mask, 0.0) + (1 - beta1) * g
    v = beta2 * tl.load(v_at + e, mask, 0.0) + (1 - beta2) * (g * g)
    tl.store(m_at + e, m, mask)
    tl.store(v_at + e, v, mask)

    ahead = tl.where(tl.load(row + A_NESTEROV) != 0, beta1 * m + (1 - beta1) * g, m)
    direction = ahead / correction1 / (eps + tl.sqrt(v / correction2 + eps_root))
    p = tl.load(p_at + e, mask, 0.0).to(tl.float32)
    moved = p - (coefficient * direction + shrink * p)
    tl.store(p_at + e, moved.to(P_TYPE), mask)
