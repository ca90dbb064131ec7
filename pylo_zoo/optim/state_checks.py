"""Checks that parameters, gradients and state fit each other, before a step writes anything.

Users replace ``p.data``, assign ``state[p][name]`` or move tensors between steps, and kernels use raw addresses. So
every step reads the shape, dtype, device and contiguity of each tensor that it uses, and the addresses of the state. On
the fast path, all of it equals the previous step's, and the step's plan stays valid
(:class:`~pylo_zoo.optim.step_plan.StepPlan`). Any difference takes the slow path, which reports the tensor that does
not fit. The address alone is not enough: ``state.data = state.data.expand(…)`` keeps it.

Unknown entries of ``state[p]`` belong to other libraries (Lookahead, SAM) and are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from operator import attrgetter, eq, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from pylo_zoo.optim.contract import Group, ParamGrad, ZooOptimizer

RATES = ("lr", "weight_decay")
"""Group options that kernels receive as numbers."""
MASTER, COUNTER = "master", "step"
COUNTERS = frozenset([COUNTER, "banked"])
"""Entries of a parameter's state that count steps."""
COUNTER_DTYPES = (torch.int64, torch.int32)
"""Dtypes of the run's counters."""
REBUILD = "Build a new optimizer, or load_state_dict a state that fits."

Reader = Callable[[Any], tuple[Any, ...]]

_metadata = attrgetter("shape", "dtype", "device")
_shape, _dtype, _device, _is_cpu = map(attrgetter, ("shape", "dtype", "device", "is_cpu"))


class Entry(NamedTuple):
    """The expected metadata of one state tensor."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return describe(self.shape, self.dtype, self.device)


class Snapshot(NamedTuple):
    """The metadata of the last step that passed the checks."""

    setup: tuple[Any, ...]
    """Inference mode, backend, group options, and identities of parameters and groups."""
    readers: list[Reader]
    """One per parameter; reads the known entries of its state."""
    addresses: list[int]
    """Of the known entries of all parameters."""
    counters: list[Tensor]
    """AdamW's counters on a CPU, joined if they are rows of one tensor. Reading others would wait for their device."""
    masters: list[bool]
    strides: list[Any]
    dtypes: list[torch.dtype]
    """Of parameters, gradients and all entries, like the following fields."""
    devices: list[torch.device]
    on_cpu: bool
    shapes: list[torch.Size]


class StateChecks:
    """The checks of one optimizer, with snapshots of the last steps that passed."""

    def __init__(self) -> None:
        self._snapshots: dict[str, Snapshot] = {}
        self._expected: dict[Any, list[Entry]] = {}

    def check(self, optimizer: ZooOptimizer, grads: Sequence[ParamGrad], kind: str = "step") -> Snapshot | None:
        """Raise unless parameters, gradients and state fit each other.

        Args:
            optimizer: the optimizer; parameters that have never been updated may lack state.
            grads: the parameters of a step and their gradients.
            kind: a name for these parameters; each kind has its own snapshot.

        Returns:
            The snapshot, the same object as in the last step if nothing has changed; None if a parameter's state is
            incomplete, so that ``_init_state`` must complete it.

        Raises:
            ZooError: a tensor does not fit. Nothing has been written.
        """
        if not grads:
            return None
        parameters, gradients, groups = zip(*grads, strict=True)
        get_state = optimizer.state.get
        states: list[Any] = [get_state(p) for p in parameters]
        options = [_options(optimizer, group) for group in optimizer.param_groups]
        mode = torch.is_inference_mode_enabled(), optimizer.backend
        setup = mode, options, list(map(id, parameters)), list(map(id, groups))
        snapshot = self._snapshots.pop(kind, None)
        if snapshot is not None and _is_unchanged(snapshot, setup, parameters, gradients, states):
            self._snapshots[kind] = snapshot
            return snapshot
        for group in optimizer.param_groups:
            _check_rates(group)
        optimizer._check_new(grads)
        names = [self._check_one(optimizer, *each) for each in zip(grads, states, strict=True)]
        complete = [each for each in names if each is not None]
        if len(complete) < len(names):
            return None
        readers = [_reader(each) for each in complete]
        entries = _flat(readers, states)
        counters = [
            each for each, name in zip(entries, chain(*complete), strict=True) if name == COUNTER and each.is_cpu
        ]
        joined = join(counters)
        tensors = [*parameters, *gradients, *entries]
        dtypes, devices, shapes = (list(map(read, tensors)) for read in (_dtype, _device, _shape))
        metadata = dtypes, devices, all(map(_is_cpu, tensors)), shapes
        places = readers, _addresses(entries), counters if joined is None else [joined]
        snapshot = Snapshot(setup, *places, _masters(states), _strides(parameters), *metadata)
        self._snapshots[kind] = snapshot
        return snapshot

    def _check_one(self, optimizer: ZooOptimizer, param_grad: ParamGrad, state: Any) -> list[str] | None:
        """Check one parameter; returns the names of its state entries, or None if its state is incomplete."""
        p, g, group = param_grad
        _check_parameter(optimizer, p)
        _check_gradient(optimizer, p, g)
        if not optimizer._has_state(param_grad):
            return None
        expected = self._expected_entries(optimizer, p, group)
        entries = [entry for entry in expected if entry.name != MASTER or MASTER in state]
        entries = [entry for entry in entries if not _needs_conversion(entry, state)]
        for entry in entries:
            _check_entry(optimizer, p, group, entry, state)
        if len(entries) < len(expected) or (MASTER in state) != any(entry.name == MASTER for entry in entries):
            return None
        return [entry.name for entry in entries]

    def _expected_entries(self, optimizer: ZooOptimizer, p: Tensor, group: Group) -> list[Entry]:
        key = (p.shape, p.dtype, p.device, *map(group.get, optimizer.state_options))
        if key not in self._expected:
            expected = optimizer.expected_state(torch.empty(p.shape, dtype=p.dtype, device="meta"), group)
            self._expected[key] = [
                Entry(name, each.shape, each.dtype, each.device if each.device.type == "cpu" else p.device)
                for name, each in expected.items()
            ]
        return self._expected[key]


def check_run_state(group: Mapping[str, Any], expected: Mapping[str, Tensor], device: torch.device) -> None:
    """Raise unless the run's tensors have the expected shapes, dtypes and memory; numbers are accepted.

    Args:
        group: a parameter group with the run's state.
        expected: the run's state before its first step, on any device.
        device: the device of a parameter.

    Raises:
        ZooError: an entry does not fit. Nothing has been written.
    """
    for name, like in expected.items():
        value = group.get(name)
        if isinstance(value, Real):
            continue
        if not (isinstance(value, Tensor) and _fits_run(value, like, device)):
            inference = isinstance(value, Tensor) and not _is_writable(value)
            needs = (
                "a tensor made outside inference mode" if inference else f"{str(like.dtype)[6:]} {tuple(like.shape)}"
            )
            raise ZooError(f"The run's state {name!r} is {_describe(value)}; a step needs {needs}.", REBUILD)
    floats = [group[name] for name, like in expected.items() if like.is_floating_point()]
    if len({(each.dtype, each.device) for each in floats if isinstance(each, Tensor)}) > 1:
        kinds = ", ".join(_describe(each) for each in floats)
        raise ZooError(f"The run's state has tensors of different dtypes or devices: {kinds}.", REBUILD)


def check_saved(saved: Mapping[str, Any], names: Iterable[str], device: torch.device, owner: str) -> None:
    """Check that the saved values of ``names`` can become tensors on ``device``: dense, real, with memory.

    Raises:
        ZooError: a value cannot; the message names ``owner``.
    """
    for name in names:
        value = saved.get(name, 0)
        if isinstance(value, Tensor):
            fits = value.layout == torch.strided and _is_real(value) and (not value.is_meta or device.type == "meta")
        else:
            fits = value is not None and not isinstance(value, (str, bytes, dict))
        if not fits:
            raise ZooError(f"{owner} has the entry {name!r}, which is {_describe(value)}.", "Save the state again.")


def describe(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
    """A description such as ``float32 (3, 6, 4) on cpu``."""
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)} on {device}"


# --- the fast path ---------------------------------------------------------------------------------------------------


def _is_unchanged(
    snapshot: Snapshot, setup: Any, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[Any]
) -> bool:
    """Whether this step's metadata equals the snapshot."""
    if setup != snapshot.setup:
        return False
    try:
        flat = _flat(snapshot.readers, states)
        tensors = [*parameters, *gradients, *flat]
        # Shapes are compared one at a time: a list of thousands of tuples would trigger garbage collection.
        return (
            _addresses(flat) == snapshot.addresses
            and list(map(_dtype, tensors)) == snapshot.dtypes
            and (all(map(_is_cpu, tensors)) if snapshot.on_cpu else list(map(_device, tensors)) == snapshot.devices)
            and all(map(eq, map(_shape, tensors), snapshot.shapes))
            and all(map(Tensor.is_contiguous, flat))
            and _smallest(snapshot.counters) >= 0
            and _masters(states) == snapshot.masters
            and _strides(parameters) == snapshot.strides
        )
    except (AttributeError, KeyError, TypeError, RuntimeError):  # an entry is missing or has no memory: report it
        return False


def _options(optimizer: ZooOptimizer, group: Group) -> tuple[Any, ...]:
    rates = (group.get(name) for name in RATES)
    kinds = (each.shape if isinstance(each, Tensor) else type(each) for each in rates)
    return (*map(group.get, (*optimizer.state_options, *optimizer.plan_options)), *kinds)


def _reader(names: Sequence[str]) -> Reader:
    if not names:
        return lambda state: ()
    read = itemgetter(*names)
    return read if len(names) > 1 else lambda state: (read(state),)


def _flat(readers: Sequence[Reader], states: Sequence[Any]) -> list[Tensor]:
    return [value for read, state in zip(readers, states, strict=True) for value in read(state)]


def _addresses(entries: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, entries))


def _smallest(counters: Sequence[Tensor]) -> int:
    return min((int(each.min()) for each in counters), default=0)


def join(entries: Sequence[Tensor]) -> Tensor | None:
    """A view ``[N, …]`` of tensors that are its rows in memory; None if they are not."""
    if not entries:
        return None
    first = entries[0]
    size = first.numel() * first.element_size()
    alike = {(each.shape, each.dtype, each.device, each.untyped_storage().data_ptr()) for each in entries}
    consecutive = all(each.data_ptr() == first.data_ptr() + k * size for k, each in enumerate(entries))
    if len(alike) > 1 or size == 0 or first.is_meta or not (consecutive and first.is_contiguous()):
        return None
    shape = (len(entries), *first.shape)
    return first.as_strided(shape, torch.empty(shape, device="meta").stride())


def _masters(states: Sequence[Any]) -> list[bool]:
    return [MASTER in state for state in states]


def _strides(parameters: Sequence[Tensor]) -> list[Any]:
    """None for each contiguous parameter, else its strides."""
    return [None if p.is_contiguous() else p.stride() for p in parameters]


# --- the slow path ---------------------------------------------------------------------------------------------------


def _needs_conversion(entry: Entry, state: Mapping[str, Any]) -> bool:
    """Whether ``_init_state`` converts a counter.

    A wrapper or another package may store a number. Optimizers that older versions pickled have counters on the CPU.
    """
    value = state.get(entry.name)
    if isinstance(value, Tensor):
        on_host = value.is_cpu and entry.device.type != "cpu"
        return entry.name in COUNTERS and on_host and (value.shape, value.dtype) == entry[1:3]
    return entry.name == COUNTER and not isinstance(value, (type(None), str, bytes, dict))


def _check_rates(group: Group) -> None:
    for name in RATES:
        value = group.get(name, 0.0)
        one = isinstance(value, Tensor) and value.numel() == 1 and _is_real(value)
        if not (one or (isinstance(value, Real) and not isinstance(value, bool))):
            raise ZooError(f"A parameter group has {name}={_describe(value)}.", f"Set {name} to a number.")


def _fits_run(value: Tensor, like: Tensor, device: torch.device) -> bool:
    dtype_fits = value.dtype in ((torch.float32, torch.float64) if like.is_floating_point() else COUNTER_DTYPES)
    readable = value.layout == torch.strided and (not value.is_meta or device.type == "meta")
    return value.shape == like.shape and dtype_fits and readable and value.is_contiguous() and _is_writable(value)


def _check_parameter(optimizer: ZooOptimizer, p: Tensor) -> None:
    if not p.is_floating_point():
        raise ZooError(
            f"{_parameter_label(optimizer, p)} has become {str(p.dtype)[6:]}.", "Use a real floating-point parameter."
        )
    if p.layout != torch.strided or not (p.is_contiguous() or _has_distinct_elements(p)):
        raise ZooError(
            f"{_parameter_label(optimizer, p)} has become sparse, or its elements share memory.",
            "Set p.data = p.contiguous().",
        )
    if not _is_writable(p):
        raise ZooError(
            f"{_parameter_label(optimizer, p)} is an inference tensor, which this step cannot write.",
            "Build the model outside torch.inference_mode().",
        )


def _check_gradient(optimizer: ZooOptimizer, p: Tensor, g: Tensor) -> None:
    fits = g.shape == p.shape and g.device == p.device and g.is_floating_point() and g.layout == torch.strided
    if not fits:
        label = _parameter_label(optimizer, p)
        raise ZooError(
            f"The gradient of {label[0].lower()}{label[1:]} is {_describe(g)}; the parameter is {_describe(p)}.",
            "Set p.grad = None and compute the gradient again.",
        )


def _check_entry(optimizer: ZooOptimizer, p: Tensor, group: Group, entry: Entry, state: Mapping[str, Any]) -> None:
    value = state.get(entry.name)
    needs, hint = str(entry), REBUILD
    if isinstance(value, Tensor) and value.layout == torch.strided and _metadata(value) == entry[1:]:
        if not value.is_contiguous():
            needs, hint = "a contiguous tensor", f"Assign its contiguous() copy to state[p][{entry.name!r}]."
        elif entry.name == COUNTER and value.is_cpu and value.item() < 0:
            raise ZooError(
                f"{_parameter_label(optimizer, p)}: state {COUNTER!r} is {value.item()}; it counts steps.", REBUILD
            )
        elif not _is_writable(value):
            needs, hint = "a tensor made outside inference mode", "Take every step outside torch.inference_mode()."
        else:
            return
    optimizer._check_route(p, group)
    has = _describe(value) if entry.name in state else "missing"
    raise ZooError(f"{_parameter_label(optimizer, p)}: state {entry.name!r} is {has}; a step needs {needs}.", hint)


def _parameter_label(optimizer: ZooOptimizer, p: Tensor) -> str:
    """A label such as ``Parameter 3 (6, 4)``, with the parameter's name or its number in the order of the groups."""
    number = 0
    for group in optimizer.param_groups:
        names = group.get("param_names") or ()
        for k, each in enumerate(group["params"]):
            if each is p:
                return f"Parameter {names[k] if k < len(names) else number} {tuple(p.shape)}"
            number += 1
    return f"A parameter {tuple(p.shape)}"


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    extra = "" if value.layout == torch.strided else f", {str(value.layout)[6:]}"
    if not extra and not value.is_contiguous():
        extra = f" with strides {value.stride()}"
    return describe(value.shape, value.dtype, value.device) + extra


def _is_real(value: Tensor) -> bool:
    return not value.is_complex() and not value.is_quantized


def _is_writable(value: Tensor) -> bool:
    return torch.is_inference_mode_enabled() or not value.is_inference()


def _has_distinct_elements(p: Tensor) -> bool:
    """Whether no two elements share memory: each stride is larger than the span of all smaller ones."""
    reach = 0
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return True
