"""The peak memory of one optimizer step, in addition to the memory in use before it.

On a GPU, torch reports the peak. On Linux, the kernel reports the peak resident memory of a process, and writing 5 to
``/proc/self/clear_refs`` resets it. Both need a fresh process: a step must not reuse memory that was freed before.
:func:`measured` starts that process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pylo_zoo.errors import ZooError
from pylo_zoo.experiments import tasks
from pylo_zoo.experiments.train import recipes
from pylo_zoo.fetch import Access

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LIMIT = 300
"""Time limit of the measuring process in seconds."""
METHODS = {
    "cuda": "torch.cuda.max_memory_allocated over the third step, minus the memory allocated before it",
    "linux": "the kernel's peak resident memory (VmHWM) over the third step in a separate process, minus the resident "
    "memory before it; not meaningful below 1 MB",
    "none": "not measured on this system",
}
"""How each kind of system measures the peak."""


@dataclass(frozen=True)
class Peak:
    """The peak memory of a step in bytes, or None if it was not measured, and the method or reason."""

    bytes: int | None
    method: str


def measured(task: str, options: Mapping[str, Any], optimizer: str, device: str) -> Peak:
    """Measure the peak of the optimizer's third step on ``task`` in a separate process.

    At the third step, the optimizer's state and the gradients exist already. If the process fails, ``bytes`` is None.
    """
    if method(device) == "none":
        return Peak(None, METHODS["none"])
    request = json.dumps({"task": task, "options": dict(options), "optimizer": optimizer, "device": device})
    code = "import sys; from pylo_zoo.experiments.compare import memory; memory.main(sys.stdin.read())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=LIMIT, check=True)
        return Peak(int(json.loads(done.stdout.splitlines()[-1])), METHODS[method(device)])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return Peak(None, "the measuring process failed")


def recorded(entry: Mapping[str, Any]) -> Peak | None:
    """The peak in a report's ``entry`` of an optimizer, or None if it must be measured again."""
    peak = Peak(entry["peak_bytes"], entry["peak_method"])
    return peak if peak.bytes is not None or peak.method == METHODS["none"] else None


def method(device: str) -> str:
    """The key in :data:`METHODS` for ``device``."""
    if device.startswith("cuda"):
        return "cuda"
    return "linux" if device == "cpu" and CLEAR.exists() and STATUS.exists() else "none"


def main(request: str) -> None:
    """Measure the optimizer in the JSON ``request`` and print the bytes. Call it only in a fresh process."""
    settings = json.loads(request)
    task = tasks.make(settings["task"], settings["options"])
    recipe = recipes.find_recipe(settings["optimizer"], access=Access(offline=True))
    device = torch.device(settings["device"])
    model = task.model(0).to(device)
    optimizer = recipe.make(model, steps=100)
    growth = 0
    for step in range(3):
        optimizer.zero_grad()
        loss = task.loss(model, tuple(each.to(device) for each in task.batch(0, step)))
        loss.backward()
        value = loss.item()
        del loss
        before = _reset_peak(device)
        optimizer.step(lambda value=value: value) if recipe.needs_loss else optimizer.step()
        growth = _peak(device) - before
    print(max(0, growth))


def _reset_peak(device: torch.device) -> int:
    """Free unused memory, reset the peak, and return the bytes in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    CLEAR.write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ZooError(f"{STATUS} has no {key}.", "Measure on another system.")
