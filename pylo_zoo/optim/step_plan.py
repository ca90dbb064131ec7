"""What a step reads per parameter (:class:`ParamStep`), and what stays the same between steps (:class:`StepPlan`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.capture import is_capturing
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.lstm import LSTMWeights
from pylo_zoo.optim.contract import ParamGrad
from pylo_zoo.optim.own_graph import OwnGraph
from pylo_zoo.optim.precision import state_dtype, wide_value
from pylo_zoo.optim.state_checks import Snapshot, join

if TYPE_CHECKING:
    from pylo_zoo.optim.kernel_batch import KernelBatch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class MetaNetwork:
    """A checkpoint's network and decays on one device, in one dtype."""

    net: nn.Module
    decays: Decays

    @cached_property
    def lstm(self) -> LSTMWeights:
        """The LSTM's weights for fused kernels."""
        return self.net.controller.compose()  # pyright: ignore

    @cached_property
    def bank(self) -> Tensor:
        """:meth:`~pylo_zoo.nets.VeLONet.flat_bank`."""
        return self.net.flat_bank()  # pyright: ignore


class ParamStep:
    """One parameter during a step, with everything its update reads.

    Attributes:
        parameter: the parameter.
        gradient: its gradient, unmodified.
        group: its parameter group.
        state: its optimizer state.
        axes: the axes of its factored second moment.
        meta: the network and decays on the parameter's device, in the dtype of the update.
        scale: scalar factor on the gradient from global-norm clipping, or None.
        own_scale: scalar factor on this gradient alone, applied after ``scale``, or None.
        l2: coefficient of L2 decay, ``g + l2·p``; 0 for none.
        is_direct: whether fused kernels update the parameter itself, not a copy (:meth:`fits`).
    """

    __slots__ = (
        *("parameter", "gradient", "group", "state", "axes", "meta", "scale", "own_scale", "l2", "is_direct"),
        *("_p", "_copy_target", "_bypassed_autograd"),
    )

    def __init__(self, param_grad: ParamGrad, state: dict[str, Tensor], axes: Axes, meta: MetaNetwork) -> None:
        self.parameter, self.gradient, self.group = param_grad
        self.state, self.axes, self.meta = state, axes, meta
        self.scale: Tensor | None = None
        self.own_scale: Tensor | None = None
        self.l2 = 0.0
        self.is_direct = False
        self._p: Tensor | None = None
        self._copy_target: Tensor | None = None
        self._bypassed_autograd = False

    @property
    def p(self) -> Tensor:
        """The parameter's value in the update's dtype, ``[*shape]`` or ``[1]`` for a scalar.

        It is a view of the parameter if the dtypes agree, else a copy that :meth:`write_back` rounds to the parameter.
        """
        if self._p is None:
            self._p = self.read_value()
        return self._p

    @property
    def g(self) -> Tensor:
        """The scaled gradient, in the shape and dtype of ``p``. Read-only: it may be ``parameter.grad`` itself."""
        g = self.gradient.to(state_dtype(self.parameter))
        for scale in (self.scale, self.own_scale):
            g = g if scale is None else g * scale.to(g)
        g = g.view(1) if g.ndim == 0 else g
        return g + self.l2 * self.p if self.l2 else g

    def read_value(self) -> Tensor:
        """The value as in :attr:`p`, without caching it: cached copies of all 16-bit parameters would be large."""
        value = wide_value(self.parameter, self.state)
        return value.view(1) if value.ndim == 0 else value

    def fits(self, dtypes: Sequence[torch.dtype]) -> bool:
        """Whether kernels that support ``dtypes`` can read and write the parameter itself."""
        p = self.parameter
        return "master" not in self.state and p.dtype in dtypes and p.ndim > 0 and p.is_contiguous() and not p.is_neg()

    def kernel_inputs(self, dtypes: Sequence[torch.dtype]) -> tuple[Tensor, Tensor]:
        """Contiguous value and gradient for kernels, in one of ``dtypes``; ``scale`` is not applied to the gradient.

        The value shares memory with the parameter or its master copy if possible. Call :meth:`write_back` after the
        kernel.
        """
        p = self.parameter
        if self.fits(dtypes):
            self._p, self._copy_target = p, None  # a step runs under no_grad; thousands of views are slow
        else:
            value = p.detach() if "master" not in self.state and p.dtype in dtypes else self.read_value()
            value = value.view(1) if value.ndim == 0 else value
            self._p = value.contiguous().resolve_neg()
            self._copy_target = None if self._p is value else value
        self._bypassed_autograd = True
        g = self.gradient if self.own_scale is None else self.gradient * self.own_scale
        g = g + self.l2 * self.p if self.l2 else g
        g = g if g.dtype in dtypes else g.to(state_dtype(self.parameter))
        return self._p, (g.view(1) if g.ndim == 0 else g).contiguous().resolve_neg()

    def write_back(self) -> None:
        """Copy ``p`` to the parameter if it is not a view of it, and release it."""
        if self._copy_target is not None and self._p is not None:
            self._copy_target.copy_(self._p)
        if self._p is not None and self._p.dtype != self.parameter.dtype:
            self.parameter.copy_(self._p.view_as(self.parameter))
        if self._bypassed_autograd:  # backward through a graph that saved the old value must fail
            torch.autograd.graph.increment_version(self.parameter)
        self._p = self._copy_target = None


class Kept:
    """Values that are computed once and live as long as the object."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def keep(self, name: str, build: Callable[[], T]) -> T:
        """The value of ``build``, which is called only the first time."""
        if name not in self._kept:
            value = build()
            if is_capturing():  # its tensors have no values before the first replay
                return value
            self._kept[name] = value
        return self._kept[name]

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def kept(self, name: str) -> Any:
        """The value that :meth:`keep` has stored."""
        return self._kept[name]


class StepPlan(Kept):
    """Everything about a step that does not change while the same parameters have gradients.

    It is valid until a check finds that a parameter, a gradient's dtype, a state tensor or a group option has changed
    (:mod:`pylo_zoo.optim.state_checks`).

    Args:
        snapshot: what the parameters, gradients and state were when this plan was made.
        items: the parameters.

    Attributes:
        batches: the parameters that kernels update, after the first step.
        all_in_batches: whether kernels update all parameters.
        graph: the graph that the optimizer captures by itself.
    """

    def __init__(self, snapshot: Snapshot | None, items: list[ParamStep]) -> None:
        super().__init__()
        self.snapshot, self.items = snapshot, items
        self.batches: list[KernelBatch] = []
        self.all_in_batches = True
        self.graph = OwnGraph()

    def add_batches(self, batches: Sequence[KernelBatch], rest: bool) -> None:
        """Note which parameters kernels update; ``rest`` is whether the eager implementation updates others."""
        self.batches += batches
        self.all_in_batches = self.all_in_batches and not rest


def share_memory(states: Sequence[dict[str, Tensor]], name: str) -> None:
    """Store an entry of many states in one tensor ``[N, …]``, whose rows replace the entries.

    Does nothing if the entries are such rows already, or differ in shape, dtype or device.
    """
    entries = [state[name] for state in states]
    alike = len({(each.shape, each.dtype, each.device) for each in entries}) == 1
    if alike and not entries[0].is_meta and join(entries) is None:
        shared = torch.stack(entries)
        for k, state in enumerate(states):
            state[name] = shared[k]
