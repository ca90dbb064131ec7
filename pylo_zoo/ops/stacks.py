"""Stacks of matrices that are iterated together: of equal shapes, or padded to one shape where that saves time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pylo_zoo.ops.precision import Precision

Shape = tuple[int, int]

STACKED = {"cpu": 1 << 17}
"""Maximum number of elements in a stack of matrices, per device type, unless one matrix is larger. On a CPU a stack
saves calls, which matters for sides up to about 64, and is slower once it exceeds the cache: half a MiB is best."""
STACKED_ELSEWHERE = 1 << 27
"""The same for other devices, which are faster with many matrices at once: room for 24 layers of 1024 × 4096. A stack
and its temporaries take up to five times its memory, in float32 2.5 GiB, as much as AdamW's state of 335M parameters.
"""
SHARE = 64
"""A stack takes at most this fraction of a GPU's memory, so that it and its temporaries take at most 1 / 13."""
PADDED = {"cpu": 1 << 16}
"""Maximum number of multiplications per iteration, ``n²·m``, that padding adds to the matrices of one shape, per device
type. A stack less saves about 20 calls, which take a CPU as long as five iterations of so many. Measured with
benchmarks/newton_schulz_parts.py: eight shapes of 9 × 18 to 64 × 128 take 0.5 to 0.7 of the time in one stack."""
PADDED_ELSEWHERE = 1 << 26
"""The same for other devices, computed: a hundredth of a millisecond at 40 TFLOP/s, as long as a few launches take."""


def stack_limit(device: torch.device, precision: Precision) -> int:
    """Maximum number of elements in a stack (:data:`STACKED`)."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return STACKED.get(device.type, STACKED_ELSEWHERE)
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(STACKED_ELSEWHERE, memory // SHARE // precision.dtype.itemsize)


def join_shapes(counts: Mapping[Shape, int], device: torch.device) -> dict[Shape, list[Shape]]:
    """The shapes to pad to each shape, including itself.

    Args:
        counts: the number of matrices of each shape.
        device: their device. Padding adds at most :data:`PADDED` multiplications per padded shape. Compiled graphs pad
            nothing.
    """
    limit = 0 if torch.compiler.is_compiling() else PADDED.get(device.type, PADDED_ELSEWHERE)
    if limit == 0:
        return {shape: [shape] for shape in counts}
    joined: dict[Shape, list[Shape]] = {}
    for shape in sorted(counts, key=_multiplications, reverse=True):
        added = {target: counts[shape] * (_multiplications(target) - _multiplications(shape)) for target in joined}
        fitting = [
            target
            for target, more in added.items()
            if shape[0] <= target[0] and shape[1] <= target[1] and more <= limit and min(shape) > 0
        ]
        best = min(fitting, key=_multiplications) if fitting else shape
        joined.setdefault(best, []).append(shape)
    return joined


def _multiplications(shape: Shape) -> int:
    """Of a product ``[n, n]·[n, m]``."""
    return shape[0] ** 2 * shape[1]


def stacked(matrices: Sequence[Tensor], shape: Shape) -> Tensor:
    """``[N, *shape]``, or ``[*shape]`` of one matrix: matrices, padded with zeros at their ends.

    A row or column of zeros stays zero in every iteration and changes no other.
    """
    if len(matrices) == 1:
        return _padded(matrices[0], shape)
    runs: list[list[Tensor]] = []
    for x in matrices:
        if not runs or runs[-1][0].shape != x.shape:
            runs.append([])
        runs[-1].append(x)
    parts = [_padded(torch.stack(run), shape) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _padded(x: Tensor, shape: Shape) -> Tensor:
    rows, columns = shape
    missing = columns - x.shape[-1], rows - x.shape[-2]
    return pad(x, (0, missing[0], 0, missing[1])) if any(missing) else x
