"""Which axes the mathematics means, for parameters in torch and in JAX layout (SPEC §1, "Axis order matters").

JAX keeps dense weights as ``(in, out)`` and convolutions as ``(*spatial, in, out)``; torch as ``(out, in)`` and
``(out, in, *spatial)``, and in some models stacks of matrices, such as experts, as ``(*stack, out, in)``, where JAX
would have ``(*stack, in, out)``. Axes and their ties are chosen in JAX's order and mapped back, as negative indices, so
that they hold for a parameter and for its accumulator planes ``[channels, *shape]`` alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Layout = Literal["torch", "jax", "torch-stacked"]
LAYOUTS: tuple[Layout, ...] = ("torch", "jax", "torch-stacked")


class Axes(NamedTuple):
    """The axes of one parameter, counted from its end."""

    all: tuple[int, ...]
    """Every axis."""
    factored: tuple[int, int] | None
    """``(d1, d0)``, second largest and largest axis; None where the second moment is not factored."""
    matrix: tuple[int, ...]
    """The last two axes in JAX layout, ``(rows, columns)``; the one axis of a vector."""


@lru_cache(maxsize=4096)
def axes_of(shape: tuple[int, ...], layout: Layout) -> Axes:
    """The axes of a parameter of ``shape`` (one axis at least: a scalar counts as shape ``(1,)``)."""
    ndim = len(shape)
    order = jax_axes(ndim, layout)
    everything = tuple(range(-ndim, 0))
    if ndim < 2:
        return Axes(everything, None, everything)
    by_size = sorted(order, key=lambda axis: shape[axis])  # stable: of equal axes the later, in JAX layout, is larger
    return Axes(everything, (by_size[-2], by_size[-1]), (order[-2], order[-1]))


def jax_axes(ndim: int, layout: Layout) -> Sequence[int]:
    """The parameter's own axes (negative), in JAX layout's order: torch's ``(2, …, n−1, 1, 0)``, and for stacks
    ``(0, …, n−3, n−1, n−2)``."""
    axes = list(range(-ndim, 0))
    if layout == "jax" or ndim < 2:
        return axes
    if layout == "torch-stacked":
        return [*axes[:-2], axes[-1], axes[-2]]
    return [*axes[2:], axes[1], axes[0]]
