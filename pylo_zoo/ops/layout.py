"""The axes of a parameter that the update reduces over, for every layout (SPEC §1, "Layouts").

JAX stores dense weights as ``(in, out)`` and convolutions as ``(*spatial, in, out)``. torch stores them as
``(out, in)`` and ``(out, in, *spatial)``, and some models stack matrices, such as experts, as ``(*stack, out, in)``.
Axes and ties are chosen in JAX's order and mapped back. They are negative indices, so they are valid for a parameter
and for its accumulators ``[channels, *shape]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Layout = Literal["torch", "jax", "torch-stacked"]
LAYOUTS: tuple[Layout, ...] = ("torch", "jax", "torch-stacked")


class Axes(NamedTuple):
    """The axes of one parameter, as negative indices."""

    all: tuple[int, ...]
    """Every axis."""
    factored: tuple[int, int] | None
    """``(d1, d0)``, the second largest and the largest axis; None if the second moment is not factored."""
    matrix: tuple[int, ...]
    """The last two axes in JAX layout, ``(rows, columns)``, or the one axis of a vector."""


@lru_cache(maxsize=4096)
def axes_of(shape: tuple[int, ...], layout: Layout) -> Axes:
    """The axes of a parameter of ``shape``, which has at least one axis: a scalar is passed as ``(1,)``."""
    ndim = len(shape)
    order = jax_axes(ndim, layout)
    everything = tuple(range(-ndim, 0))
    if ndim < 2:
        return Axes(everything, None, everything)
    by_size = sorted(order, key=lambda axis: shape[axis])  # stable: of equal axes, the later in JAX layout is d0
    return Axes(everything, (by_size[-2], by_size[-1]), (order[-2], order[-1]))


def jax_axes(ndim: int, layout: Layout) -> Sequence[int]:
    """The parameter's axes (negative) in JAX order: ``(2, …, n−1, 1, 0)`` for torch layout, and for torch-stacked
    ``(0, …, n−3, n−1, n−2)``."""
    axes = list(range(-ndim, 0))
    if layout == "jax" or ndim < 2:
        return axes
    if layout == "torch-stacked":
        return [*axes[:-2], axes[-1], axes[-2]]
    return [*axes[2:], axes[1], axes[0]]
