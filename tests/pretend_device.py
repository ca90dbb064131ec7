"""A pretend accelerator: its tensors hold CPU tensors, and operations that would wait for a GPU are recorded.

``python tests/pretend_device.py [--thorough]`` steps every optimizer on it and prints, as JSON, where each one waits.
It runs in a separate process, because torch allows one such device per process and keeps it.

An operation waits if it reads a value (``item``, ``nonzero``), copies from the device, copies pageable host memory to
it, or indexes its tensors with a tensor or list on the host.
"""

# torch's typing knows neither tensors with other data nor replaced methods.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportIncompatibleMethodOverride=false, reportFunctionMemberAccess=false
from __future__ import annotations

import inspect
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from contract_table import TABLE
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import pylo_zoo
from pylo_zoo.artifact import Artifact
from pylo_zoo.kernels import Adam, Normalized, Task
from pylo_zoo.kernels.cpu import CpuKernels, find_kernels
from pylo_zoo.weights import load

NAME = "pretend"
READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2")
PACKAGE = str(Path(pylo_zoo.__file__).parent)


class PretendTensor(Tensor):
    """A tensor on the pretend device; its values are those of ``inner``, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, device=f"{NAME}:0", **options)
        wrapper.inner = inner
        return wrapper

    def __format__(self, specification: str) -> str:
        return format(self.inner.detach(), specification)

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        return memo.setdefault(id(self), PretendTensor(self.inner.detach().clone()))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.data_ptr, Tensor.untyped_storage):
            return func(args[0].inner)
        with torch._C.DisableTorchFunctionSubclass():  # results on the CPU stay plain tensors
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


class Recorder(TorchDispatchMode):
    """Runs operations on the pretend device, and records the package's lines that would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


class Constructors(TorchFunctionMode):
    """``torch.tensor`` and ``torch.as_tensor``, whose copies to the device no dispatch mode sees."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_here(torch.device(kwargs.get("device") or "cpu")):
            if isinstance(args[0], PretendTensor):
                return func(*args, **kwargs)
            self.waits.append(f"a copy from the host: {_caller()}")
            return PretendTensor(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


pinned: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
"""Tensors in pinned memory, by address: they and their views are copied to the device without waiting."""


def pin(values: Tensor) -> Tensor:
    """``Tensor.pin_memory`` of a machine with an accelerator."""
    copy = values.clone()
    pinned[copy.untyped_storage().data_ptr()] = copy
    return copy


def pinned_owner(values: Tensor) -> Tensor | None:
    """The tensor whose pinned memory ``values`` is in; None for pageable memory."""
    return None if isinstance(values, PretendTensor) else pinned.get(values.untyped_storage().data_ptr())


def unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def _is_here(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], waits: list[str]) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [each for each in leaves if isinstance(each, Tensor)]
    to = kwargs.get("device")
    here = _is_here(to) or (any(isinstance(each, PretendTensor) for each in tensors) and to is None)
    name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
    if reason := _why_it_waits(name, args, tensors, to):
        waits.append(f"{reason}: {_caller()}")
    plain = {key: torch.device("cpu") if _is_here(value) else value for key, value in kwargs.items()}
    outputs = func(*tree_map(unwrap, args), **tree_map(unwrap, plain))
    known = {id(each.inner): each for each in tensors if isinstance(each, PretendTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return PretendTensor(value) if here else value

    return tree_map(wrap, outputs)


def _why_it_waits(name: str, args: Sequence[Any], tensors: Sequence[Tensor], to: Any) -> str | None:
    on_device = [each for each in tensors if isinstance(each, PretendTensor)]
    on_host = [each for each in tensors if not isinstance(each, PretendTensor)]
    if name in READS and on_device:
        return f"{name} reads a value"
    if name == "_to_copy" and to is not None and (bool(on_device) != _is_here(to)):
        if _is_here(to) and pinned_owner(tensors[0]) is not None:
            return None
        return "a copy from the host" if _is_here(to) else "a copy to the host"
    if name == "copy_" and on_device and on_host and (args[0] is on_host[0] or pinned_owner(on_host[0]) is None):
        return "a copy to the host" if args[0] is on_host[0] else "a copy from the host"
    if name in ("index", "index_put_", "index_put") and on_device and on_host:
        return "an index on the host"
    return None


def _caller() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
    return f"{frames[-1].filename[len(PACKAGE) + 1 :]}:{frames[-1].lineno} {frames[-1].line}" if frames else "torch"


# --- the package on the pretend device -------------------------------------------------------------------------------


class PretendKernels(CpuKernels):
    """The CPU kernels for tensors of the pretend device."""

    def covers(self, p: Tensor, *arguments: Any) -> bool:
        return super().covers(unwrap(p), *arguments)

    def plan(self, tasks: Sequence[Task], *arguments: Any) -> Any:
        return PretendPlan(super().plan(tree_map(unwrap, list(tasks)), *arguments))

    def plan_adam(self, tasks: Sequence[Adam]) -> Any:
        return PretendPlan(super().plan_adam(tree_map(unwrap, list(tasks))))

    def moments(self, advanced: Any) -> Tensor:
        return PretendTensor(super().moments(advanced))

    def move(self, advanced: Any, *arguments: Any, **options: Any) -> None:
        super().move(advanced, *tree_map(unwrap, arguments), **tree_map(unwrap, options))

    def steps(self, advanced: Any, layers: Any, scratch: Any, proceed: Any = None) -> list[Tensor]:
        steps = super().steps(advanced, tree_map(unwrap, layers), scratch, unwrap(proceed))
        return [PretendTensor(each) for each in steps]

    def plan_normalized(self, tasks: Sequence[Normalized]) -> Any:
        return PretendPlan(super().plan_normalized(tree_map(unwrap, list(tasks))))

    def plan_lstm(self, *arguments: Any) -> None:
        """As on a GPU, the eager implementation computes the LSTM."""


class PretendPlan:
    def __init__(self, plan: Any) -> None:
        self._plan = plan

    def advance(self, *arguments: Any, **options: Any) -> Any:
        return self._plan.advance(*tree_map(unwrap, arguments), **tree_map(unwrap, options))

    def step(self, *arguments: Any, **options: Any) -> None:
        self._plan.step(*tree_map(unwrap, arguments), **tree_map(unwrap, options))

    def move(self, *arguments: Any, **options: Any) -> None:
        self._plan.move(*tree_map(unwrap, arguments), **tree_map(unwrap, options))


def _on_device(net: nn.Module) -> nn.Module:
    """``net`` with a ``to`` that accepts the pretend device, for which torch cannot move modules."""

    def to(device: torch.device, dtype: torch.dtype) -> nn.Module:
        for module in net.modules():
            for tensors in (module._parameters, module._buffers):
                for name, value in tensors.items():
                    if value is not None:
                        moved = value.detach().to(dtype)
                        tensors[name] = PretendTensor(moved) if device.type == NAME else moved
        return net

    net.to = to
    return net


def install() -> None:
    """Make the device known to torch and to the package. It cannot be removed."""
    _setup_privateuseone_for_python_backend(NAME)
    kernels = find_kernels()
    if isinstance(kernels, CpuKernels):
        pylo_zoo.kernels._by_device[NAME] = PretendKernels(kernels._library)
    net = Artifact.net
    Artifact.net = lambda self: _on_device(net(self))
    Tensor.pin_memory = pin


VARIANTS: dict[str, dict[str, Any]] = {
    "weight decay": {"weight_decay": 1e-4},
    "clip_norm": {"clip_norm": 1.0},
    "L2 decay": {"weight_decay": 1e-4, "decay": "l2"},
    "accumulate": {"accumulate": 2},
    "master weights": {"master_weights": True},
    "skip": {"nonfinite": "skip"},
    "skip, clip_norm": {"nonfinite": "skip", "clip_norm": 1.0},
    "skip, L2 decay": {"nonfinite": "skip", "weight_decay": 1e-4, "decay": "l2"},
    "skip, accumulate": {"nonfinite": "skip", "accumulate": 2},
    "skip, master weights": {"nonfinite": "skip", "master_weights": True},
}
"""Arguments of the optimizers that have them; "master weights" uses bfloat16 parameters."""
LOSSES: dict[str, Callable[[int], Any]] = {
    "a loss on the device": lambda step: PretendTensor(torch.tensor(1.0 / (step + 1))),
    "a number as loss": lambda step: 1.0 / (step + 1),
}
SHAPES = ((6, 4), (7,), (8, 4, 3, 3), (9,), ())


def parameters(dtype: torch.dtype) -> list[PretendTensor]:
    return [PretendTensor(torch.randn(shape, dtype=dtype)).requires_grad_() for shape in SHAPES]


def waits_of(build: Callable[[Any], Any], loss: Callable[[int], Any], dtype: torch.dtype, lr: bool) -> list[str]:
    """The lines that wait in the third and fourth step of an optimizer over a few parameters.

    With ``lr``, the learning rate is a tensor on the device, and changes.
    """
    params = parameters(dtype)
    optimizer = build(params)
    if lr:
        optimizer.param_groups[0]["lr"] = PretendTensor(torch.tensor(1e-3))
    found: list[str] = []
    for step in range(4):
        for p in params:
            p.grad = PretendTensor(torch.randn(p.shape, dtype=dtype))
        recorder = Recorder()
        with Constructors(recorder.waits), recorder:
            optimizer.step(loss=loss(step))
        optimizer.param_groups[0]["lr"] *= 0.99
        found += recorder.waits if step >= 2 else []
    return list(dict.fromkeys(found))


def cases(backend: str, thorough: bool) -> Iterator[tuple[str, dict[str, Any], str, bool]]:
    """Variant, its arguments, kind of loss, and whether the learning rate is on the device."""
    on_device, on_host = LOSSES
    yield "defaults", {}, on_device, False
    yield "defaults", {}, on_host, True
    if backend == "fused":
        yield "skip", VARIANTS["skip"], on_device, False
    if thorough:
        yield "defaults", {}, on_host, False
        yield "defaults", {}, on_device, True
        yield from ((name, arguments, on_device, False) for name, arguments in VARIANTS.items())


def main(thorough: bool) -> None:
    install()
    warnings.simplefilter("ignore")  # a falling lr under VeLO
    results = {}
    for (name, entry), backend in product(TABLE.items(), ("eager", "fused")):
        accepted = inspect.signature(entry.cls).parameters
        weights = {} if entry.weights is None else {"weights": load(entry.weights)}
        for variant, extra, loss, lr in cases(backend, thorough):
            if extra.keys() <= accepted.keys():
                arguments = {**entry.arguments, **weights, **extra, "backend": backend}
                dtype = torch.bfloat16 if "master_weights" in extra else torch.float32
                key = f"{name}, {backend}, {variant}, {loss}" + (", lr on the device" if lr else "")
                results[key] = waits_of(lambda p, a=arguments, c=entry.cls: c(p, **a), LOSSES[loss], dtype, lr)
    # The recorder must see a wait: nonfinite="raise" reads whether values are finite.
    entry = TABLE["ELO"]
    raising = {**entry.arguments, "weights": load(entry.weights), "nonfinite": "raise"}
    results["control"] = waits_of(lambda p: entry.cls(p, **raising), LOSSES["a number as loss"], torch.float32, False)
    print(json.dumps(results))


if __name__ == "__main__":
    main("--thorough" in sys.argv)
