"""The report of a benchmark: every measured time, the machine, and what was left out. Reads and writes JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from pylo_zoo import __version__
from pylo_zoo.errors import ZooError, quoted, reason
from pylo_zoo.experiments.bench.measuring import Spread, spread
from pylo_zoo.files import read_text, write_file
from pylo_zoo.parsing import Field, is_text

T = TypeVar("T")

FORMAT = 2
HINT = "Write one with `pylo-zoo bench --out FILE`."
MAX_CELLS = 10_000
BACKENDS = ("eager", "fused")
FEWER = "fewer pairs than asked"
"""Begins the reason of a :class:`LeftOut` whose cell is in the table."""
"""Backends of the optimizers in this package."""
TORCH = "torch"
"""The backend of torch's own optimizers and of matrix products."""
BUSY = 0.5
"""A machine is busy if other processes use more cores than this."""
DIGITS = 6
"""Significant digits of times and bandwidths."""
COUNT = {"least": 0}
"""Metadata of an integer that may be 0."""


@dataclass(frozen=True)
class Machine:
    """The machine and the date of the measurements.

    ``bandwidth`` is that of each copy, in bytes read and written per second. ``load`` has the one-minute load averages
    before and after the measurements; it is empty if the system has none.
    """

    date: str
    cpu: str
    cores: int = field(metadata=COUNT)
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
        """Median bandwidth in bytes per second."""
        return spread(self.bandwidth).median

    @property
    def others(self) -> float:
        """An estimate of the cores that other processes used: the load before, or the load after minus our threads."""
        return max(0.0, self.load[0], self.load[-1] - self.threads) if self.load else 0.0

    @property
    def busy(self) -> bool:
        """Whether other processes used enough cores to affect the times."""
        return self.others > BUSY


@dataclass(frozen=True)
class Cell:
    """The measurements of one optimizer with one backend on one shape set.

    Attributes:
        optimizer, about, weights: name, description and weights of the subject.
        backend: a name in :data:`BACKENDS`, or :data:`TORCH`.
        shapes, parameters, tensors: name and sizes of the shape set.
        against: the reference.
        seconds, against_seconds: times of the subject and the reference in each pair, in order.
        state_bytes: size of the optimizer's state, or None for a subject that is not an optimizer.
        peak_bytes: peak memory of a step, in addition to that in use between steps; None if it was not measured.
        against_peak_bytes: the peak of fused AdamW on the same parameters.
        held_bytes: size of parameters and gradients.
        finite: whether parameters, or results, are finite after the last step.
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
    state_bytes: int | None = field(metadata=COUNT)
    peak_bytes: int | None = field(metadata=COUNT)
    against_peak_bytes: int | None = field(metadata=COUNT)
    held_bytes: int = field(metadata=COUNT)
    finite: bool

    @cached_property
    def time(self) -> Spread:
        """Seconds per step."""
        return spread(self.seconds)

    @cached_property
    def against_time(self) -> Spread:
        return spread(self.against_seconds)

    @cached_property
    def ratio(self) -> Spread:
        """The ratio of the two times of a pair."""
        return spread([a / b for a, b in zip(self.seconds, self.against_seconds, strict=True)])

    @property
    def least_ratio(self) -> float:
        """The ratio of the minimum times. Other processes can only increase a time."""
        return min(self.seconds) / min(self.against_seconds)

    @property
    def peak_ratio(self) -> float | None:
        """The ratio of a step's peak to that of fused AdamW, with parameters and gradients, without optimizer state."""
        if self.peak_bytes is None or self.against_peak_bytes is None:
            return None
        return (self.held_bytes + self.peak_bytes) / (self.held_bytes + self.against_peak_bytes)

    @property
    def state_per_parameter(self) -> float | None:
        """Bytes per parameter."""
        return None if self.state_bytes is None else self.state_bytes / self.parameters

    @property
    def peak_per_parameter(self) -> float | None:
        """Bytes per parameter."""
        return None if self.peak_bytes is None else self.peak_bytes / self.parameters

    def moved_per_parameter(self, bandwidth: float) -> float:
        """Bytes per parameter that the machine can copy in the time of a step."""
        return self.time.median * bandwidth / self.parameters


@dataclass(frozen=True)
class LeftOut:
    """A measurement that is missing or incomplete, and why. ``failed`` marks an error."""

    optimizer: str
    shapes: str
    why: str
    failed: bool = False
    backend: str = TORCH

    @property
    def what(self) -> str:
        """The optimizer, with its backend if it has several."""
        return self.optimizer if self.backend == TORCH else f"{self.optimizer} ({self.backend})"


@dataclass(frozen=True)
class Report:
    """The results of a benchmark. ``asked`` holds the plan: optimizers, shape sets, backends, steps, dtype, …"""

    machine: Machine
    asked: Mapping[str, Any]
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def diverged(self) -> tuple[Cell, ...]:
        """Cells that ended in NaN or infinity."""
        return tuple(cell for cell in self.cells if not cell.finite)

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object: measurements and the statistics derived from them."""
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
        summaries = {name: {key: short(value) for key, value in asdict(each).items()} for name, each in spreads.items()}
        more = {
            "least_ratio": short(cell.least_ratio),
            "peak_ratio": None if cell.peak_ratio is None else short(cell.peak_ratio),
            "moved_bytes_per_parameter": short(cell.moved_per_parameter(self.machine.copies)),
        }
        return {**asdict(cell), "summary": {**summaries, **more}}

    def by_backend(self) -> dict[str, Report]:
        """The report split by backend."""
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
    """``value`` rounded to :data:`DIGITS` digits, the precision of the clock."""
    return float(f"{value:.{DIGITS}g}")


def write(report: Report, path: Path) -> None:
    """Write ``report`` to ``path`` atomically.

    Raises:
        ZooError: the file cannot be written.
    """
    write_file(path, (json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> Report:
    """Read a report that :func:`write` wrote.

    Raises:
        ZooError: the file does not exist, or is not a report of this format.
    """
    try:
        return _report(Field(json.loads(read_text(path)), "it", HINT))
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason(error)}"
        raise ZooError(f"{path} {problem}.", "Pass a file that `pylo-zoo bench --out FILE` wrote.") from error
    except (ValueError, RecursionError) as error:
        problem = error.message if isinstance(error, ZooError) else f"{error}."
        raise ZooError(f"{path} is not a benchmark report: {problem}", HINT) from error


def _report(root: Field) -> Report:
    fields = root.fields(("format", "machine", "asked", "cells", "left_out"), ("busy", "backends"))
    fields["format"].integer(FORMAT, FORMAT)
    asked = fields["asked"].mapping(lambda each: each)
    if "dtype" not in asked or not is_text(asked["dtype"].value):
        raise fields["asked"].error(" has no dtype")
    return Report(
        _nonempty(fields["machine"], fields["machine"].record(Machine), "bandwidth"),
        {name: each.value for name, each in asked.items()},
        tuple(fields["cells"].items(_cell, MAX_CELLS)),
        tuple(fields["left_out"].items(lambda each: each.record(LeftOut), MAX_CELLS)),
    )


def _cell(each: Field) -> Cell:
    cell = _nonempty(each, each.record(Cell, ignored=("summary",)), "seconds", "against_seconds")
    if len(cell.seconds) != len(cell.against_seconds):
        raise each.error(f" has {len(cell.seconds)} seconds, and {len(cell.against_seconds)} against_seconds")
    return cell


def _nonempty(each: Field, record: T, *names: str) -> T:
    """``record``, after a check that these tuples have positive numbers."""
    for name in names:
        if not (values := getattr(record, name)) or min(values) <= 0:
            raise each.error(f".{name} is {quoted(list(values))}, not a list of positive numbers")
    return record


# --- the machine -------------------------------------------------------------------------------------------------


def this_machine(device: str, threads: int, bandwidth: tuple[float, ...], load: tuple[float, ...]) -> Machine:
    """A description of this machine."""
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
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def load_average() -> tuple[float, ...]:
    """The load average of the last minute, or nothing if the system has none."""
    return (os.getloadavg()[0],) if hasattr(os, "getloadavg") else ()


KEYS = {kind.__name__: tuple(field.name for field in fields(kind)) for kind in (Machine, Cell, LeftOut)}
"""The keys of each part of the file."""
