"""Muon's update (kellerjordan.github.io/posts/muon; SPEC §7): momentum, orthogonalization, scale.

The rows of a matrix are outputs: torch stores a weight as ``(out, in, *spatial)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError, count, quoted
from pylo_zoo.ops.apply import as_scalar, decay_and_step, decay_and_step_together, foreach, together
from pylo_zoo.ops.layout import LAYOUTS, Layout
from pylo_zoo.ops.orthogonalize import Coefficients, is_finite_number, orthogonalize_all, resolve_coefficients
from pylo_zoo.ops.precision import NsDtype, check_ns_dtype
from pylo_zoo.ops.product import ProductsFor, torch_products

LR_SCALES = ("original", "match_rms_adamw", "rms_to_rms")
CONV_MODES = ("flatten", "batched")
BACKENDS = ("auto", "eager", "fused")
MIN_SIZE = 4
"""Smallest side of a matrix that Muon updates."""
MAX_ASPECT_RATIO = 128.0
"""Maximum ratio of the sides of a matrix that Muon updates."""


def lr_scale(rows: int, columns: int, adjust_lr_fn: str | None) -> float:
    """The factor of the learning rate for a matrix ``[rows, columns]``, where rows are outputs.

    Args:
        rows, columns: sizes of the orthogonalized matrix, at least 1.
        adjust_lr_fn: ``"original"``: ``sqrt(max(1, rows/columns))`` (kellerjordan.github.io/posts/muon).
            ``"match_rms_adamw"``: ``0.2·sqrt(max(rows, columns))``, which matches AdamW's step size (arXiv 2502.16982).
            ``"rms_to_rms"``: ``sqrt(rows/columns)``, a unit step in the RMS-to-RMS norm (arXiv 2502.07529).
            None: 1.

    Raises:
        ZooError: ``adjust_lr_fn`` is not one of these.
    """
    if adjust_lr_fn is None:
        return 1.0
    if adjust_lr_fn == "original":
        return math.sqrt(max(1.0, rows / columns))
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr_fn == "rms_to_rms":
        return math.sqrt(rows / columns)
    raise ZooError(f"adjust_lr_fn is {adjust_lr_fn!r}.", f"Use {', '.join(LR_SCALES)}, or None.")


def to_matrices(tensor: Tensor, conv_mode: str) -> Tensor:
    """Reshape a weight to the matrices that Muon orthogonalizes.

    Args:
        tensor: ``[out, in, *spatial]``.
        conv_mode: how to reshape spatial axes, ``"flatten"`` or ``"batched"``.

    Returns:
        A matrix unchanged. With more axes, ``[out, in·spatial]`` for ``"flatten"``, and ``[spatial, out, in]``, one
        matrix per position, for ``"batched"``. A view if the strides allow it.

    Raises:
        ZooError: ``tensor`` has fewer than two axes, or ``conv_mode`` is unknown.
    """
    if conv_mode not in CONV_MODES:
        raise ZooError(f"conv_mode is {conv_mode!r}.", f"Use {' or '.join(CONV_MODES)}.")
    if tensor.ndim < 2:
        raise ZooError(
            f"A tensor of shape {tuple(tensor.shape)} is not a matrix.",
            "Pass tensors with two or more axes: (out, in, *spatial).",
        )
    if tensor.ndim == 2:
        return tensor
    return tensor.flatten(1) if conv_mode == "flatten" else tensor.flatten(2).permute(2, 0, 1)


def from_matrices(matrices: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_matrices`: ``[out, in·spatial]`` or ``[spatial, out, in]`` back to ``shape``."""
    if matrices.ndim == 2 and matrices.shape == shape:
        return matrices
    batched = matrices.ndim > 2
    return (matrices.permute(1, 2, 0) if batched else matrices).reshape(tuple(shape))


def muon_route(
    shape: Sequence[int], *, use_fallback: bool = False, use_muon: bool | None = None, layout: Layout = "torch"
) -> tuple[bool, str]:
    """Whether a parameter takes Muon's rule instead of AdamW, and why (SPEC §7).

    Args:
        shape: shape of the parameter.
        use_fallback: the group's flag that requests AdamW.
        use_muon: other implementations' name of the flag. False: AdamW. True: Muon for every shape with two or more
            axes. None: the shape decides.
        layout: ``"torch"``, ``"jax"`` for ``(*spatial, in, out)``, or ``"torch-stacked"`` for ``(*stack, out, in)``.

    Returns:
        ``(True, "ok")``, ``(True, "use_muon_flag")``, or False with the first of these reasons that applies:

        - ``use_fallback_flag``, ``use_muon_flag``: the group's flag.
        - ``insufficient_dims``: fewer than two axes are longer than 1.
        - ``leading_unit_dims``: out or in is 1, as in depthwise convolutions.
        - ``min_dim_too_small:N``: the smaller side N of ``(out, in·spatial)`` is under 4.
        - ``extreme_aspect_ratio:R``: the ratio R of those sides, to one decimal, is over 128.
    """
    if use_fallback:
        return False, "use_fallback_flag"
    if use_muon is False or (use_muon and len(shape) > 1):
        return use_muon, "use_muon_flag"
    if sum(size > 1 for size in shape) < 2:
        return False, "insufficient_dims"
    rows, columns, *spatial = (shape[axis] for axis in _torch_order(len(shape), layout))
    if rows == 1 or columns == 1:
        return False, "leading_unit_dims"
    smaller, larger = sorted((rows, columns * math.prod(spatial)))
    if smaller < MIN_SIZE:
        return False, f"min_dim_too_small:{smaller}"
    if larger / smaller > MAX_ASPECT_RATIO:
        return False, f"extreme_aspect_ratio:{larger / smaller:.1f}"
    return True, "ok"


@dataclass(frozen=True)
class Recipe:
    """The settings of Muon's update of an averaged gradient. See :func:`muon` for the fields.

    Raises:
        ZooError: a field has an invalid value.
    """

    ns_steps: int
    ns_coefficients: Coefficients
    eps: float
    safety_factor: float
    adjust_lr_fn: str | None
    conv_mode: str
    normalize_spatial: bool
    ns_dtype: NsDtype
    layout: Layout

    def __post_init__(self) -> None:
        resolve_coefficients(self.ns_coefficients, self.ns_steps)
        lr_scale(1, 1, self.adjust_lr_fn)
        check_ns_dtype(self.ns_dtype)
        for name, allowed in (("conv_mode", CONV_MODES), ("layout", LAYOUTS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ZooError(f"{name} is {value!r}.", f"Use one of: {', '.join(map(str, allowed))}.")
        for name in ("eps", "safety_factor"):
            value = getattr(self, name)
            if not (is_finite_number(value) and value > 0):
                raise ZooError(f"{name} is {quoted(value)}.", "Use a positive finite number.")
        if not isinstance(self.normalize_spatial, bool):
            raise ZooError(f"normalize_spatial is {self.normalize_spatial!r}.", "Use True or False.")

    def update(self, average: Tensor) -> Tensor:
        """The update for an averaged gradient ``[*shape]``, in its shape and dtype, without the learning rate."""
        (direction,), (scale,) = self.directions([average])
        return scale * direction

    def directions(
        self, averages: Sequence[Tensor], products_for: ProductsFor = torch_products
    ) -> tuple[list[Tensor], list[float]]:
        """The orthogonalized directions of averaged gradients ``[*shape]``, in their shapes and dtypes, and the scales.

        An update is a scale times a direction.
        """
        orders = [_torch_order(average.ndim, self.layout) for average in averages]
        oriented = [_permuted(average, order) for average, order in zip(averages, orders, strict=True)]
        matrices = [to_matrices(each, self.conv_mode) for each in oriented]
        orthogonal = orthogonalize_all(
            matrices,
            resolve_coefficients(self.ns_coefficients, self.ns_steps),
            eps=self.eps,
            safety_factor=self.safety_factor,
            dtype=self.ns_dtype,
            products_for=products_for,
        )
        directions = []
        for each, like, order in zip(orthogonal, oriented, orders, strict=True):
            back = from_matrices(each, like.shape)
            directions.append(back if order == _IN_ORDER[: len(order)] else back.permute(_inverse(order)))
        return directions, [self._scale(each) for each in matrices]

    def _scale(self, matrices: Tensor) -> float:
        scale = lr_scale(matrices.shape[-2], matrices.shape[-1], self.adjust_lr_fn)
        return scale * matrices.shape[0] ** -0.5 if self.normalize_spatial and matrices.ndim > 2 else scale


@torch.no_grad()
def muon(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_bufs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    ns_coefficients: Coefficients,
    eps: float,
    safety_factor: float,
    adjust_lr_fn: str | None,
    conv_mode: str,
    normalize_spatial: bool,
    ns_dtype: NsDtype = torch.bfloat16,
    layout: Layout = "torch",
    backend: str = "auto",
    products_for: ProductsFor = torch_products,
) -> None:
    """Step every parameter once with Muon (SPEC §7), in place. :class:`~pylo_zoo.optim.Muon` calls this.

    ``b ← lerp(b, g, 1 − momentum)`` and ``p ← p·(1 − lr·weight_decay) − lr·scale·NS(u)``, where ``u`` is ``b``, or
    ``lerp(g, b, momentum)`` with ``nesterov``.

    Args:
        params: ``[out, in, *spatial]``, two or more axes, real floating point.
        grads: gradients in the parameters' shapes, of any floating dtype. Not modified.
        momentum_bufs: buffers in the parameters' shapes, zeros before the first step. An update is computed in its
            buffer's dtype, so 16-bit parameters need float32 buffers.
        lr: learning rate, a number or a tensor of one element.
        weight_decay: decoupled weight decay.
        momentum: decay of the buffer.
        nesterov: whether to use Nesterov momentum.
        ns_steps, ns_coefficients: :func:`~pylo_zoo.ops.orthogonalize.resolve_coefficients`.
        eps, safety_factor: :func:`~pylo_zoo.ops.orthogonalize.orthogonalize`.
        adjust_lr_fn: :func:`lr_scale`.
        conv_mode: :func:`to_matrices`.
        normalize_spatial: with ``conv_mode="batched"``, divide the update by the root of the number of positions.
        ns_dtype: precision of the Newton–Schulz iterations (:func:`~pylo_zoo.ops.precision.resolve_precision`).
        layout: ``"torch"``, ``"jax"`` for ``(*spatial, in, out)``, or ``"torch-stacked"`` for ``(*stack, out, in)``.
        backend: ``"eager"`` steps one parameter at a time. ``"fused"`` and ``"auto"`` stack equal shapes for the
            orthogonalization and use ``torch._foreach_*`` for the rest. They agree to rounding.
        products_for: chooses the matrix products of ``"fused"`` and ``"auto"``.

    Raises:
        ZooError: an argument is invalid, the lists do not match, or a parameter has fewer than two axes. Nothing has
            been modified then.
    """
    recipe = Recipe(
        ns_steps, ns_coefficients, eps, safety_factor, adjust_lr_fn, conv_mode, normalize_spatial, ns_dtype, layout
    )
    if backend not in BACKENDS:
        raise ZooError(f"backend is {backend!r}.", f"Use one of {', '.join(BACKENDS)}.")
    _check_tensors(params, grads, momentum_bufs)
    if backend != "eager":
        for part in together(momentum_bufs):
            p, g, buffers = ([tensors[k] for k in part] for tensors in (params, grads, momentum_bufs))
            muon_together(p, g, buffers, recipe, lr, weight_decay, momentum, nesterov, products_for)
        return
    for p, g, buffer in zip(params, grads, momentum_bufs, strict=True):
        if p.numel() == 0:
            continue
        g = g.to(buffer.dtype)
        buffer.lerp_(g, 1 - momentum)
        update = recipe.update(g.lerp(buffer, momentum) if nesterov else buffer)
        decay_and_step(p, update, as_scalar(lr, update.dtype), weight_decay)


def muon_together(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    recipe: Recipe,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    products_for: ProductsFor,
) -> None:
    """:func:`muon` for parameters whose buffers have one dtype and device."""
    grads = [g.to(buffer.dtype) for g, buffer in zip(grads, buffers, strict=True)]
    foreach._foreach_lerp_(buffers, grads, 1 - momentum)
    averages = foreach._foreach_lerp(grads, buffers, momentum) if nesterov else buffers
    directions, scales = recipe.directions(averages, products_for)
    foreach._foreach_mul_(directions, scales)
    decay_and_step_together(params, directions, lr, weight_decay)


def _torch_order(ndim: int, layout: Layout) -> tuple[int, ...]:
    """The parameter's axes in the order ``(out, in, *spatial)``."""
    axes = tuple(range(ndim))
    if layout == "torch" or ndim < 2:
        return axes
    out, inputs = (ndim - 1, ndim - 2) if layout == "jax" else (ndim - 2, ndim - 1)
    return (out, inputs, *axes[:-2])


_IN_ORDER = tuple(range(64))
"""A prefix is the order that needs no permutation; views of thousands of tensors are slow."""


def _permuted(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    return tensor if order == _IN_ORDER[: len(order)] else tensor.permute(order)


def _inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _check_tensors(params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    """Raise for invalid input of :func:`muon` before anything is modified."""
    if not len(params) == len(grads) == len(buffers):
        raise ZooError(
            f"{count(len(params), 'parameter')} with {count(len(grads), 'gradient')} and "
            f"{count(len(buffers), 'momentum buffer')}.",
            "Pass one gradient and one buffer per parameter.",
        )
    for p, g, buffer in zip(params, grads, buffers, strict=True):
        if not p.shape == g.shape == buffer.shape:
            shapes = [tuple(each.shape) for each in (p, g, buffer)]
            raise ZooError(f"A parameter, its gradient and its buffer have shapes {shapes}.", "Make the shapes equal.")
        for each in (p, g, buffer):
            if not each.is_floating_point() or each.layout != torch.strided:
                raise ZooError(
                    f"A tensor of shape {tuple(each.shape)} is {each.dtype}, {each.layout}.",
                    "Pass dense real floating-point tensors.",
                )
        to_matrices(p, "flatten")
