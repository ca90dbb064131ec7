"""The pretend accelerator with the GPU's own kernels: Triton's interpreter runs them on the tensors' memory.

Import this in a process with ``TRITON_INTERPRET=1`` and call :func:`install_gpu`. Operations must run inside one of the
dispatch modes of pretend_device.py or graph_double.py.
"""

# torch's types do not include tensors with other data.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pretend_device
import torch
import triton
from gpu_checks import round_as_hardware
from pretend_device import NAME, PretendTensor, Recorder, unwrap
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

import pylo_zoo
from pylo_zoo.kernels.gpu import GpuKernels
from pylo_zoo.kernels.gpu.launch import launch as real_launch

FREE = (
    *("empty", "empty_strided", "empty_like", "new_empty", "detach", "lift_fresh", "set_"),
    *("_reshape_alias", "alias", "_unsafe_view"),
)
"""Operations that allocate or rename memory, which needs no launch (``reshape`` copies by ``clone``)."""
Launch = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], None]
"""Kernel, grid, arguments and options."""
interceptors: list[Launch] = []
"""The last one is called instead of running a kernel."""


def run_kernel(kernel: Any, programs: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Run a kernel in the interpreter on the memory of the pretend device."""
    with _disable_current_modes():
        real_launch(kernel, programs, *map(unwrap, arguments), **options)


def _launch(kernel: Any, programs: Any, *arguments: Any, **options: Any) -> None:
    grid = (programs,) if isinstance(programs, int) else programs
    if 0 not in grid:
        (interceptors[-1] if interceptors else run_kernel)(kernel, programs, arguments, options)


def speed_up_interpreter() -> None:
    """Triton's interpreter lists all members of its modules at each call of a device function; list them once."""
    from triton.runtime import interpreter

    builtins: dict[int, list[str]] = {}

    def patch(package: Any, builder: Any, scope: Any) -> None:
        if id(package) not in builtins:
            members = inspect.getmembers(package)
            builtins[id(package)] = [name for name, member in members if triton.language.core.is_builtin(member)]
        for name in builtins[id(package)]:
            member = getattr(package, name)
            if triton.language.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch


def install_gpu() -> None:
    """Give the pretend device the GPU's kernels. It cannot be undone."""
    pretend_device.install()
    round_as_hardware()
    speed_up_interpreter()
    pylo_zoo.kernels._by_device[NAME] = GpuKernels()
    for name, module in list(sys.modules.items()):
        if name.startswith("pylo_zoo.kernels.gpu") and getattr(module, "launch", None) is real_launch:
            module.launch = _launch


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Counts launches by name: kernels, and torch operations that write memory of the device."""
    counts: dict[str, int] = {}

    class Counter(Recorder):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            outputs = super().__torch_dispatch__(func, types, args, kwargs)
            name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
            here = any(isinstance(each, PretendTensor) for each in tree_leaves((args, kwargs or {}, outputs)))
            if here and not func.is_view and name not in FREE:
                counts[name] = counts.get(name, 0) + 1
            return outputs

    def count_kernel(kernel: Any, programs: Any, arguments: Any, options: Any) -> None:
        name = f"kernel {kernel.fn.__name__}"
        counts[name] = counts.get(name, 0) + 1
        run_kernel(kernel, programs, arguments, options)

    interceptors.append(count_kernel)
    counter = Counter()
    try:
        with pretend_device.Constructors(counter.waits), counter:
            yield counts
    finally:
        interceptors.remove(count_kernel)


def on_device(values: Tensor) -> PretendTensor:
    return PretendTensor(values)


__all__ = ["NAME", "counting", "install_gpu", "interceptors", "on_device", "run_kernel", "torch"]
