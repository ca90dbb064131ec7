"""What the optimizers ask of numbers, gradients and saved tensors, and how they say no."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.optim.state_checks import check_saved


def fitted(
    entry: Mapping[str, Any], expected: Mapping[str, Tensor], device: torch.device, what: str
) -> dict[str, Tensor]:
    """Contiguous copies of saved tensors in the dtypes of ``expected``; counters stay on the CPU.

    Numbers, nested lists and NumPy arrays are accepted for tensors, as JSON files and other packages keep them.

    Raises:
        ZooError: a name or shape differs, a value is not numeric, or a counter is not a whole number.
    """
    tensors = {name: _as_tensor(value, f"{what} does not fit: {name}") for name, value in entry.items()}
    check_saved(tensors, expected, device, what)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    require(
        found == wanted,
        f"{what} does not fit: it has {_difference(found, wanted)} and should have {_difference(wanted, found)}.",
        "Load a state of the same optimizer class over the same model.",
    )
    for name, value in tensors.items():
        if not expected[name].is_floating_point():
            tensors[name] = as_counter(name, value)
    return {
        name: value.detach()
        .to(device="cpu" if expected[name].device.type == "cpu" else device, dtype=expected[name].dtype, copy=True)
        .contiguous()
        for name, value in tensors.items()
    }


def _as_tensor(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ZooError(
            f"{what} is {value!r:.80}.", "Load a state of the same optimizer class over the same model."
        ) from None


def as_counter(name: str, value: Any) -> Tensor:
    """A count of steps, int64 ``[]`` on the CPU, from whatever kept it: an int, a float, NumPy's, or a tensor.

    Raises:
        ZooError: it is not a whole number of at least 0.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
        whole = int(number)
        valid = not isinstance(number, (bool, str)) and whole == number and whole >= 0
    except (TypeError, ValueError, OverflowError, RuntimeError):
        valid, whole = False, 0
    require(valid, f"{name} is {value!r:.80}.", "A step counter must be a whole number, 0 or more.")
    return torch.tensor(whole, device="cpu")


def moved_to(value: Any, device: torch.device) -> Any:
    """A copy of an entry that a wrapper keeps in a state: its tensors on ``device``, as torch moves them, the rest
    as it is."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: moved_to(each, device) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(moved_to(each, device) for each in value)
    return copy.deepcopy(value)


def check_parameter(p: Tensor, optimizer: str) -> None:
    """Raise :class:`ZooError` unless ``p`` can be optimized: initialized, whole, real floating point, one element a
    number in memory. Of ``optimizer``, its class's name, the message speaks."""
    check_initialized(p)
    require(
        not is_sharded(p),
        f"A parameter of shape {tuple(p.shape)} is sharded ({type(p).__name__}), which is not supported yet.",
        f"{optimizer} looks at whole tensors: use DistributedDataParallel, or one process.",
    )
    require(
        p.is_floating_point(),
        f"A parameter of shape {tuple(p.shape)} is {p.dtype}.",
        f"{optimizer} takes real floating-point parameters; torch.view_as_real helps with complex ones.",
    )
    require(
        p.layout == torch.strided and not any(s == 0 and n > 1 for s, n in zip(p.stride(), p.shape, strict=True)),
        f"A parameter of shape {tuple(p.shape)} is sparse or expanded.",
        "A step writes every element apart: pass p.to_dense(), or p.contiguous() of an expanded tensor.",
    )


def check_initialized(p: Tensor) -> None:
    """Raise :class:`ZooError` if ``p`` belongs to a lazy module that has not run yet."""
    require(
        not isinstance(p, UninitializedParameter),
        "A parameter has no shape yet: it belongs to a lazy module such as LazyLinear.",
        "Run the model once on a batch before you build the optimizer.",
    )


def takes_part(p: Tensor) -> bool:
    """Whether a step moves ``p``, which has a gradient: it has elements. :class:`ZooError` for a sparse gradient."""
    assert p.grad is not None
    if p.grad.layout != torch.strided:
        raise ZooError(
            f"The gradient of a parameter of shape {tuple(p.shape)} is sparse.",
            "The optimizers here read every element: build the embedding with sparse=False.",
        )
    return p.numel() > 0


def is_sharded(p: Tensor) -> bool:
    """Whether ``p`` is a DTensor (FSDP2, tensor parallelism), or a flat parameter of FSDP1."""
    library = sys.modules.get("torch.distributed.tensor")  # slow to import; wherever there is a DTensor, it has been
    is_dtensor = hasattr(library, "DTensor") and isinstance(p, library.DTensor)  # pyright: ignore
    return is_dtensor or getattr(p, "_is_flat_param", False)


def is_of_one_process(loss: Any) -> bool:
    """Whether ``loss`` is one of several processes' own: it comes straight from the model, with its graph.

    Of a number nobody can tell, unless the processes talk, which a step here never has them do.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return isinstance(loss, Tensor) and loss.requires_grad and several and torch.distributed.get_world_size() > 1


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or infinite; one number is read back from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(each).all()) for each in by_device.values())


def as_float(value: Real) -> float:
    """``value`` as a float; infinity if it is too large for one, such as an integer of 400 digits."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raise :class:`ZooError` unless ``value`` is a finite number in [0, ``below``); ``lr`` may be a tensor of one."""
    if isinstance(value, Tensor):
        single = value.numel() == 1 and value.is_floating_point() and name == "lr"
        rule = "Tensor lr must be 1-element" if name == "lr" else f"{name} must be a number"
        about = f"{rule}: {name} is a tensor {value.dtype} {tuple(value.shape)}."
        require(single, about, "Use a number; lr may be a scalar.")
    else:
        number = isinstance(value, Real) and not isinstance(value, bool)
        require(number, f"{name} is {quoted(value)}.", f"{name} must be a number.")
    if isinstance(value, Tensor) and value.is_meta:
        return
    limit = "0 or more" if below == math.inf else f"at least 0 and under {below:g}"
    shown = value if isinstance(value, Tensor) else quoted(value)
    require(0 <= as_float(value) < below, f"{name} is {shown}.", f"{name} must be {limit}, and finite.")


def check_betas(name: str, betas: Any) -> None:
    """Raise :class:`ZooError` unless ``betas`` are two numbers in [0, 1)."""
    pair = isinstance(betas, Sequence) and not isinstance(betas, str) and len(betas) == 2
    require(pair, f"{name} is {betas!r}.", "Use two numbers, such as (0.9, 0.95).")
    for beta in betas:
        check_number(name, beta, below=1.0)


def check_flag(name: str, value: Any) -> None:
    """Raise :class:`ZooError` unless ``value`` is True or False."""
    require(isinstance(value, bool), f"{name} is {value!r}.", "Use True or False.")


def require(condition: bool, message: str, hint: str) -> None:
    """Raise :class:`ZooError` unless ``condition`` holds."""
    if not condition:
        raise ZooError(message, hint)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in one.items() if other.get(name) != shape) or "nothing else"
