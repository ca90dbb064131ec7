"""Products of large float32 matrices on a CPU, with the faster of torch's two libraries.

By default torch uses Intel's MKL, whose AVX-512 products run only on Intel processors. oneDNN has them for all: on a
Zen 5 it takes half the time for sides of 500 and more, with the same error.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

WORTHWHILE = 256
"""The shortest side for which oneDNN is faster, including its copies."""


def by_onednn(*matrices: Tensor) -> bool:
    """Whether :func:`product` uses oneDNN for these matrices."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in matrices)
        and min(side for x in matrices for side in x.shape) >= WORTHWHILE
        and not torch.compiler.is_compiling()
        and _is_faster()
    )


def product(x: Tensor, w: Tensor) -> Tensor:
    """``x·wᵀ`` of ``x [m, k]`` and ``w [n, k]``: ``[m, n]``, in their dtype. Not differentiable."""
    if not by_onednn(x, w):
        return x @ w.T
    return torch.nn.functional.linear(x.to_mkldnn(), w).to_dense()


@functools.cache
def _is_faster() -> bool:
    """Whether oneDNN is faster here. Measured only on AMD processors with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
