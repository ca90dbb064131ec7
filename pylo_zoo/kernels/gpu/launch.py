"""Launching a kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

COMPILED = 0.2
"""Seconds. A launch takes less than a thousandth of this, and a kernel from Triton's cache on disk a tenth."""
clock: Callable[[], float] = perf_counter

_log = logging.getLogger("pylo_zoo")
_announced: list[bool] = []


def launch(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch ``kernel`` on the device of its first tensor, unless the grid is empty.

    ``options`` are its constexpr arguments and Triton's options. Multiply-adds can fuse, as in torch's kernels.
    """
    grid = (programs,) if isinstance(programs, int) else programs
    if 0 in grid:
        return
    device: torch.device = arguments[0].device
    if device.type == "cpu":
        kernel[grid](*arguments, **options)
        return
    started = clock()
    with torch.cuda.device(device):
        kernel[grid](*arguments, enable_fp_fusion=True, **options)
    if not _announced and clock() - started > COMPILED:
        _announced.append(True)  # after the first kernel, which is a small one
        _log.warning("compiling the GPU kernels, once per kind of parameter (about ten seconds), into Triton's cache")
