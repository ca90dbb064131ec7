"""The peak memory of a step, in addition to the memory in use between steps.

Each measurement runs in a fresh process, which creates the state in a first step and measures the second. On Linux,
writing "5" to ``/proc/self/clear_refs`` resets the kernel's peak (``VmHWM``) to the resident memory (``VmRSS``). Memory
that was freed before must not hide what the step allocates, so the C library returns its free memory first and maps
every allocation over 64 KiB separately. On a GPU, torch's allocator reports the peak. Other systems are not supported.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

PROC = Path("/proc/self")
RESET = "5"
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_ARENA_MAX": "1"}
TIMEOUT = 900
"""Time limit of a measuring process in seconds."""


def peak_of(step: Callable[[], Any], device: str) -> int | None:
    """The peak memory of ``step`` in bytes, in addition to that in use before, or None if it cannot be measured."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _reset():
        return None
    before = _kibibytes("VmRSS")
    step()
    return max(0, _kibibytes("VmHWM") - before) * 1024


def _reset() -> bool:
    """Reset the peak, and return whether this system can."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):  # C libraries other than glibc lack it; the result is less exact
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "clear_refs").write_text(RESET)
    except OSError:
        return False
    return True


def _kibibytes(name: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def in_a_child(subject: str, backend: str, shapes: str, device: str, dtype: str, threads: int) -> int | None:
    """:func:`peak_of` for a step of ``subject``, measured in a fresh process, or None if that fails."""
    if torch.device(device).type != "cuda" and sys.platform != "linux":
        return None
    request = json.dumps([subject, backend, shapes, device, dtype, threads])
    command = [sys.executable, "-c", "from pylo_zoo.experiments.bench.memory import child; child()", request]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIMEOUT, env={**os.environ, **ENVIRONMENT}
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def child() -> None:
    """The measuring process: print the bytes as JSON."""
    from pylo_zoo.experiments.bench import shapes, subjects

    subject, backend, shape_set, device, dtype, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    work = subjects.find_subject(subject).make(
        shapes.find_shape_set(shape_set).make(device, getattr(torch, dtype)), backend
    )
    work.step()
    print(json.dumps(peak_of(work.step, device)))
