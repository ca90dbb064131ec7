"""Checks of options, parameters, gradients and saved tensors; each raises :class:`ZooError` on bad input."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.optim.state_checks import check_saved


def to_state_tensors(
    saved: Mapping[str, Any], expected: Mapping[str, Tensor], device: torch.device, owner: str
) -> dict[str, Tensor]:
    """Contiguous copies of saved tensors on ``device``, in the dtypes of ``expected``.

    Tensors that ``expected`` has on the CPU stay there, if their family chose it.

    Numbers, nested lists and NumPy arrays, as in JSON files and other packages' states, become tensors.

    Args:
        saved: the saved entries by name.
        expected: tensors of the expected names, shapes and dtypes.
        device: the parameter's device.
        owner: what the entries belong to, for messages.

    Raises:
        ZooError: a name or shape differs, a value is not numeric, or a counter is not a whole number.
    """
    tensors = {name: _to_tensor(value, f"{owner} does not fit: {name}") for name, value in saved.items()}
    check_saved(tensors, expected, device, owner)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    expected_shapes = {name: tuple(value.shape) for name, value in expected.items()}
    require(
        shapes == expected_shapes,
        f"{owner} does not fit: it has {_list_differences(shapes, expected_shapes)} and should have "
        f"{_list_differences(expected_shapes, shapes)}.",
        "Load a state of the same optimizer class over the same model.",
    )
    for name, value in tensors.items():
        if not expected[name].is_floating_point():
            tensors[name] = value if value.is_meta else as_counter(name, value)
    return {
        name: value.detach()
        .to(device="cpu" if expected[name].device.type == "cpu" else device, dtype=expected[name].dtype, copy=True)
        .contiguous()
        for name, value in tensors.items()
    }


def _to_tensor(value: Any, label: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ZooError(
            f"{label} is {quoted(value)}.", "Load a state of the same optimizer class over the same model."
        ) from None


def as_counter(name: str, value: Any) -> Tensor:
    """A step counter, int64 ``[]`` on the CPU, from an int, a float, a NumPy number or a tensor, which is read.

    Raises:
        ZooError: ``value`` is not a whole number, 0 or more.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
        whole = int(number)
        valid = not isinstance(number, (bool, str)) and whole == number and whole >= 0
    except (TypeError, ValueError, OverflowError, RuntimeError):
        valid, whole = False, 0
    require(valid, f"{name} is {quoted(value)}.", "A step counter must be a whole number, 0 or more.")
    return torch.tensor(whole, device="cpu")


def copy_to_device(value: Any, device: torch.device) -> Any:
    """A copy of a state entry that belongs to a wrapper, with its tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: copy_to_device(each, device) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_to_device(each, device) for each in value)
    return copy.deepcopy(value)


def describe_parameter(p: Tensor, group: Mapping[str, Any] | None = None) -> str:
    """``parameter of shape (4, 3)``, with its name if ``group`` has names."""
    name = parameter_name(p, group) if group else None
    return f"parameter of shape {tuple(p.shape)}" + (f" ({name})" if name else "")


def check_params(params: Any, owner: str) -> None:
    """Raise :class:`ZooError` if ``params``, which ``owner`` received, is a module or a list of modules."""
    listed = params if isinstance(params, (list, tuple)) else [params]
    for each in listed:
        if isinstance(each, nn.Module) and not isinstance(each, nn.ParameterList):
            raise ZooError(
                f"{owner} received the module {type(each).__name__} instead of parameters.",
                "Pass model.parameters(), or param_groups(model).",
            )


def parameter_name(p: Tensor, group: Mapping[str, Any]) -> str | None:
    """The name of ``p`` in its ``group``, or None if the group has no names."""
    named = zip(group["params"], group.get("param_names") or (), strict=False)
    return next((name for each, name in named if each is p), None)


def check_parameter(p: Tensor, optimizer: str, group: Mapping[str, Any] | None = None) -> None:
    """Raise :class:`ZooError` unless ``p`` can be optimized.

    It must be initialized, unsharded and real floating point, and its elements must not share memory.

    Args:
        p: a parameter.
        optimizer: the optimizer's class name, for messages.
        group: its group, for messages.
    """
    check_initialized(p)
    require(
        not is_sharded(p),
        f"A {describe_parameter(p, group)} is sharded ({type(p).__name__}), which is not supported yet.",
        f"Use DistributedDataParallel or one process: {optimizer} reads whole tensors.",
    )
    require(
        p.is_floating_point(),
        f"A {describe_parameter(p, group)} is {p.dtype}.",
        f"{optimizer} needs real floating-point parameters; use torch.view_as_real for complex ones.",
    )
    require(
        p.layout == torch.strided and not any(s == 0 and n > 1 for s, n in zip(p.stride(), p.shape, strict=True)),
        f"A {describe_parameter(p, group)} is sparse or expanded.",
        "Pass p.to_dense() of a sparse tensor, or p.contiguous() of an expanded one.",
    )


def check_initialized(p: Tensor) -> None:
    """Raise :class:`ZooError` if ``p`` is an uninitialized parameter of a lazy module."""
    require(
        not isinstance(p, UninitializedParameter),
        "A parameter has no shape yet: it belongs to a lazy module such as LazyLinear.",
        "Run the model once on a batch before you build the optimizer.",
    )


def needs_update(p: Tensor, group: Mapping[str, Any] | None = None) -> bool:
    """Whether a step updates ``p``, which has a gradient: empty parameters have nothing to update.

    Raises:
        ZooError: the gradient is sparse.
    """
    assert p.grad is not None
    if p.grad.layout != torch.strided:
        raise ZooError(
            f"The gradient of a {describe_parameter(p, group)} is sparse.",
            "Build the embedding with sparse=False: the optimizers read every element.",
        )
    return p.numel() > 0


def is_sharded(p: Tensor) -> bool:
    """Whether ``p`` is a DTensor (FSDP2, tensor parallelism) or a flat parameter of FSDP1."""
    library = sys.modules.get("torch.distributed.tensor")  # slow to import; a DTensor exists only if it is imported
    is_dtensor = hasattr(library, "DTensor") and isinstance(p, library.DTensor)  # pyright: ignore
    return is_dtensor or getattr(p, "_is_flat_param", False)


def is_local_loss(loss: Any) -> bool:
    """Whether ``loss`` was computed by this process alone while several processes train.

    A loss with a graph comes straight from the model, so it is not an average. A number or a detached tensor may be
    one; a step does not communicate to find out.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return isinstance(loss, Tensor) and loss.requires_grad and several and torch.distributed.get_world_size() > 1


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or infinite. Reads one number back from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(each).all()) for each in by_device.values())


def as_float(value: Any) -> float:
    """``value`` as a float; infinity if it is too large for one, such as an integer of 400 digits."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_real_scalar(value: Any) -> bool:
    """Whether ``value`` is a real number, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, below: float = math.inf, *, positive: bool = False) -> None:
    """Raise :class:`ZooError` unless ``value`` is a finite number in [0, ``below``); ``lr`` may be a scalar tensor.

    ``positive`` excludes 0.
    """
    if isinstance(value, Tensor):
        single = value.numel() == 1 and value.is_floating_point() and name == "lr"
        rule = "Tensor lr must be 1-element" if name == "lr" else f"{name} must be a number"
        message = f"{rule}: {name} is a tensor {value.dtype} {tuple(value.shape)}."
        require(single, message, "Use a number; lr may be a floating-point tensor of one element.")
    else:
        number = isinstance(value, Real) and not isinstance(value, bool)
        require(number, f"{name} is {quoted(value)}.", f"{name} must be a number.")
    if isinstance(value, Tensor) and value.is_meta:
        return
    least = "more than 0" if positive else "0 or more"
    limit = f"finite and {least}" if below == math.inf else f"at least 0 and less than {below:g}"
    shown = value if isinstance(value, Tensor) else quoted(value)
    number = as_float(value)
    valid = 0 <= number < below and not (positive and number == 0)
    require(valid, f"{name} is {shown}.", f"{name} must be {limit}.")


def check_max_norm(name: str, value: Any) -> float | None:
    """Return ``value``, or None if it is infinite; raise :class:`ZooError` unless it is a positive number or None.

    None and infinity disable clipping.
    """
    return None if value is None or check_limit(name, value, positive=True) == math.inf else value


def check_limit(name: str, value: Any, *, positive: bool = False) -> float:
    """Return ``value``; raise :class:`ZooError` unless it is a number of at least 0, or infinite for no limit.

    ``positive`` excludes 0.
    """
    if isinstance(value, bool) or not isinstance(value, float) or value != math.inf:
        check_number(name, value, positive=positive)
    return value


def check_betas(name: str, betas: Any) -> None:
    """Raise :class:`ZooError` unless ``betas`` are two numbers in [0, 1)."""
    pair = isinstance(betas, Sequence) and not isinstance(betas, str) and len(betas) == 2
    require(pair, f"{name} is {quoted(betas)}.", "Use two numbers, such as (0.9, 0.95).")
    for beta in betas:
        check_number(name, beta, below=1.0)


def check_flag(name: str, value: Any) -> None:
    """Raise :class:`ZooError` unless ``value`` is True or False."""
    require(isinstance(value, bool), f"{name} is {quoted(value)}.", "Use True or False.")


def require(condition: bool, message: str, hint: str) -> None:
    """Raise :class:`ZooError` unless ``condition`` holds."""
    if not condition:
        raise ZooError(message, hint)


def _list_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in one.items() if other.get(name) != shape) or "nothing else"
