"""What a device's kernels do: the step of :mod:`pylo_zoo.ops.step` for many parameters at once, in three passes.

- The factor pass sums ``g²`` along rows and columns, and advances ``row`` and ``col``.
- The moment pass advances ``momentum``, ``second_moment`` and ``diag``, and sums each feature's squares.
- The move pass recomputes the features in registers, runs the network and writes the parameter.

Nothing of the parameters' size is kept between the passes. Between the moment pass and the move pass, the normalizer is
folded into the first layer's weights, because it is one scale per channel. Features that are constant along an axis
(``row``, ``col`` and their roots) become additions to the hidden layer, one per row and one per column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule


class Task(NamedTuple):
    """One parameter of a fused step; all tensors contiguous, on one device."""

    p: Tensor
    """``[*shape]``, at least one axis, of a dtype among :attr:`Kernels.dtypes`."""
    g: Tensor
    """The gradient, ``[*shape]``, of a dtype among :attr:`Kernels.dtypes`; read only."""
    state: Mapping[str, Tensor]
    """float32 ``momentum [3, *shape]``, ``second_moment [1, *shape]``, and ``row``, ``col`` or ``diag`` ``[3, …]``
    (:func:`pylo_zoo.ops.accumulators.new_accumulators`), advanced in place."""
    axes: Axes
    decays: Decays
    max_gradient: float
    """Gradients are clipped to ±this, element by element; ``inf`` clips nothing. NaN stays."""
    replace_nonfinite: bool
    """Gradients pass ``torch.nan_to_num`` first."""


class Adam(NamedTuple):
    """One parameter of a fused AdamW step ``p ← p − coefficient·m̂/(sqrt(v̂ + eps_root) + eps) − shrink·p``."""

    p: Tensor
    g: Tensor
    momentum: Tensor
    """float32 ``[1, *shape]``"""
    second_moment: Tensor
    """float32 ``[1, *shape]``"""
    step: int
    """Of this update, 1-based, for the bias correction."""
    betas: tuple[float, float]
    eps: float
    eps_root: float
    coefficient: float
    shrink: float
    max_gradient: float
    nesterov: bool
    """``β1·m + (1 − β1)·g`` takes the place of ``m`` in ``m̂`` (NAdamW, SPEC §7)."""


class Normalized(NamedTuple):
    """One parameter of CELO2's last pass (SPEC §6)."""

    p: Tensor
    """``[*shape]``, contiguous, of a dtype among :attr:`Kernels.dtypes`."""
    step: Tensor
    """float32 ``[*shape]``, contiguous; may be written over."""
    over: tuple[int, ...]
    """Axes that the mean square is taken over, one or two, counted from the end."""
    eps: float


class ScratchBuffer:
    """A CPU's memory for steps that a later step uses again: new pages cost more than what is written to them."""

    ALIGNED = 16
    """Floats between the starts of two steps."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def take(self, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """float32 ``[*shape]`` for each shape, contiguous, not filled; those of an earlier call are lost."""
        sizes = [-(-shape.numel() // self.ALIGNED) * self.ALIGNED for shape in shapes]
        if self._kept is None or len(self._kept) < sum(sizes):
            self._kept = None  # before there is a larger one
            self._kept = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
        pieces = self._kept[: sum(sizes)].split(sizes)
        return [piece[: shape.numel()].view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class Kernels(Protocol):
    """The kernels of one kind of device. Reductions are deterministic: the same figures from the same input."""

    dtypes: tuple[torch.dtype, ...]
    """Of parameters and gradients that the kernels read and write themselves; others come as float32 copies."""
    bucket: int
    """Elements of parameters that are best taken at once: what a cache holds, or what copies may cost."""

    def covers(self, p: Tensor, axes: Axes, rule: Rule, hidden: int) -> bool:
        """Whether kernels can step a parameter of this shape by ``rule`` with ``hidden`` units a layer."""
        ...

    def advance(
        self, tasks: Sequence[Task], rule: Rule, scale: Tensor | None, moments: bool = False, checked: bool = False
    ) -> Any:
        """The factor and moment passes: advance every accumulator.

        Args:
            tasks: the parameters.
            rule: their rule.
            scale: a scalar that multiplies gradients before anything else.
            moments: :meth:`moments` will be asked for.
            checked: the caller has compared shape, dtype, device and contiguity of all state with its parameters in
                this step (:mod:`pylo_zoo.optim.state_checks`); kernels then check parameters and gradients alone.

        Returns:
            What :meth:`moments`, :meth:`move` and :meth:`steps` need: sums, factors and row and column tables.
        """
        ...

    def moments(self, advanced: Any) -> Tensor:
        """:func:`pylo_zoo.ops.conditioning.moments` of p and the *old* accumulators, float32 ``[N, 9]``.

        Only after ``advance(…, moments=True)``. Variances are taken around the mean of a few elements, or exactly; of
        one element they are 0.
        """
        ...

    def move(
        self,
        advanced: Any,
        layers: Sequence[Layer],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
    ) -> None:
        """Run the move pass: ``p ← p − coefficient·step − shrink·p``, in place, ``step·rms(p)`` by some rules.

        Args:
            advanced: of :meth:`advance`.
            layers: the network, float32: weights ``[outputs, inputs]`` alike for all parameters, or ``[N, outputs,
                inputs]`` one a parameter. First-layer inputs are the rule's channels (30 or 28), time features being in
                the bias already; for a parameter with fewer (``rule.unfactored``) the first of them. The last layer may
                have outputs after direction and magnitude, unused.
            coefficient: one a parameter.
            shrink: one a parameter.
        """
        ...

    def steps(self, advanced: Any, layers: Sequence[Layer], room: ScratchBuffer) -> list[Tensor]:
        """Compute each parameter's step, float32 ``[*shape]``, and write no parameter; some rules include ``rms(p)``.

        They may lie in ``room``, until its next use.
        """
        ...

    def move_normalized(
        self,
        tasks: Sequence[Normalized],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
    ) -> None:
        """CELO2's last pass ``p ← p − coefficient·norm(step) − shrink·p`` for many parameters, in place."""
        ...

    def adam(self, tasks: Sequence[Adam], scale: Tensor | None, checked: bool = False) -> None:
        """AdamW for many parameters, in place; ``checked`` as in :meth:`advance`."""
        ...
