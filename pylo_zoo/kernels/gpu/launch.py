"""Launching a kernel."""

from __future__ import annotations

from typing import Any

import torch


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
    with torch.cuda.device(device):
        kernel[grid](*arguments, enable_fp_fusion=True, **options)
