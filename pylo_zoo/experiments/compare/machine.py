"""The machine that trains, and its load during each run."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from pylo_zoo import __version__
from pylo_zoo.files import read_text, write_file

RECORD = "machine.json"
"""File in the directory of a run that stores the load."""
SPARE = 0.5
"""A machine is busy if its load exceeds the number of cores by more than this. The load includes the training."""


def state(device: str) -> dict[str, Any]:
    """Processor, GPU, cores and versions."""
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pylo-zoo": __version__,
    }


def load() -> float | None:
    """The load average of the last minute, or None if the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def record_load(out: Path, before: float | None) -> None:
    """Store the load of the run in ``out``: the maximum of ``before``, the current and the stored one."""
    known = [each for each in (before, load(), recorded_load(out)) if each is not None]
    write_file(out / RECORD, (json.dumps({"load": max(known, default=None)}) + "\n").encode())


def recorded_load(out: Path) -> float | None:
    """The stored load of the run in ``out``, or None."""
    try:
        value = json.loads(read_text(out / RECORD))["load"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, (int, float)) else None


def busy(load: float | None, cores: int | None) -> bool:
    """Whether other processes used the cores too."""
    return load is not None and load > (cores or 1) + SPARE


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
