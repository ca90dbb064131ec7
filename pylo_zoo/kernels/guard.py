"""The last checks before raw addresses are passed to kernels, so that kernels stay within the tensors' memory.

Optimizers check names and shapes before a step (:mod:`pylo_zoo.optim.state_checks`). The functions here check what
memory safety requires: device, dtype, number of elements and contiguity.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from operator import attrgetter

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Adam, AdamInputs, Normalized, Task
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule

_placement = attrgetter("dtype", "device")
_dtype, _device, _is_cpu = map(attrgetter, ("dtype", "device", "is_cpu"))
HINT = "Pass contiguous tensors of the documented shapes, on one device."
FLOAT = (torch.float32,)


def check_tasks(tasks: Sequence[Task], dtypes: Collection[torch.dtype], device: torch.device) -> None:
    """Raise :class:`ZooError` unless every tensor of ``tasks`` has the memory that the three passes access."""
    _check_pairs([tensor for task in tasks for tensor in task[:2]], dtypes, device)
    state, counts = [], []
    for p, _, entry, axes, _, _, _ in tasks:
        n = p.numel()
        try:
            if axes.factored is None:
                state += (entry["momentum"], entry["second_moment"], entry["diag"])
                counts += (3 * n, n, 3 * n)
            else:
                state += (entry["momentum"], entry["second_moment"], entry["row"], entry["col"])
                counts += (3 * n, n, *table_sizes(p.shape, axes))
        except KeyError as error:
            raise ZooError(f"A parameter's state lacks {error}.", HINT) from None
        except IndexError:
            raise ZooError(f"A parameter of shape {tuple(p.shape)} is factored over {axes.factored}.", HINT) from None
    _check(state, counts, FLOAT, device)


def check_decays(tasks: Sequence[Task]) -> None:
    """Raise :class:`ZooError` unless there is one decay per channel."""
    for decays in {id(task.decays): task.decays for task in tasks}.values():
        sizes = [each.numel() for each in decays]
        if sizes != [3, 1, 3]:
            raise ZooError(f"The decays have {sizes} channels; kernels need [3, 1, 3].", HINT)


def check_adam(tasks: Sequence[Adam], dtypes: Collection[torch.dtype], device: torch.device) -> None:
    """Raise :class:`ZooError` unless every tensor of ``tasks`` has as many elements as its parameter."""
    values = [tensor for task in tasks for tensor in task[:2]]
    _check_pairs(values, dtypes, device)
    moments = [tensor for task in tasks for tensor in task[2:4]]
    _check(moments, [values[k - k % 2].numel() for k in range(len(moments))], FLOAT, device)


def check_adam_inputs(
    inputs: AdamInputs,
    moments: Sequence[tuple[Tensor, Tensor]] | None,
    dtypes: Collection[torch.dtype],
    device: torch.device,
) -> None:
    """Raise :class:`ZooError` unless ``inputs`` fit each other and, if given, their ``moments``."""
    if moments is not None:
        tensors = zip(inputs.values, inputs.gradients, moments, strict=True)
        check_adam([Adam(p, g, *kept, False) for p, g, kept in tensors], dtypes, device)
    check_numbers("scale", inputs.scale, 1)
    count = len(inputs.values)
    shapes = [tuple(each.shape) for each in (inputs.numbers, inputs.counts, inputs.coefficient, inputs.shrink)]
    if shapes != [(count, 5), (count,), (count,), (count,)]:
        raise ZooError(f"AdamW's numbers have shapes {shapes}; kernels step {count} parameters.", HINT)
    if inputs.counts.device != device:
        raise ZooError(f"AdamW's counts are on {inputs.counts.device}; kernels read them on {device}.", HINT)


def check_normalized(tasks: Sequence[Normalized], dtypes: Collection[torch.dtype], device: torch.device) -> None:
    """Raise :class:`ZooError` unless every step matches its parameter."""
    values, steps = [task.p for task in tasks], [task.step for task in tasks]
    counts = [p.numel() for p in values]
    _check(values, counts, dtypes, device)
    _check(steps, counts, FLOAT, device)
    for ndim, over in {(task.p.ndim, task.over) for task in tasks}:
        if not 1 <= len(over) <= 2 or not all(-ndim <= axis < 0 for axis in over):
            raise ZooError(f"A step of {ndim} axes is normalized over {over}.", "Pass one or two negative axes.")


def check_layers(layers: Sequence[Layer], rule: Rule, count: int, device: torch.device, most: int) -> None:
    """Raise :class:`ZooError` unless ``layers`` are a network for ``rule``, shared or one for each of ``count``."""
    inputs = 28 if rule.time else 30
    shapes = [(tuple(weight.shape), tuple(bias.shape)) for weight, bias in layers]
    fits = len(layers) >= 2 and all(
        len(weight) in (2, 3) and weight[:-1] in (bias, (count, *bias)) and weight[:-2] in ((), (count,))
        for weight, bias in shapes
    )
    fits = fits and all(below[0][-2] == above[0][-1] for below, above in pairwise(shapes))
    fits = fits and shapes[0][0][-1] == inputs and shapes[-1][0][-2] >= 2
    fits = fits and all(0 < weight[-2] <= most for weight, _ in shapes[:-1])
    if not fits:
        message = f"A network of layers {shapes} does not match {count} parameters, {inputs} inputs, ≤ {most} units."
        raise ZooError(message, HINT)
    tensors = [tensor for layer in layers for tensor in layer]
    _check(tensors, [tensor.numel() for tensor in tensors], FLOAT, device, contiguous=False)


def check_numbers(name: str, values: Tensor | Sequence[float] | None, count: int) -> None:
    """Raise :class:`ZooError` unless ``values`` is None or has ``count`` numbers."""
    size = count if values is None else values.numel() if isinstance(values, Tensor) else len(values)
    if size != count:
        raise ZooError(f"{name} has {size} numbers; kernels need {count}.", HINT)


def check_proceed(proceed: Tensor | None, device: torch.device) -> None:
    """Raise :class:`ZooError` unless ``proceed`` is None or one int32 element on ``device``."""
    if proceed is not None:
        _check([proceed], [1], (torch.int32,), device)


def table_sizes(shape: Sequence[int], axes: Axes) -> tuple[int, int]:
    """Number of elements of ``row`` and of ``col``, over their three planes."""
    assert axes.factored is not None
    d1, d0 = axes.factored
    n = 3 * math.prod(shape)
    return n // max(shape[d0], 1), n // max(shape[d1], 1)


def _check_pairs(values: Sequence[Tensor], dtypes: Collection[torch.dtype], device: torch.device) -> None:
    """Check ``values``, which alternates parameters and their gradients."""
    counts = list(map(Tensor.numel, values))
    counts[1::2] = counts[::2]
    _check(values, counts, dtypes, device)


def _check(
    tensors: Sequence[Tensor],
    counts: Sequence[int],
    dtypes: Collection[torch.dtype],
    device: torch.device,
    contiguous: bool = True,
) -> None:
    fit = set(dtypes).issuperset(map(_dtype, tensors)) and list(map(Tensor.numel, tensors)) == counts
    fit = fit and (all(map(_is_cpu, tensors)) if device.type == "cpu" else {device}.issuperset(map(_device, tensors)))
    if fit and (not contiguous or all(map(Tensor.is_contiguous, tensors))):
        return
    allowed = {(dtype, device) for dtype in dtypes}
    for tensor, count in zip(tensors, counts, strict=True):
        if (
            _placement(tensor) not in allowed
            or tensor.numel() != count
            or not (tensor.is_contiguous() or not contiguous)
        ):
            names = " or ".join(str(dtype)[6:] for dtype in dtypes)
            has = f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]} on {tensor.device} with strides {tensor.stride()}"
            raise ZooError(f"A tensor is {has}; kernels need {count} elements of {names} on {device}.", HINT)
