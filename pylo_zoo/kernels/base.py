"""The interface of a device's kernels. They compute :mod:`pylo_zoo.ops.step` for many parameters, in three passes.

- The factor pass sums ``g²`` along rows and columns, and advances ``row`` and ``col``.
- The moment pass advances ``momentum``, ``second_moment`` and ``diag``, and sums each feature's squares.
- The move pass recomputes the features in registers, runs the network and writes the parameter.

No intermediate result has the size of a parameter. Before the move pass, the normalizer is folded into the first
layer's weights, because it is one scale per channel. Features that are constant along an axis (``row``, ``col`` and
their roots) become additions to the first layer's output, one per row and one per column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.lstm import LSTMWeights
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule


class Task(NamedTuple):
    """One parameter of a fused step. All tensors are contiguous and on one device."""

    p: Tensor
    """``[*shape]``, with at least one axis, in one of :attr:`Kernels.dtypes`."""
    g: Tensor
    """The gradient ``[*shape]``, in one of :attr:`Kernels.dtypes`. Not modified."""
    state: Mapping[str, Tensor]
    """float32 ``momentum [3, *shape]``, ``second_moment [1, *shape]``, and ``row`` and ``col``, or ``diag``, ``[3, …]``
    (:func:`pylo_zoo.ops.accumulators.new_accumulators`), advanced in place."""
    axes: Axes
    decays: Decays
    max_gradient: float
    """Gradients are clipped elementwise to ± this value; ``inf`` disables clipping. NaN stays."""
    replace_nonfinite: bool
    """Whether ``torch.nan_to_num`` is applied to gradients first."""


class Adam(NamedTuple):
    """One parameter of a fused AdamW step ``p ← p − coefficient·m̂/(sqrt(v̂ + eps_root) + eps) − shrink·p``."""

    p: Tensor
    g: Tensor
    momentum: Tensor
    """float32 ``[1, *shape]``"""
    second_moment: Tensor
    """float32 ``[1, *shape]``"""
    nesterov: bool
    """Use ``β1·m + (1 − β1)·g`` instead of ``m`` in ``m̂`` (NAdamW, SPEC §7)."""


class AdamInputs(NamedTuple):
    """What one AdamW step of N parameters reads."""

    values: Sequence[Tensor]
    """As in :meth:`KernelPlan.advance`."""
    gradients: Sequence[Tensor]
    numbers: Tensor
    """float64 ``[N, 5]`` on the CPU: β1, β2, eps, eps_root, and the limit to which a gradient's elements are clipped
    (``inf`` disables clipping)."""
    counts: Tensor
    """The 1-based numbers of these updates, for the bias correction, int64 ``[N]`` on the device of the kernels."""
    coefficient: Tensor
    """``[N]``"""
    shrink: Tensor
    """``[N]``"""
    scale: Tensor | None
    """A scalar that multiplies gradients first."""


class Normalized(NamedTuple):
    """One parameter of CELO2's last pass (SPEC §6)."""

    p: Tensor
    """``[*shape]``, contiguous, in one of :attr:`Kernels.dtypes`."""
    step: Tensor
    """float32 ``[*shape]``, contiguous. Can be overwritten."""
    over: tuple[int, ...]
    """One or two axes of the mean square, as negative indices."""
    eps: float


class ScratchBuffer:
    """CPU memory for steps, reused by later calls: allocating new pages costs more than filling them."""

    ALIGNED = 16
    """Each step starts at a multiple of this many floats."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None
        self._views: WeakKeyDictionary[object, list[Tensor]] = WeakKeyDictionary()

    def take(self, shapes: Sequence[torch.Size], owner: object | None = None) -> list[Tensor]:
        """One uninitialized contiguous float32 tensor per shape. The tensors of an earlier call become invalid.

        An ``owner`` always passes the same shapes and receives the same list again, unless the buffer has grown.
        """
        if owner is not None and owner in self._views:
            return self._views[owner]
        sizes = [-(-shape.numel() // self.ALIGNED) * self.ALIGNED for shape in shapes]
        if self._kept is None or len(self._kept) < sum(sizes):
            self._kept = None  # free it before the larger allocation
            self._views.clear()
            self._kept = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
        pieces = self._kept[: sum(sizes)].split(sizes)
        views = [piece[: shape.numel()].view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        if owner is not None:
            self._views[owner] = views
        return views


class KernelPlan(Protocol):
    """Parameters that kernels step together, with everything that stays the same between steps.

    A plan keeps the memory of the state, decays and tables alive, and steps the state of the tasks it was made from.
    """

    def advance(
        self,
        values: Sequence[Tensor],
        gradients: Sequence[Tensor],
        scale: Tensor | None,
        checked: bool = False,
        proceed: Tensor | None = None,
    ) -> Any:
        """The factor and moment passes: advance every accumulator.

        Args:
            values: the tensors to update in this step, contiguous, in the tasks' shapes and dtypes.
            gradients: their gradients, in the same shapes, contiguous, in one of :attr:`Kernels.dtypes`.
            scale: a scalar that multiplies gradients first.
            checked: whether the caller has checked ``values``, ``gradients`` and the state in this step.
            proceed: one int32 element on the kernels' device; if it is 0, no state is written, and the result has
                undefined numbers, which later calls may read. None: always write. A GPU's kernels read it without
                a host synchronization.

        Returns:
            The argument of :meth:`Kernels.moments`, :meth:`Kernels.move` and :meth:`Kernels.steps`: sums, factors and
            row and column tables.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout than kernels need. Nothing has changed.
        """
        ...


class CapturablePlan(Protocol):
    """What plans of kernels with :attr:`Kernels.graphs` can do as well."""

    def bind(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> object:
        """Read this step's addresses, of tensors as in :meth:`KernelPlan.advance`, for the replay of a graph.

        Returns:
            The tables that a captured step contains: another object if they had to be built again.
        """
        ...


class AdamPlan(Protocol):
    """Parameters that kernels step together with AdamW. A plan keeps the memory of the moments alive."""

    def step(self, inputs: AdamInputs, checked: bool = False, proceed: Tensor | None = None) -> None:
        """One step of every parameter, in place.

        ``checked``, ``proceed`` and errors are those of :meth:`KernelPlan.advance`; ``proceed`` applies to parameters
        too.
        """
        ...


class NormalizedPlan(Protocol):
    """Parameters of CELO2's last pass, with everything that stays the same between steps."""

    def move(
        self,
        values: Sequence[Tensor],
        steps: Sequence[Tensor],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        """``p ← p − coefficient·norm(step) − shrink·p`` for every parameter, in place.

        Args:
            values: the parameters, in the shapes and dtypes of the plan's tasks.
            steps: their steps, float32 ``[*shape]``, contiguous. Can be overwritten.
            coefficient: one per parameter.
            shrink: one per parameter.
            proceed: as in :meth:`KernelPlan.advance`: if it is 0, no parameter is written.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout than kernels need. Nothing has changed.
        """
        ...


class LSTMPlan(Protocol):
    """The LSTM of N tensors (SPEC §4), with its state ``hidden`` and ``cell`` ``[N, H]``, float32."""

    def inputs(
        self,
        run: tuple[Tensor, Tensor],
        decays: Tensor,
        loss: Tensor,
        losses: int,
        horizon: int,
        moments: Tensor | None = None,
    ) -> Tensor:
        """Add a loss to the run's averages and return the LSTM's inputs.

        Computes :mod:`pylo_zoo.ops.conditioning`, with the same operations on the averages.

        Args:
            run: the averages and minima of the loss, float32 ``[10]``, updated in place.
            decays: of the averages, float32 ``[10]``.
            loss: float32, one element.
            losses: number of losses, this one included.
            horizon: planned number of steps.
            moments: :meth:`Kernels.moments`, float32 ``[N, 9]``, if the LSTM reads features of tensors.

        Returns:
            ``[N, 30]``; ``[1, 18]``, the same for every tensor, if the LSTM reads features of the run alone.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout.
        """
        ...

    def step(self, inputs: Tensor, keep_state: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """One step over all tensors.

        Args:
            inputs: the result of :meth:`inputs`.
            keep_state: leave the state as it is.

        Returns:
            The new hidden state and cell ``[N, H]``, which are the state itself unless ``keep_state`` is set, and the
            heads' outputs ``[N, C + 1]``: controls and step size.
        """
        ...


class Kernels(Protocol):
    """The kernels of one device type. Reductions are deterministic: the same input gives the same result."""

    dtypes: tuple[torch.dtype, ...]
    """Dtypes of parameters and gradients that the kernels support. The caller copies others to float32."""
    graphs: bool
    """Whether graphs can contain the kernels (:mod:`pylo_zoo.ops.capture`)."""
    bucket: int
    """Best number of elements per call, limited by the size of the cache or of copies."""

    def covers(self, p: Tensor, axes: Axes, rule: Rule, hidden: int) -> bool:
        """Whether the kernels support a parameter of this shape, ``rule``, and ``hidden`` units per layer."""
        ...

    def plan(self, tasks: Sequence[Task], rule: Rule, moments: bool = False) -> KernelPlan:
        """Check the tasks and make a plan for their steps.

        Args:
            tasks: the parameters, with the values and gradients of the first step.
            rule: their rule.
            moments: whether :meth:`moments` will be called.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout than kernels need.
        """
        ...

    def advance(
        self,
        tasks: Sequence[Task],
        rule: Rule,
        scale: Tensor | None,
        moments: bool = False,
        proceed: Tensor | None = None,
    ) -> Any:
        """:meth:`KernelPlan.advance` of a plan for one step."""
        plan = self.plan(tasks, rule, moments)
        return plan.advance([task.p for task in tasks], [task.g for task in tasks], scale, True, proceed)

    def moments(self, advanced: Any) -> Tensor:
        """:func:`pylo_zoo.ops.conditioning.moments` of p and the *old* accumulators, float32 ``[N, 9]``.

        Requires ``plan(…, moments=True)``. Variances are computed relative to the mean of a few elements, which
        avoids cancellation. The variance of one element is 0.
        """
        ...

    def move(
        self,
        advanced: Any,
        layers: Sequence[Layer],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        """Run the move pass: ``p ← p − coefficient·step − shrink·p``, in place. Some rules multiply the step by rms(p).

        Args:
            advanced: the result of :meth:`KernelPlan.advance`.
            layers: the network in float32, with weights ``[outputs, inputs]`` for all parameters or
                ``[N, outputs, inputs]``, one per parameter. The first layer's inputs are the rule's channels (30 or
                28); time features are in its bias. Parameters with fewer channels (``rule.unfactored``) use the first
                ones. Outputs of the last layer after direction and magnitude are not used.
            coefficient: one per parameter.
            shrink: one per parameter.
            proceed: as in :meth:`KernelPlan.advance`: if it is 0, no parameter is written.
        """
        ...

    def steps(
        self, advanced: Any, layers: Sequence[Layer], scratch: ScratchBuffer, proceed: Tensor | None = None
    ) -> list[Tensor]:
        """The step of each parameter, float32 ``[*shape]``, without applying it. Some rules multiply it by rms(p).

        The steps can be stored in ``scratch``, so they are valid until its next use. They are undefined if ``proceed``
        is 0 (:meth:`KernelPlan.advance`).
        """
        ...

    def move_normalized(
        self,
        tasks: Sequence[Normalized],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        """:meth:`NormalizedPlan.move` of a plan for one step."""
        values, steps = [task.p for task in tasks], [task.step for task in tasks]
        self.plan_normalized(tasks).move(values, steps, coefficient, shrink, proceed)

    def plan_normalized(self, tasks: Sequence[Normalized]) -> NormalizedPlan:
        """Check the tasks and make a plan for CELO2's last pass.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout than kernels need.
        """
        ...

    def plan_lstm(self, weights: LSTMWeights, hidden: Tensor, cell: Tensor, ranks: Tensor | None) -> LSTMPlan | None:
        """A plan for steps of an LSTM; None if the kernels do not compute it.

        Args:
            weights: float32, on the kernels' device.
            hidden, cell: the LSTM's state, float32 ``[N, H]``, contiguous, updated in place.
            ranks: :func:`pylo_zoo.ops.conditioning.ranks`, float32 ``[N, 5]``; None if the LSTM reads features of the
                run alone.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout.
        """
        ...

    def plan_adam(self, tasks: Sequence[Adam]) -> AdamPlan:
        """Check the tasks and make a plan for AdamW's steps of many parameters.

        Raises:
            ZooError: a tensor has another size, dtype, device or layout than kernels need.
        """
        ...
