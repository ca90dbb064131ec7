"""Products of large float32 matrices on a CPU, by the faster of the two libraries that torch brings.

torch multiplies by Intel's MKL, which has AVX-512 products for Intel's processors alone. oneDNN, torch's other library,
has them for all: on a Zen 5 it takes half the time from sides of 500 on, with the same error.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

WORTHWHILE = 256
"""The shortest side for which oneDNN is faster, its copies included."""


def by_onednn(*matrices: Tensor) -> bool:
    """Whether :func:`product` of such matrices is oneDNN's."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in matrices)
        and min(side for x in matrices for side in x.shape) >= WORTHWHILE
        and not torch.compiler.is_compiling()
        and _is_faster()
    )


def product(x: Tensor, w: Tensor) -> Tensor:
    """``x·wᵀ`` of ``x [m, k]`` and ``w [n, k]``: ``[m, n]``, in their dtype. Not to be differentiated."""
    if not by_onednn(x, w):
        return x @ w.T
    return torch.nn.functional.linear(x.to_mkldnn(), w).to_dense()


@functools.cache
def _is_faster() -> bool:
    """Only where it was measured: processors of AMD's with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
