"""What a benchmark found: every raw time, the machine, and what was left out; as JSON and back."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pylo_zoo import __version__
from pylo_zoo.bench.measuring import Spread, spread
from pylo_zoo.errors import ZooError
from pylo_zoo.files import read_text, write_file

FORMAT = 2
BACKENDS = ("eager", "fused")
"""How an optimizer of this package can compute a step."""
TORCH = "torch"
"""The backend of what has no such choice: torch's own optimizers, and products of matrices."""
BUSY = 0.5
"""Cores that others have from which on a machine counts as busy."""
DIGITS = 6
"""Significant digits of times and bandwidths."""


@dataclass(frozen=True)
class Machine:
    """Where and when: without it no time means anything.

    ``bandwidth`` is of copies, bytes a second, read and written together; ``load`` the load averages of a minute before
    and after the measurements, where the system has any.
    """

    date: str
    cpu: str
    cores: int
    system: str
    device: str
    threads: int
    python: str
    torch: str
    pylo_zoo: str
    bandwidth: tuple[float, ...]
    load: tuple[float, ...]

    @property
    def copies(self) -> float:
        """Median bandwidth, bytes a second."""
        return spread(self.bandwidth).median

    @property
    def others(self) -> float:
        """Cores that other work had, about: the load before, or what the load after has beyond this work's threads."""
        return max(0.0, self.load[0], self.load[-1] - self.threads) if self.load else 0.0

    @property
    def busy(self) -> bool:
        """Whether that is enough to spoil the times."""
        return self.others > BUSY


@dataclass(frozen=True)
class Cell:
    """One optimizer with one backend on one shape set.

    Attributes:
        optimizer, about, weights: of the subject.
        backend: of :data:`BACKENDS`, or :data:`TORCH`.
        shapes, parameters, tensors: of the shape set.
        against: what the pairs' second step is.
        seconds, against_seconds: of each pair, in order.
        state_bytes: of the optimizer's state; None where there is no optimizer.
        peak_bytes: that a step needs beyond what lies there between steps; None where nobody counted.
        against_peak_bytes: the same of fused AdamW, on the same parameters.
        held_bytes: of parameters and gradients.
        finite: whether parameters, or results, are finite numbers after the last step.
    """

    optimizer: str
    about: str
    weights: str
    backend: str
    shapes: str
    parameters: int
    tensors: int
    against: str
    seconds: tuple[float, ...]
    against_seconds: tuple[float, ...]
    state_bytes: int | None
    peak_bytes: int | None
    against_peak_bytes: int | None
    held_bytes: int
    finite: bool

    @cached_property
    def time(self) -> Spread:
        """Seconds a step."""
        return spread(self.seconds)

    @cached_property
    def against_time(self) -> Spread:
        return spread(self.against_seconds)

    @cached_property
    def ratio(self) -> Spread:
        """Of a pair's two times."""
        return spread([a / b for a, b in zip(self.seconds, self.against_seconds, strict=True)])

    @property
    def least_ratio(self) -> float:
        """Of the least times: what others do to a machine only adds to a time."""
        return min(self.seconds) / min(self.against_seconds)

    @property
    def peak_ratio(self) -> float | None:
        """Of a step's peaks, parameters and gradients included and each one's state left out, to fused AdamW's."""
        if self.peak_bytes is None or self.against_peak_bytes is None:
            return None
        return (self.held_bytes + self.peak_bytes) / (self.held_bytes + self.against_peak_bytes)

    @property
    def state_per_parameter(self) -> float | None:
        """Bytes."""
        return None if self.state_bytes is None else self.state_bytes / self.parameters

    @property
    def peak_per_parameter(self) -> float | None:
        """Bytes."""
        return None if self.peak_bytes is None else self.peak_bytes / self.parameters

    def moved_per_parameter(self, bandwidth: float) -> float:
        """Bytes a parameter that the machine could have copied in the time of a step."""
        return self.time.median * bandwidth / self.parameters


@dataclass(frozen=True)
class LeftOut:
    """A cell that is not there, or not as asked for, and why; ``failed`` where something went wrong."""

    optimizer: str
    shapes: str
    why: str
    failed: bool = False
    backend: str = TORCH

    @property
    def what(self) -> str:
        """The optimizer with its backend, where it has a choice."""
        return self.optimizer if self.backend == TORCH else f"{self.optimizer} ({self.backend})"


@dataclass(frozen=True)
class Report:
    """Everything.

    ``asked`` holds what was asked for: optimizers, shape sets, backends, steps, seconds, dtype, seed.
    """

    machine: Machine
    asked: Mapping[str, Any]
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def diverged(self) -> tuple[Cell, ...]:
        """Cells whose times are those of NaN or infinities."""
        return tuple(cell for cell in self.cells if not cell.finite)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: what was measured, and beside it what follows."""
        return {
            "format": FORMAT,
            "machine": asdict(self.machine),
            "busy": self.machine.busy,
            "asked": dict(self.asked),
            "backends": list(dict.fromkeys(cell.backend for cell in self.cells)),
            "cells": [self._cell(cell) for cell in self.cells],
            "left_out": [asdict(each) for each in self.left_out],
        }

    def _cell(self, cell: Cell) -> dict[str, Any]:
        spreads = {name: getattr(cell, name) for name in ("time", "against_time", "ratio")}
        found = {name: {key: short(value) for key, value in asdict(each).items()} for name, each in spreads.items()}
        more = {
            "least_ratio": short(cell.least_ratio),
            "peak_ratio": None if cell.peak_ratio is None else short(cell.peak_ratio),
            "moved_bytes_per_parameter": short(cell.moved_per_parameter(self.machine.copies)),
        }
        return {**asdict(cell), "summary": {**found, **more}}

    def by_backend(self) -> dict[str, Report]:
        """A report for each backend."""
        names = dict.fromkeys(each.backend for each in (*self.cells, *self.left_out))
        return {
            name: replace(
                self,
                cells=tuple(cell for cell in self.cells if cell.backend == name),
                left_out=tuple(each for each in self.left_out if each.backend == name),
            )
            for name in names
        }


def short(value: float) -> float:
    """Rounded to :data:`DIGITS`: a clock knows no more."""
    return float(f"{value:.{DIGITS}g}")


def write(report: Report, path: Path) -> None:
    """Write ``report`` to ``path`` in one step.

    Raises:
        ZooError: the file system refuses.
    """
    write_file(path, (json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> Report:
    """What :func:`write` wrote.

    Raises:
        ZooError: the file is not there, or no report of this format.
    """
    try:
        values = json.loads(read_text(path))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, not {FORMAT}")
        return Report(
            Machine(**_tuples(values["machine"])),
            values["asked"],
            tuple(Cell(**_tuples(_without(each, "summary"))) for each in values["cells"]),
            tuple(LeftOut(**each) for each in values["left_out"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(
            f"{path} is no report of a benchmark: {error}.", "`pylo-zoo bench --out FILE` makes one."
        ) from error


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


# --- the machine -------------------------------------------------------------------------------------------------


def this_machine(device: str, threads: int, bandwidth: tuple[float, ...], load: tuple[float, ...]) -> Machine:
    """The machine that this runs on, now."""
    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        system=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        threads=threads,
        python=platform.python_version(),
        torch=torch.__version__,
        pylo_zoo=__version__,
        bandwidth=bandwidth,
        load=load,
    )


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def load_average() -> tuple[float, ...]:
    """Of the last minute, where the system has one."""
    return (os.getloadavg()[0],) if hasattr(os, "getloadavg") else ()


KEYS = {kind.__name__: tuple(field.name for field in fields(kind)) for kind in (Machine, Cell, LeftOut)}
"""The keys of the file's parts."""
