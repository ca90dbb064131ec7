"""Device functions that all passes use: table indices, gradient preprocessing and features of an element.

:func:`features` repeats :data:`pylo_zoo.ops.features.FEATURES` in Triton. Tests compare the two for each group.
"""

# Triton's types differ from Python's, so type checkers report false errors. Tuples must grow by + (RUF005).
# ruff: noqa: RUF005
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from pylo_zoo.kernels.gpu.records import (
    CLIP,
    DIVIDE_B,
    DIVIDE_C,
    DIVIDE_PLANES,
    DIVIDE_RUN,
    INNER,
    INNER_SIZE,
    OUTER,
    OUTER_SIZE,
    REPLACE,
    B,
    C,
    Y,
)

CANDIDATES = {
    "gradient": (0,),
    "clipped_gradient": (1,),
    "parameter": (2,),
    "momentum": (3, 4, 5),
    "second_moment": (6,),
    "normalized_momentum": (7, 8, 9),
    "rsqrt_second_moment": (10,),
    "factored_gradient": (11, 12, 13),
    "normalized_gradient": (14,),
    "factored_momentum": (15, 16, 17),
    "diag": (18, 19, 20),
    "rsqrt_diag": (21, 22, 23),
}
"""Channels of each group in :func:`features`. ``diag`` is for unfactored parameters only."""
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def pointer(row, field, TYPE: tl.constexpr, ALIGNED: tl.constexpr = False):
    """The address in a field of a record. ``ALIGNED`` promises 16-byte alignment, for loads of four floats."""
    address = tl.load(row + field).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def fours(x):
    """``x``, which is a multiple of 4, in a form that shows it. Triton 3.6 loses ``tl.multiple_of`` on sizes."""
    return x // 4 * 4


@triton.jit
def integer(row, field):
    """A size in a record, as int32: parameters have fewer than 2^30 elements."""
    return tl.load(row + field).to(tl.int32)


@triton.jit
def conditioned(g, scale, row):
    """``g · scale``, then ``nan_to_num`` if the record has the flag, then clipping, which keeps NaN."""
    g = g.to(tl.float32) * scale
    if tl.load(row + REPLACE) != 0:
        g = tl.where(g == g, tl.minimum(tl.maximum(g, -LARGEST), LARGEST), 0.0)
    clip = integer(row, CLIP).to(tl.float32, bitcast=True)
    return at_least(at_most(g, clip), -clip)


@triton.jit
def conditioned_square(g, scale, row):
    """The square of :func:`conditioned`, bounded after squaring: rounding is monotonic, so the result is the same."""
    g = g.to(tl.float32) * scale
    if tl.load(row + REPLACE) != 0:
        g = tl.where(g == g, g, 0.0)
    clip = integer(row, CLIP).to(tl.float32, bitcast=True)
    return at_most(g * g, clip * clip)


@triton.jit
def quotient(n, row, field):
    """``n // d`` for ``0 ≤ n < 2^30``, where the field is :func:`pylo_zoo.kernels.gpu.records.divisor` of d."""
    packed = tl.load(row + field)
    product = n.to(tl.uint32).to(tl.uint64) * packed.to(tl.uint32).to(tl.uint64)
    return (product >> (packed >> 32).to(tl.uint64)).to(tl.int32)


@triton.jit
def table_indices(row, first, within, PLAIN: tl.constexpr, ALIGNED: tl.constexpr):
    """Outer and inner index (:mod:`pylo_zoo.kernels.gpu.records`) of elements ``first + within``.

    ``first`` is ``[lanes, 1]`` and ``within`` ``[1, neighbors]``. With ``ALIGNED``, neighbors have the same index on
    all axes before Y, and a matrix's outer index is ``[lanes, 1]``.
    """
    c = integer(row, C)
    run = integer(row, Y) * c
    if ALIGNED:
        run = fours(run)
        outer = quotient(first, row, DIVIDE_RUN)
        y_c = first - outer * run + within
    else:
        outer = quotient(first + within, row, DIVIDE_RUN)
        y_c = first + within - outer * run
    inner = y_c
    if not PLAIN:  # PLAIN is a matrix: A = B = C = 1
        b = integer(row, B)
        a, b_index = quotient(outer, row, DIVIDE_PLANES), outer - quotient(outer, row, DIVIDE_B) * b
        inner = (a * b + b_index) * run + y_c
        outer = outer * c + y_c - quotient(y_c, row, DIVIDE_C) * c
    return outer, inner


@triton.jit
def offset_of(row, field, ALIGNED: tl.constexpr):
    """An offset in a shared buffer. With ``ALIGNED``, it is known to be a multiple of 4, as all offsets are."""
    offset = tl.load(row + field)
    if ALIGNED:
        offset = fours(offset)
    return offset


@triton.jit
def plane_size(row, field, ALIGNED: tl.constexpr):
    """The size of one plane of a table. With ``ALIGNED``, the inner table's is a multiple of 4."""
    size = integer(row, field)
    if ALIGNED:
        size = fours(size)
    return size


@triton.jit
def factors_at(factors, row, outer, inner, mask, ALIGNED: tl.constexpr):
    """Three factors of the outer and three of the inner table."""
    of_outer = planes(factors + 3 * tl.load(row + OUTER), outer, integer(row, OUTER_SIZE), mask)
    at = factors + 3 * offset_of(row, INNER, ALIGNED)
    return of_outer + planes(at, inner, plane_size(row, INNER_SIZE, ALIGNED), mask)


@triton.jit
def features(p, g, m, v, factors, rsqrt_eps, diag_eps, FACTORED: tl.constexpr, SELECT: tl.constexpr):
    """The features ``SELECT`` (of :data:`CANDIDATES`) of elements before normalization, as a tuple.

    Args:
        m: three momenta.
        factors: three of ``row_factor`` and three of ``col_factor``, or three of ``diag``.
    """
    rsqrt_v = tl.rsqrt(v + rsqrt_eps)
    m0, m1, m2 = m
    if FACTORED:
        r0, r1, r2, c0, c1, c2 = factors  # each is at most rsqrt(1e-9), so their products do not overflow
        f0, f1, f2 = r0 * c0, r1 * c1, r2 * c2
        of_gradient = (g * f0, g * f1, g * f2)
        of_momentum = (m0 * f0, m1 * f1, m2 * f2)
        of_diag = (g, g, g, g, g, g)  # never selected
    else:
        d0, d1, d2 = factors
        of_gradient = (g * _rsqrt_diag(d0), g * _rsqrt_diag(d1), g * _rsqrt_diag(d2))
        of_momentum = (m0 * tl.rsqrt(d0 + diag_eps), m1 * tl.rsqrt(d1 + diag_eps), m2 * tl.rsqrt(d2 + diag_eps))
        of_diag = (d0, d1, d2, tl.rsqrt(d0 + 1e-8), tl.rsqrt(d1 + 1e-8), tl.rsqrt(d2 + 1e-8))
    clipped = at_least(at_most(g, 0.1), -0.1)
    normalized = (m0 * rsqrt_v, m1 * rsqrt_v, m2 * rsqrt_v, rsqrt_v)
    candidates = (g, clipped, p, m0, m1, m2, v) + normalized + of_gradient + (g * rsqrt_v,) + of_momentum + of_diag
    selected = ()
    for k in tl.static_range(len(SELECT)):
        selected = selected + (candidates[SELECT[k]],)
    return selected


@triton.jit
def _rsqrt_diag(diag):
    return tl.rsqrt(at_least(diag + 1e-9, 1e-9))


@triton.jit
def at_least(x, least):
    """``clamp(min=least)``, which keeps NaN: one instruction."""
    return tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, most):
    """``clamp(max=most)``, which keeps NaN."""
    return tl.minimum(x, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def planes(base, index, size, mask):
    """Load from three planes, ``size`` apart."""
    first = base + index
    second = base + size.to(tl.int64) + index
    third = base + size.to(tl.int64) * 2 + index
    return tl.load(first, mask, 0.0), tl.load(second, mask, 0.0), tl.load(third, mask, 0.0)


@triton.jit
def store_planes(base, index, size, values, mask):
    size = size.to(tl.int64)
    tl.store(base + index, values[0], mask)
    tl.store(base + size + index, values[1], mask)
    tl.store(base + size * 2 + index, values[2], mask)


@triton.jit
def activation(x, TANH: tl.constexpr):
    """relu or tanh, which keep NaN."""
    if TANH:  # within 2 ulp: a polynomial near zero, where the difference of exponentials would cancel
        z = x * x
        near = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
        near = (near - 3.33332819422e-1) * z * x + x
        far = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
        return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))
    return at_least(x, 0.0)
