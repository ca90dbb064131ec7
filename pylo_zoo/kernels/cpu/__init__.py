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
from pylo_zoo.kernels.base import Adam, AdamInputs, Normalized, ScratchBuffer, Task
from pylo_zoo.kernels.cpu import build, records
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

FUNCTIONS = tuple(
    f"pylo_zoo_{name}" for name in ("workspace", "records", "advance", "moments", "move", "normalized", "adam")
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
        self._pointers = torch.frombuffer(self._records, dtype=torch.int64).view(self.count, -1)[:, :2]
        self._floats = library.pylo_zoo_workspace(self.address(), ctypes.c_int64(self.count), self.rule_record)

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
        _set_addresses(self._pointers, values, gradients)
        workspace = torch.empty(self._floats, dtype=torch.float32, device="cpu")
        advanced = Advanced(self, values, gradients, workspace, _on_cpu(scale))
        if stopped:
            workspace.zero_()
            return advanced
        self._library.pylo_zoo_advance(*advanced.arguments(), _pointer(advanced.scale), torch.get_num_threads())
        return advanced

    def address(self) -> Any:
        return (ctypes.c_char * len(self._records)).from_buffer(self._records)


class CpuAdamPlan:
    """:class:`~pylo_zoo.kernels.base.AdamPlan` for the CPU: the records of ``adam.h``."""

    def __init__(self, library: Any, tasks: Sequence[Adam]) -> None:
        self._library = library
        self._kept = [(task.momentum, task.second_moment) for task in tasks]
        self._records = records.adam_records(tasks)
        self._pointers = torch.frombuffer(self._records, dtype=torch.int64).view(len(tasks), -1)[:, :2]
        self._numbers = torch.frombuffer(self._records, dtype=torch.float32).view(len(tasks), -1)[:, 10:19]

    def step(self, inputs: AdamInputs, checked: bool = False, proceed: Tensor | None = None) -> None:
        guard.check_adam_inputs(inputs, None if checked else self._kept, CpuKernels.dtypes, CPU)
        if _is_stopped(proceed):
            return
        _set_addresses(self._pointers, inputs.values, inputs.gradients)
        betas, eps, eps_root, limit = inputs.numbers.split([2, 1, 1, 1], dim=1)
        coefficient, shrink = (each.to(inputs.numbers)[:, None] for each in (inputs.coefficient, inputs.shrink))
        corrections = 1 / (1 - betas ** inputs.counts[:, None])
        columns = betas, eps, eps_root, coefficient, shrink, limit, corrections
        self._numbers.copy_(torch.cat(columns, dim=1))
        scale = _on_cpu(inputs.scale)
        rows = (ctypes.c_char * len(self._records)).from_buffer(self._records)
        count = ctypes.c_int64(len(inputs.values))
        self._library.pylo_zoo_adam(rows, count, _pointer(scale), torch.get_num_threads())


class Advanced(NamedTuple):
    """What the factor and moment passes hand to the next calls. It keeps all memory alive that the records point to."""

    plan: CpuPlan
    values: Sequence[Tensor]
    gradients: Sequence[Tensor]
    workspace: Tensor
    scale: Tensor | None

    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of every pass."""
        workspace = ctypes.c_void_p(self.workspace.data_ptr())
        return self.plan.address(), ctypes.c_int64(self.plan.count), self.plan.rule_record, workspace


class CpuKernels:
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

    def advance(
        self,
        tasks: Sequence[Task],
        rule: Rule,
        scale: Tensor | None,
        moments: bool = False,
        proceed: Tensor | None = None,
    ) -> Advanced:
        plan = self.plan(tasks, rule, moments)
        return plan.advance([task.p for task in tasks], [task.g for task in tasks], scale, True, proceed)

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
        out = scratch.take([p.shape for p in advanced.values])
        addresses = (ctypes.c_void_p * len(out))(*(each.data_ptr() for each in out))
        self._network(advanced, layers, _is_stopped(proceed), None, None, addresses)
        return out

    def move_normalized(
        self,
        tasks: Sequence[Normalized],
        coefficient: Tensor | Sequence[float],
        shrink: Tensor | Sequence[float],
        proceed: Tensor | None = None,
    ) -> None:
        guard.check_normalized(tasks, self.dtypes, CPU)
        if _is_stopped(proceed):
            return
        factors = (each.tolist() if isinstance(each, Tensor) else each for each in (coefficient, shrink))
        rows = records.normalized_records(tasks, *factors)
        self._library.pylo_zoo_normalized(rows, ctypes.c_int64(len(tasks)), torch.get_num_threads())

    def plan_adam(self, tasks: Sequence[Adam]) -> CpuAdamPlan:
        guard.check_adam(tasks, self.dtypes, CPU)
        return CpuAdamPlan(self._library, tasks)

    def _network(self, advanced: Advanced, layers: Sequence[Layer], stopped: bool, *to: Any) -> None:
        """Run the move pass. ``to``: coefficients, shrinks and None, or None, None and the steps' addresses."""
        guard.check_layers(layers, advanced.plan.rule, advanced.plan.count, CPU, records.MAX_HIDDEN)
        if stopped:
            return
        kept = [(weight.contiguous(), bias.contiguous()) for weight, bias in layers]
        layer_records, count = records.layer_records(kept), ctypes.c_int64(len(kept))
        arguments = (*advanced.arguments(), _pointer(advanced.scale), layer_records, count, *to)
        self._library.pylo_zoo_move(*arguments, torch.get_num_threads())


def find_kernels() -> CpuKernels | str:
    """The CPU kernels, compiled at first use on this machine, or why they are unavailable."""
    library = _library()
    return library if isinstance(library, str) else CpuKernels(library)


def _set_addresses(pointers: Tensor, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Write the addresses of values and gradients to their columns of the records.

    Raises:
        ZooError: a tensor has no memory.
    """
    addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in (values, gradients)]
    for tensors, each in zip((values, gradients), addresses, strict=True):
        if 0 in each and any(tensor.numel() for tensor, address in zip(tensors, each, strict=True) if not address):
            raise records.no_memory(tensors[each.index(0)])
    columns = [torch.frombuffer(array("q", each), dtype=torch.int64) for each in addresses]
    pointers.copy_(torch.stack(columns, dim=1))


def _is_stopped(proceed: Tensor | None) -> bool:
    guard.check_proceed(proceed, CPU)
    return proceed is not None and not int(proceed)


def _on_cpu(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.detach().to(CPU, torch.float32).contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


__all__ = ["Advanced", "CpuKernels", "CpuPlan", "find_kernels"]
