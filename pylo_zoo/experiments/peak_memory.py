"""The peak memory of an optimizer step, in addition to the memory in use before it.

On a GPU, torch's allocator reports the peak. On Linux, writing "5" to ``/proc/self/clear_refs`` resets the kernel's
peak (``VmHWM``) to the resident memory (``VmRSS``). Memory that was freed before must not hide what the step allocates:
each measurement runs in a fresh process, where the C library returns its free memory first and maps every allocation
over 64 KiB separately. Other systems are not supported.
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
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_ARENA_MAX": "1"}


def method(device: str) -> str:
    """How the peak is measured on ``device``: ``"cuda"``, ``"linux"``, or ``"none"``."""
    if device.startswith("cuda"):
        return "cuda"
    return "linux" if device == "cpu" and CLEAR.exists() and STATUS.exists() else "none"


def of_step(step: Callable[[], Any], device: str) -> int | None:
    """The peak memory of ``step`` in bytes, in addition to that in use before; None if it cannot be measured.

    Call it only in a fresh process.
    """
    if method(device) == "none":
        return None
    gc.collect()
    if method(device) == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):  # C libraries other than glibc lack it; the result is less exact
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def in_fresh_process(measure: Callable[..., int | None], device: str, *arguments: Any, limit: float) -> int | None:
    """``measure(device, *arguments)`` in a fresh process, or None if it fails or ``device`` cannot be measured.

    Args:
        measure: a function of a module, which returns the result of :func:`of_step`.
        device: the device of the step.
        arguments: values that JSON can represent.
        limit: time limit in seconds.
    """
    if method(device) == "none":
        return None
    command = [sys.executable, "-W", "ignore", "-c", "from pylo_zoo.experiments import peak_memory as m; m.child()"]
    request = json.dumps([measure.__module__, measure.__qualname__, device, arguments])
    environment = {**os.environ, **ENVIRONMENT}
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, check=True, timeout=limit, env=environment
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def child() -> None:
    """The measuring process: read the request of :func:`in_fresh_process` and print the bytes."""
    module, name, device, arguments = json.load(sys.stdin)
    print(json.dumps(getattr(import_module(module), name)(device, *arguments)))
