"""A double of CUDA graphs on the pretend accelerator: what a capture forbids, freezes and keeps, without a GPU.

As on a GPU, a capture executes nothing: operations and kernel launches are recorded with their tensors, and
:meth:`GraphDouble.replay` runs them on the same memory. Numbers from the host are frozen. A copy from pinned memory
reads that memory again at each replay. These raise :class:`CaptureError`:

- during a capture: reading a value, copying to the host or from pageable memory, allocating pinned memory, and tensors
  on the host as inputs of device operations, unless they are scalars, which are frozen;
- at a replay: a tensor or pinned memory from before the capture that has been freed.

Memory from ``empty`` is filled with NaN at each replay.
"""

# torch's types do not include tensors with other data.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pretend_device
import torch
from pretend_device import NAME, PretendTensor, Recorder, unwrap
from pretend_gpu import interceptors, run_kernel
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pylo_zoo.ops import capture as package_capture

ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")


class CaptureError(RuntimeError):
    """What a real capture forbids, or what would read freed memory in a replay."""


class GraphDouble:
    """Recorded operations. ``launches`` names them, ``replays`` counts."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.replays = 0
        self._steps: list[Callable[[], None]] = []
        self._inputs: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._created: dict[int, PretendTensor] = {}

    def replay(self) -> None:
        freed = [name for alive, name in self._inputs.values() if alive() is None]
        if freed:
            raise CaptureError(f"inputs of {freed} have been freed")
        for step in self._steps:
            step()
        self.replays += 1

    def record(self, name: str, step: Callable[[], None], inputs: Any, outputs: Any = ()) -> None:
        """Add an operation, hold its own tensors, and watch those that existed before the capture."""
        for each in tree_leaves(inputs):
            if isinstance(each, PretendTensor):
                if id(each) not in self._created:
                    self._inputs.setdefault(id(each), (weakref.ref(each), name))
            elif isinstance(each, Tensor) and (owner := pretend_device.pinned_owner(each)) is not None:
                self._inputs.setdefault(id(owner), (weakref.ref(owner), f"{name} from pinned memory"))
        for each in tree_leaves(outputs):
            if isinstance(each, PretendTensor) and id(each) not in self._inputs:
                self._created[id(each)] = each
        self._steps.append(step)
        self.launches.append(name)


class CaptureMode(Recorder):
    """Records operations of the pretend device instead of running them."""

    def __init__(self, graph: GraphDouble) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = any(isinstance(each, PretendTensor) for each in tensors)
        if not here and not pretend_device._is_here(kwargs.get("device")):
            return func(*args, **kwargs)
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        _check_allowed(name, args, kwargs, tensors)
        args, kwargs = tree_map(_frozen, (args, kwargs)) if here else (args, kwargs)
        if func._schema.is_mutable:
            outputs = kwargs["out"] if "out" in kwargs else args[0] if func._schema.returns else None
        else:
            outputs = pretend_device._run(func, args, kwargs, [])
        step = _replayed(func, name, args, kwargs, outputs)
        if step is not None:
            self.graph.record(name, step, (args, kwargs), outputs)
        else:
            self.graph.record(name, lambda: None, (args, kwargs), outputs)
            self.graph.launches.pop()
        return outputs


def _replayed(func: Any, name: str, args: Any, kwargs: Any, outputs: Any) -> Callable[[], None] | None:
    """What a replay runs; None for operations that only rename memory."""
    inner = tree_map(_memory, (args, {key: _plain(value) for key, value in kwargs.items()}))
    if func._schema.is_mutable:
        return lambda: func(*inner[0], **inner[1])
    written = [each.inner for each in tree_leaves(outputs) if isinstance(each, PretendTensor)]
    if name in ALLOCATIONS:
        return partial(_scramble, written)
    sources = {each.untyped_storage().data_ptr() for each in tree_leaves(inner) if isinstance(each, Tensor)}
    if func.is_view or any(each.untyped_storage().data_ptr() in sources for each in written if each.numel()):
        return None

    def run() -> None:
        again = tree_leaves(func(*inner[0], **inner[1]))
        for target, value in zip(written, [each for each in again if isinstance(each, Tensor)], strict=True):
            target.copy_(value)

    return run


def _scramble(tensors: list[Tensor]) -> None:
    for each in tensors:
        if each.is_floating_point():
            each.fill_(torch.nan)


def _memory(value: Any) -> Any:
    """The tensor that a replay uses. It does not keep the owner of pinned memory alive."""
    if isinstance(value, Tensor) and not isinstance(value, PretendTensor):
        where = value.untyped_storage(), value.storage_offset(), value.shape, value.stride()
        return torch.empty(0, dtype=value.dtype).set_(*where)
    return unwrap(value)


def _plain(value: Any) -> Any:
    return torch.device("cpu") if pretend_device._is_here(value) else value


def _frozen(value: Any) -> Any:
    """A scalar on the host is a number in the graph."""
    on_host = isinstance(value, Tensor) and not isinstance(value, PretendTensor)
    return value.clone() if on_host and value.ndim == 0 else value


def _check_allowed(name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    reason = pretend_device._why_it_waits(name, args, tensors, kwargs.get("device"))
    on_host = [each for each in tensors if not isinstance(each, PretendTensor) and each.ndim > 0]
    if name in ("copy_", "_to_copy") and reason is None:  # from pinned memory
        on_host = []
    if reason is None and on_host:
        reason = f"{name} reads a tensor on the host"
    if reason is not None:
        raise CaptureError(f"{reason}: {pretend_device._caller()}")


class DoubleCapture:
    """The package's interface to graphs (:class:`pylo_zoo.ops.capture.Capture`) with doubles."""

    def __init__(self) -> None:
        self.current: GraphDouble | None = None
        self.captured: list[GraphDouble] = []
        self.fails = False
        """The next capture fails after its operations have been recorded."""

    def is_capturing(self) -> bool:
        return self.current is not None

    def capture(self, device: torch.device, run: Callable[[], None]) -> GraphDouble:
        with self.user_capture() as graph:
            run()
        return graph

    @contextmanager
    def user_capture(self) -> Iterator[GraphDouble]:
        """What ``torch.cuda.graph`` is on a GPU."""
        assert self.current is None, "two captures at a time"
        graph = GraphDouble()

        def record_kernel(kernel: Any, programs: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            tensors = [each for each in arguments if isinstance(each, Tensor)]
            if not all(isinstance(each, PretendTensor) for each in tensors):
                raise CaptureError(f"{kernel.fn.__name__} gets a tensor on the host")
            inner = tuple(map(unwrap, arguments))
            name = f"kernel {kernel.fn.__name__}"
            graph.record(name, lambda: run_kernel(kernel, programs, inner, options), arguments)

        mode = CaptureMode(graph)
        interceptors.append(record_kernel)
        self.current = graph
        try:
            with _forbidden(), mode:
                yield graph
            if self.fails:
                self.fails = False
                raise CaptureError("the capture fails")
        finally:
            self.current = None
            interceptors.remove(record_kernel)
        self.captured.append(graph)


class _Constructors(pretend_device.Constructors):
    """``torch.tensor(…, device=…)`` copies pageable memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = len(self.waits)
        result = super().__torch_function__(func, types, args, kwargs)
        if len(self.waits) > before:
            raise CaptureError(self.waits[-1])
        return result


@contextmanager
def _forbidden() -> Iterator[None]:
    """Constructors and pinned memory raise."""
    pin = Tensor.pin_memory

    def refuse(values: Tensor) -> Tensor:
        raise CaptureError(f"pinned memory is allocated: {pretend_device._caller()}")

    Tensor.pin_memory = refuse
    try:
        with _Constructors([]):
            yield
    finally:
        Tensor.pin_memory = pin


def install_graphs() -> DoubleCapture:
    """Register the double for the pretend device."""
    double = DoubleCapture()
    package_capture.captures[NAME] = double
    return double
