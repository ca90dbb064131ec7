"""The memory that one optimizer step takes beyond what was there before it, measured.

On a GPU torch counts it. On Linux the kernel does: it keeps the high-water mark of a process's memory, which writing 5
to ``/proc/self/clear_refs`` sets back. Either needs a process in which nothing was allocated and given back before, so
that a step finds no memory to use again; :func:`measured` starts one.
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

from pylo_zoo import tasks
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access
from pylo_zoo.train import recipes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LIMIT = 300
"""Seconds that the other process may take."""
METHODS = {
    "cuda": "torch.cuda.max_memory_allocated over the third step, less what was allocated before it",
    "linux": "the kernel's high-water mark (VmHWM) over the third step in a process of its own, less what was resident "
    "before it; under 1 MB it says nothing",
    "none": "not measured on this system",
}
RESOLVED = 1_000_000
"""Bytes below which the kernel's figure says nothing: pages, the allocator's spare room, counters kept per thread."""


@dataclass(frozen=True)
class Peak:
    """Bytes that a step takes at its peak, None where they were not measured, and how they were."""

    bytes: int | None
    method: str


def measured(task: str, options: Mapping[str, Any], optimizer: str, device: str) -> Peak:
    """The peak of the optimizer's third step on ``task``, in a process of its own; ``Peak(None, …)`` where that fails.

    Its state is there since the first one; gradients are there, too.
    """
    if method(device) == "none":
        return Peak(None, METHODS["none"])
    words = json.dumps({"task": task, "options": dict(options), "optimizer": optimizer, "device": device})
    code = "import sys; from pylo_zoo.compare import memory; memory.main(sys.stdin.read())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, input=words, capture_output=True, text=True, timeout=LIMIT, check=True)
        return Peak(int(json.loads(done.stdout.splitlines()[-1])), METHODS[method(device)])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return Peak(None, "the process that measures it failed")


def recorded(entry: Mapping[str, Any]) -> Peak | None:
    """What a report's ``entry`` of an optimizer says, if it was measured, or cannot be."""
    method = entry["peak_method"]
    return Peak(entry["peak_bytes"], method) if method in METHODS.values() else None


def method(device: str) -> str:
    """Which of :data:`METHODS` applies on ``device``."""
    if device.startswith("cuda"):
        return "cuda"
    return "linux" if device == "cpu" and CLEAR.exists() and STATUS.exists() else "none"


def main(words: str) -> None:
    """Measure what ``words``, JSON, say, and print the bytes. For a fresh process alone."""
    asked = json.loads(words)
    task = tasks.make(asked["task"], asked["options"])
    recipe = recipes.find_recipe(asked["optimizer"], access=Access(offline=True))
    device = torch.device(asked["device"])
    model = task.model(0).to(device)
    optimizer = recipe.make(model, steps=100)
    grown = 0
    for step in range(3):
        optimizer.zero_grad()
        loss = task.loss(model, tuple(each.to(device) for each in task.batch(0, step)))
        loss.backward()
        value = loss.item()
        del loss
        before = _settle(device)
        optimizer.step(lambda value=value: value) if recipe.needs_loss else optimizer.step()
        grown = _peak(device) - before
    print(max(0, grown))


def _settle(device: torch.device) -> int:
    """Give back what is spare, begin a new high-water mark, and say how much is in use."""
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
    raise ZooError(f"{STATUS} has no {key}.", "Measure elsewhere.")
