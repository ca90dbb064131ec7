"""What the training runs on, and what else that machine did meanwhile, which is kept with each run."""

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
"""In a run's directory: the load that the machine had."""
SPARE = 0.5
"""A load above the number of cores by more than this is a busy machine: the training itself is one of the processes."""


def state(device: str) -> dict[str, Any]:
    """Processor, GPU, cores, and versions."""
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
    """Processes that want to run, averaged over the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def keep(out: Path, before: float | None) -> None:
    """Write down the load of the run in ``out``, the greatest of its parts: ``before`` it, after it, and earlier."""
    known = [each for each in (before, load(), kept(out)) if each is not None]
    write_file(out / RECORD, (json.dumps({"load": max(known, default=None)}) + "\n").encode())


def kept(out: Path) -> float | None:
    """The load that was written down of the run in ``out``; None where none was."""
    try:
        found = json.loads(read_text(out / RECORD))["load"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, (int, float)) else None


def busy(load: float | None, cores: int | None) -> bool:
    """Whether others wanted the cores, too."""
    return load is not None and load > (cores or 1) + SPARE


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
