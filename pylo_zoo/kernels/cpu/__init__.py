"""Fused CPU kernels: C++ with vector extensions, compiled on the user's machine (:mod:`pylo_zoo.kernels.cpu.build`)."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError, count
from pylo_zoo.kernels import guard
from pylo_zoo.kernels.base import Adam, AdamInputs, Kernels, Normalized, ScratchBuffer, Task
from pylo_zoo.kernels.cpu import build, lstm, records
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.lstm import LSTMWeights
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

FUNCTIONS = tuple(
    f"pylo_zoo_{name}"
    for name in (
        "workspace",
        "records",
        "advance",
        "moments",
        "move",
        "normalized",
        "adam_numbers",
        "adam",
        "lstm_inputs",
        "lstm_step",
        "gates",
    )
)
"""Functions that the library exports."""
CPU = torch.device("cpu")


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled kernels, or why they are unavailable."""
    try:
        library = build.load()
    except ZooError as error:
        return str(error)
    if missing := [name for name in FUNCTIONS if not hasattr(library, name)]:
        return f"The CPU kernel library lacks {missing[0]}: remove {library._name} and try again."
    library.pylo_zoo_workspace.restype = ctypes.c_int64
    lstm.declare(library)
    sizes = (ctypes.c_int64 * 5)()
    library.pylo_zoo_records(sizes)
    expected = [each.size for each in (records.TASK, records.RULE, records.LAYER, records.ADAM, records.NORMALIZED)]
    return library if list(sizes) == expected else f"The CPU kernels' records have {list(sizes)} bytes, not {expected}."


class CpuPlan:
    """:class:`~pylo_zoo.kernels.base.KernelPlan` for the CPU: the records of ``plan.h``."""

    def __init__(self, library: Any, tasks: Sequence[Task], rule: Rule, moments: bool) -> None:
        self.rule = rule
        self.count = len(tasks)
        self.rule_record = records.rule_record(rule, moments)
        self._kept = [tensor for task in tasks for tensor in task.state.values()]
        self._tasks = [task._replace(p=torch.empty(0), g=torch.empty(0)) for task in tasks]
        self._library = library
        self._records = records.task_records(tasks)
        self.arguments = _address(self._records), ctypes.c_int64(self.count), self.rule_record
        self._floats = library.pylo_zoo_workspace(*self.arguments)
        self._network: tuple[Any, ...] = ()
        self._outputs: tuple[Any, Any] = [], None

    def advance(
        self,
        values: Sequence[Tensor],
        gradients: Sequence[Tensor],
        scale: Tensor | None,
        checked: bool = False,
        proceed: Tensor | None = None,
    ) -> Advanced:
        if not checked:
            tasks = [task._replace(p=p, g=g) for task, p, g in zip(self._tasks, values, gradients, strict=True)]
            guard.check_tasks(tasks, CpuKernels.dtypes, CPU)
        guard.check_numbers("scale", scale, 1)
        stopped = _is_stopped(proceed)
        _set_addresses(self._records, values, gradients)
        workspace = torch.empty(self._floats, dtype=torch.float32, device="cpu")
        advanced = Advanced(self, values, gradients, workspace, _on_cpu(scale))
        if stopped:
            workspace.zero_()
            return advanced
        self._library.pylo_zoo_advance(*advanced.arguments(), _pointer(advanced.scale), torch.get_num_threads())
        return advanced

    def layers(self, layers: Sequence[Layer]) -> tuple[bytes, ctypes.c_int64]:
        """The records of a network, and their number. They are made again if a tensor has changed."""
        tensors = [tensor for layer in layers for tensor in layer]
        signature = [(id(x), x.data_ptr(), x.shape, x.stride(), x.dtype, x.device) for x in tensors]
        if not self._network or self._network[0] != signature:
            guard.check_layers(layers, self.rule, self.count, CPU, records.MAX_HIDDEN)
            kept = [(_with_whole_rows(weight, 2), _with_whole_rows(bias, 1)) for weight, bias in layers]
            self._network = signature, tensors, kept, (records.layer_records(kept), ctypes.c_int64(len(kept)))
        return self._network[-1]

    def outputs(self, scratch: ScratchBuffer, values: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Tensors for steps, and their addresses."""
        tensors = scratch.take([p.shape for p in values], self)
        if self._outputs[0] is not tensors:
            self._outputs = tensors, (ctypes.c_void_p * len(tensors))(*map(Tensor.data_ptr, tensors))
        return self._outputs


class CpuAdamPlan:
    """:class:`~pylo_zoo.kernels.base.AdamPlan` for the CPU: the records of ``adam.h``."""

    def __init__(self, library: Any, tasks: Sequence[Adam]) -> None:
        self._library = library
        self._kept = [(task.momentum, task.second_moment) for task in tasks]
        self._records = records.adam_records(tasks)
        self._arguments = _address(self._records), ctypes.c_int64(len(tasks))

    def step(self, inputs: AdamInputs, checked: bool = False, proceed: Tensor | None = None) -> None:
        guard.check_adam_inputs(inputs, None if checked else self._kept, CpuKernels.dtypes, CPU)
        if _is_stopped(proceed):
            return
        _set_addresses(self._records, inputs.values, inputs.gradients)
        numbers = inputs.numbers, inputs.counts, inputs.coefficient, inputs.shrink
        dtypes = torch.float64, torch.int64, torch.float64, torch.float64
        columns = [each.to(CPU, dtype).contiguous() for each, dtype in zip(numbers, dtypes, strict=True)]
        self._library.pylo_zoo_adam_numbers(*self._arguments, *map(_pointer, columns))
        scale = _on_cpu(inputs.scale)
        self._library.pylo_zoo_adam(*self._arguments, _pointer(scale), torch.get_num_threads())


class CpuNormalizedPlan:
    """:class:`~pylo_zoo.kernels.base.NormalizedPlan` for the CPU: the records of ``normalized.h``."""

    def __init__(self, library: Any, tasks: Sequence[Normalized]) -> None:
        self._library, self._sizes = library, [task.p.numel() for task in tasks]
        self._records = records.normalized_records(tasks)
        self._arguments = _address(self._records), ctypes.c_int64(len(tasks))
        self._numbers = torch.frombuffer(self._records, dtype=torch.float32).view(len(tasks), -1)[:, 14:16]

    def move(
        self,
        values: Sequence[Tensor],
        steps: Sequence[Tensor],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        guard.check_steps(values, steps, self._sizes, CpuKernels.dtypes, CPU)
        guard.check_numbers("coefficient", coefficient, len(values))
        guard.check_numbers("shrink", shrink, len(values))
        if _is_stopped(proceed):
            return
        _set_addresses(self._records, values, steps)
        for column, numbers in zip(self._numbers.unbind(dim=1), (coefficient, shrink), strict=True):
            column.copy_(torch.as_tensor(numbers, device="cpu"))
        self._library.pylo_zoo_normalized(*self._arguments, torch.get_num_threads())


class Advanced(NamedTuple):
    """What the factor and moment passes hand to the next calls. It keeps all memory alive that the records point to."""

    plan: CpuPlan
    values: Sequence[Tensor]
    gradients: Sequence[Tensor]
    workspace: Tensor
    scale: Tensor | None

    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of every pass."""
        return *self.plan.arguments, ctypes.c_void_p(self.workspace.data_ptr())


class CpuKernels(Kernels):
    """:class:`~pylo_zoo.kernels.base.Kernels` for the CPU, with torch's number of threads."""

    dtypes = (torch.float32,)
    graphs = False
    bucket = 1 << 20  # 24 MB with the state: fits a last-level cache

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library: Any = library

    def __repr__(self) -> str:
        return f"C++, compiled on this machine, {count(torch.get_num_threads(), 'thread')}"

    def covers(self, p: Tensor, axes: Axes, rule: Rule, hidden: int) -> bool:
        return p.device.type == "cpu" and records.covered(tuple(p.shape), axes, rule, hidden)

    def plan(self, tasks: Sequence[Task], rule: Rule, moments: bool = False) -> CpuPlan:
        guard.check_tasks(tasks, self.dtypes, CPU)
        guard.check_decays(tasks)
        return CpuPlan(self._library, tasks, rule, moments)

    def moments(self, advanced: Advanced) -> Tensor:
        out = torch.empty(advanced.plan.count, 9, dtype=torch.float32, device="cpu")
        self._library.pylo_zoo_moments(*advanced.arguments(), _pointer(out))
        return out

    def move(
        self,
        advanced: Advanced,
        layers: Sequence[Layer],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        guard.check_numbers("coefficient", coefficient, advanced.plan.count)
        guard.check_numbers("shrink", shrink, advanced.plan.count)
        factors = [
            torch.as_tensor(each, dtype=torch.float32, device="cpu").contiguous() for each in (coefficient, shrink)
        ]
        self._network(advanced, layers, _is_stopped(proceed), *map(_pointer, factors), None)

    def steps(
        self, advanced: Advanced, layers: Sequence[Layer], scratch: ScratchBuffer, proceed: Tensor | None = None
    ) -> list[Tensor]:
        out, addresses = advanced.plan.outputs(scratch, advanced.values)
        self._network(advanced, layers, _is_stopped(proceed), None, None, addresses)
        return out

    def plan_normalized(self, tasks: Sequence[Normalized]) -> CpuNormalizedPlan:
        guard.check_normalized(tasks, self.dtypes, CPU)
        return CpuNormalizedPlan(self._library, tasks)

    def plan_lstm(self, weights: LSTMWeights, hidden: Tensor, cell: Tensor, ranks: Tensor | None) -> lstm.CpuLSTM:
        return lstm.CpuLSTM(self._library, weights, hidden, cell, ranks)

    def plan_adam(self, tasks: Sequence[Adam]) -> CpuAdamPlan:
        guard.check_adam(tasks, self.dtypes, CPU)
        return CpuAdamPlan(self._library, tasks)

    def _network(self, advanced: Advanced, layers: Sequence[Layer], stopped: bool, *to: Any) -> None:
        """Run the move pass. ``to``: coefficients, shrinks and None, or None, None and the steps' addresses."""
        network = advanced.plan.layers(layers)
        if not stopped:
            arguments = (*advanced.arguments(), _pointer(advanced.scale), *network, *to)
            self._library.pylo_zoo_move(*arguments, torch.get_num_threads())


def find_kernels() -> CpuKernels | str:
    """The CPU kernels, compiled at first use on this machine, or why they are unavailable."""
    library = _library()
    return library if isinstance(library, str) else CpuKernels(library)


def _address(rows: bytearray) -> Any:
    """The address of records, which cannot be resized while it exists."""
    return (ctypes.c_char * len(rows)).from_buffer(rows)


def _set_addresses(rows: bytearray, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Write the addresses of tensors to the first two fields of records, one per pair of tensors.

    Raises:
        ZooError: a tensor has no memory.
    """
    fields, width = memoryview(rows).cast("q"), len(rows) // 8 // max(len(first), 1)
    columns = [list(map(Tensor.data_ptr, tensors)) for tensors in (first, second)]
    for tensors, addresses in zip((first, second), columns, strict=True):
        if 0 in addresses and any(x.numel() for x, address in zip(tensors, addresses, strict=True) if not address):
            raise records.no_memory(tensors[addresses.index(0)])
    for k, addresses in enumerate(columns):
        fields[k::width] = memoryview(array("q", addresses))


def _with_whole_rows(tensor: Tensor, axes: int) -> Tensor:
    """``tensor``, copied unless its last ``axes`` are contiguous. Kernels know the stride of an axis before them."""
    whole = tensor.is_contiguous() or (tensor.ndim > axes and tensor[0].is_contiguous())
    return tensor if whole else tensor.contiguous()


def _is_stopped(proceed: Tensor | None) -> bool:
    guard.check_proceed(proceed, CPU)
    return proceed is not None and not int(proceed)


def _on_cpu(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.detach().to(CPU, torch.float32).contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


__all__ = ["Advanced", "CpuKernels", "CpuPlan", "find_kernels"]
