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

from pylo_zoo.kernels.gpu.records import CLIP, REPLACE, B, C, X, Y

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
    return tl.where(g > clip, clip, tl.where(g < -clip, -clip, g))


@triton.jit
def divide(start, offset, size):
    """Quotient and remainder of ``start + offset`` by ``size``, with one scalar integer division."""
    quotient = start // size
    rest = start - quotient * size + offset
    more = (rest.to(tl.float32) / size.to(tl.float32)).to(tl.int32)
    more -= (more * size > rest).to(tl.int32)
    more += ((more + 1) * size <= rest).to(tl.int32)
    return quotient + more, rest - more * size


@triton.jit
def table_indices(row, start, offset, PLAIN: tl.constexpr):
    """Outer and inner index (:mod:`pylo_zoo.kernels.gpu.records`) of elements ``start + offset``."""
    c = integer(row, C)
    run = integer(row, Y) * c
    outer, inner = divide(start, offset, run)
    if not PLAIN:  # PLAIN is a matrix: A = B = C = 1
        x, b = integer(row, X), integer(row, B)
        a = outer // (x * b)
        y_c = inner
        inner = (a * b + outer % b) * run + y_c
        outer = outer * c + y_c % c
    return outer, inner


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
        r0, r1, r2, c0, c1, c2 = factors
        of_gradient = (g * r0 * c0, g * r1 * c1, g * r2 * c2)
        of_momentum = (m0 * r0 * c0, m1 * r1 * c1, m2 * r2 * c2)
        of_diag = (g, g, g, g, g, g)  # never selected
    else:
        d0, d1, d2 = factors
        of_gradient = (g * _rsqrt_diag(d0), g * _rsqrt_diag(d1), g * _rsqrt_diag(d2))
        of_momentum = (m0 * tl.rsqrt(d0 + diag_eps), m1 * tl.rsqrt(d1 + diag_eps), m2 * tl.rsqrt(d2 + diag_eps))
        of_diag = (d0, d1, d2, tl.rsqrt(d0 + 1e-8), tl.rsqrt(d1 + 1e-8), tl.rsqrt(d2 + 1e-8))
    clipped = tl.where(g > 0.1, 0.1, tl.where(g < -0.1, -0.1, g))
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
    """``clamp(min=least)``, which keeps NaN."""
    return tl.where(x < least, least, x)


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
    return tl.where(x < 0, 0.0, x)
