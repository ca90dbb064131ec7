"""Newton–Schulz iterations of one stack of matrices: ``X ← (a·I + b·A + c·A²)·X`` with ``A = X·Xᵀ``.

Two iterations of an ``n × m`` matrix take four products with its long side. With ``G = X·Xᵀ`` and ``P = a·I + b·G +
c·G²``, the next Gram matrix is ``P·G·P``, because P is symmetric and commutes with G. So two iterations are also
``X ← Q·X`` with ``Q = P₂·P₁``: two products with the long side, and five of ``n × n`` matrices.

The Gram matrix is computed from X again after every second iteration, because its rounding errors do not shrink: a
singular value near 0 grows by the factor a per iteration, but an eigenvalue of G by a², and so do errors of G. Within
two iterations, the rounding error u of ``P·G`` becomes at most a·u in ``P·G·P``, next to the error u·s² that the plain
iteration has there, where s ≥ 1 is the largest singular value. So the error of the second Gram matrix is at most
``1 + a`` times the plain iteration's, and the other products have the same errors in both.
``tests/test_gram_iteration.py`` measures the factor: 0.2 to 3, and up to 7 for matrices of rank 1 with a = 8.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pylo_zoo.ops.product import Products

Triple = tuple[float, float, float]
"""``(a, b, c)`` of the polynomial ``a·x + b·x³ + c·x⁵`` that an iteration applies to every singular value."""


def iterate(x: Tensor, coefficients: Sequence[Triple], products: Products) -> Tensor:
    """Iterate a matrix or stack ``[*batch, n, m]``, n ≤ m, once per triple, and return the result.

    X is contiguous with spectral norms ≤ 1, and is overwritten. Needs memory for one more stack and for two or three
    stacks of Gram matrices.
    """
    rest, spare = list(coefficients), x.new_empty(x.shape)
    by_gram = iterates_gram(x.shape[-2], x.shape[-1], products)
    squares = [x.new_empty(*x.shape[:-1], x.shape[-2]) for _ in range(3 if by_gram else 2)]
    while rest:
        if by_gram and len(rest) > 1:
            result = _step_twice(x, rest.pop(0), rest.pop(0), products, spare, squares)
        else:
            result = _step(x, rest.pop(0), products, spare, squares)
        x, spare = result, x
    return x


def iterates_gram(rows: int, columns: int, products: Products) -> bool:
    """Whether pairs of iterations of a wide matrix run on its Gram matrix."""
    return rows >= products.side and columns >= products.ratio * rows


def _step(x: Tensor, triple: Triple, products: Products, out: Tensor, squares: Sequence[Tensor]) -> Tensor:
    a, b, c = triple
    gram = products.symmetric(x, x, squares[0])
    polynomial = products.symmetric(gram, gram, squares[1], alpha=c, terms=[(b, gram)])
    return products.apply(polynomial, x, out, beta=a)


def _step_twice(
    x: Tensor, first: Triple, second: Triple, products: Products, out: Tensor, squares: Sequence[Tensor]
) -> Tensor:
    """Two iterations on the Gram matrix.

    P and Q are stored with their identity, unless products round their operands: then rounding ``a·I`` would add noise
    to X in directions where X is 0, which the iteration enlarges, so ``a`` times the other factor is added instead.
    """
    (a, b, c), (a2, b2, c2) = first, second
    apart = products.rounds_operands
    one, two, three = squares
    gram = products.symmetric(x, x, one)
    p = products.symmetric(gram, gram, two, alpha=c, terms=[(b, gram)], identity=0.0 if apart else a)
    half = products.symmetric(p, gram, three, terms=[(a, gram)] if apart else [])
    gram = products.symmetric(half, p, one, terms=[(a, half)] if apart else [])  # P·G·P
    p2 = products.symmetric(gram, gram, three, alpha=c2, terms=[(b2, gram)], identity=0.0 if apart else a2)
    q = products.symmetric(p2, p, one, terms=[(a2, p), (a, p2)] if apart else [])
    return products.apply(q, x, out, beta=a * a2 if apart else 0.0)
