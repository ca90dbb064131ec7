"""Memory that a step needs at its peak, beyond what lies there between steps.

Each figure is of a process of its own, which makes the state by a first step and measures the second. On Linux the
kernel is asked: "5" to ``/proc/self/clear_refs`` puts the peak (``VmHWM``) back to what is resident (``VmRSS``), and
after the step the peak is read again. The C library first gives back what it holds in reserve, and is set to take
memory for everything over 64 KiB from the kernel, so that memory that was freed before does not hide what the step
takes. On a GPU torch's allocator counts. Elsewhere there is no figure.
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
"""Seconds after which a child is given up."""


def peak_of(step: Callable[[], Any], device: str) -> int | None:
    """Bytes that ``step`` needs at its peak beyond those in use before; None where nobody counts them."""
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
    """Put the peak back to what is resident; whether that can be done here."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):  # another C library than GNU's: a little less exact
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
    """:func:`peak_of` a step of ``subject`` measured in a fresh process; None where that cannot be done."""
    if torch.device(device).type != "cuda" and sys.platform != "linux":
        return None
    words = json.dumps([subject, backend, shapes, device, dtype, threads])
    command = [sys.executable, "-c", "from pylo_zoo.bench.memory import child; child()", words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIMEOUT, env={**os.environ, **ENVIRONMENT}
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def child() -> None:
    """What the process does: print the bytes, as JSON."""
    from pylo_zoo.bench import shapes, subjects

    subject, backend, shape_set, device, dtype, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    work = subjects.find_subject(subject).make(
        shapes.find_shape_set(shape_set).make(device, getattr(torch, dtype)), backend
    )
    work.step()
    print(json.dumps(peak_of(work.step, device)))
