"""The benchmark: every optimizer on every shape set, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from pylo_zoo.errors import UsageError, ZooError, quoted
from pylo_zoo.experiments import peak_memory
from pylo_zoo.experiments.bench import measuring, report, shapes, subjects
from pylo_zoo.experiments.bench.report import Cell, LeftOut, Report
from pylo_zoo.experiments.bench.shapes import SHAPE_SETS, ShapeSet
from pylo_zoo.experiments.bench.subjects import SUBJECTS, NothingToDo, Subject
from pylo_zoo.parsing import is_finite

ALL = "all"
DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda")
PEAK_LIMIT = 900
"""Time limit of a process that measures peak memory, in seconds."""

Progress = Callable[[str, int, int], None]
"""Receives the current measurement, the number of finished ones and their total."""


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        optimizers: names in ``SUBJECTS``, registry names, artifact directories or
            ``random:FAMILY``; ``"all"`` is every subject.
        backends: names in ``BACKENDS``, for the optimizers of this package; ``"all"`` is
            every backend.
        shape_sets: names in ``SHAPE_SETS``; ``"all"`` is all except tiny.
        steps: maximum number of step pairs per measurement.
        seconds: time limit. Each measurement gets an equal part of the remaining time, and at least three pairs.
        threads: torch threads; None keeps the current number.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: dtype of the parameters.
        memory: whether to measure the peak memory of a step, in a fresh process.
        seed: seed of parameters and gradients.
    """

    optimizers: tuple[str, ...] = (ALL,)
    shape_sets: tuple[str, ...] = ("gpt",)
    backends: tuple[str, ...] = (ALL,)
    steps: int = 30
    seconds: float = 300.0
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    memory: bool = True
    seed: int = 0

    def cells(self) -> list[tuple[Subject, str, ShapeSet]]:
        """The measurements to make, by shape set. Eager torch operations come last: they take most of the time.

        Raises:
            ZooError: a name is unknown, or a value is out of range.
        """
        self._check()
        chosen = [subjects.find_subject(name) for name in _expand(self.optimizers, SUBJECTS)]
        sets = [
            shapes.find_shape_set(name)
            for name in _expand(self.shape_sets, [name for name in SHAPE_SETS if name != "tiny"])
        ]
        backends = _expand(self.backends, report.BACKENDS)
        cells = [
            (subject, backend, shape_set)
            for shape_set in sets
            for subject in chosen
            for backend in (backends if subject.has_backends else [report.TORCH])
        ]
        return sorted(cells, key=lambda cell: (sets.index(cell[2]), cell[1] == "eager"))

    def _check(self) -> None:
        if not self.optimizers or not self.shape_sets or not self.backends:
            raise UsageError(
                "optimizers, backends or shape_sets is empty.", f"Name at least one of each, or use {ALL}."
            )
        for backend in self.backends:
            if backend not in (ALL, *report.BACKENDS):
                raise UsageError(f"Unknown backend {backend!r}.", f"Use {', '.join(report.BACKENDS)}, or {ALL}.")
        if self.steps < measuring.MIN_PAIRS:
            raise UsageError(f"steps is {self.steps}.", f"It must be at least {measuring.MIN_PAIRS}.")
        if not is_finite(self.seconds) or self.seconds <= 0:
            raise UsageError(f"seconds is {quoted(self.seconds)}.", "It must be above 0.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}.", "It must be at least 1.")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is {self.dtype!r}.", f"Use {', '.join(DTYPES)}.")
        if self.device not in DEVICES:
            raise UsageError(f"device is {self.device!r}.", f"Use {' or '.join(DEVICES)}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ZooError("No CUDA device is available.", "Use the device cpu.")


def _expand(names: Sequence[str], everything: Sequence[str] | object) -> list[str]:
    """``names`` without repetitions, and ``everything`` in place of ``"all"``."""
    expanded = [each for name in names for each in (everything if name == ALL else [name])]  # pyright: ignore
    return list(dict.fromkeys(expanded))


def bench(plan: BenchPlan, progress: Progress | None = None) -> Report:
    """Run the benchmark.

    Raises:
        ZooError: a name is unknown, a value is out of range, or weights are unavailable.
    """
    todo, report_progress = plan.cells(), progress or (lambda what, done, total: None)
    load = report.load_average()
    end = time.monotonic() + plan.seconds
    cells: list[Cell] = []
    left_out: list[LeftOut] = []
    peaks = PeakCache(plan)
    with measuring.threads(plan.threads) as count:
        bandwidth = tuple(map(report.short, measuring.bandwidth(plan.device)))
        for done, (subject, backend, shape_set) in enumerate(todo):
            absent = partial(LeftOut, subject.name, shape_set.name, backend=backend)
            report_progress(f"{absent('').what}, {shape_set.name}", done, len(todo))
            left = end - time.monotonic()
            if left <= 0:
                left_out.append(absent(f"the time limit of {plan.seconds:g} s was reached"))
                continue
            try:
                cell = measure(subject, backend, shape_set, plan, left / (len(todo) - done), peaks)
            except NothingToDo as error:
                left_out.append(absent(error.message.rstrip(".")))
                continue
            except (RuntimeError, MemoryError) as error:  # mostly too little memory
                why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                left_out.append(absent(why, failed=True))
                continue
            cells.append(cell)
            if len(cell.seconds) < plan.steps:
                left_out.append(absent(f"{report.FEWER}: {len(cell.seconds)} of {plan.steps}"))
        report_progress("", len(todo), len(todo))
        machine = report.this_machine(plan.device, count, bandwidth, (*load, *report.load_average()))
    return Report(machine, asdict(plan), tuple(cells), tuple(left_out))


class PeakCache:
    """Measures the peak memory of each step once."""

    def __init__(self, plan: BenchPlan) -> None:
        self.plan = plan
        self.peaks: dict[tuple[str, str, str], int | None] = {}

    def __call__(self, subject: str, backend: str, shapes: str) -> int | None:
        key, plan = (subject, backend, shapes), self.plan
        if plan.memory and key not in self.peaks:
            arguments = (plan.device, *key, plan.dtype, torch.get_num_threads())
            self.peaks[key] = peak_memory.in_fresh_process(of_second_step, *arguments, limit=PEAK_LIMIT)
        return self.peaks.get(key)


def of_second_step(device: str, subject: str, backend: str, shape_set: str, dtype: str, threads: int) -> int | None:
    """The peak memory of the second step, when the optimizer's state exists already."""
    torch.set_num_threads(threads)
    parameters = shapes.find_shape_set(shape_set).make(device, getattr(torch, dtype))
    work = subjects.find_subject(subject).make(parameters, backend)
    work.step()
    return peak_memory.of_step(work.step, device)


def measure(
    subject: Subject, backend: str, shape_set: ShapeSet, plan: BenchPlan, seconds: float, peaks: PeakCache | None = None
) -> Cell:
    """Measure one cell in about ``seconds``, which include the memory measurement.

    Raises:
        NothingToDo: the shape set has nothing for the subject.
    """
    start, dtype = time.monotonic(), getattr(torch, plan.dtype)
    ours = subject.make(shape_set.make(plan.device, dtype, plan.seed), backend)
    reference = subject.reference(shape_set.make(plan.device, dtype, plan.seed), report.TORCH)
    peak = adamw_peak = None
    if peaks is not None:
        peak, adamw_peak = peaks(subject.name, backend, shape_set.name), peaks("adamw", report.TORCH, shape_set.name)
    remaining = max(0.0, seconds - (time.monotonic() - start))
    times = measuring.pairs(ours.step, reference.step, plan.steps, remaining, measuring.clock(plan.device))
    return Cell(
        optimizer=subject.name,
        about=subject.about,
        weights=subject.weights,
        backend=backend,
        shapes=shape_set.name,
        parameters=shape_set.parameters,
        tensors=shape_set.tensors,
        against=subject.against,
        seconds=tuple(map(report.short, times.ours)),
        against_seconds=tuple(map(report.short, times.reference)),
        state_bytes=ours.state_bytes,
        peak_bytes=peak,
        against_peak_bytes=adamw_peak,
        held_bytes=2 * shape_set.parameters * dtype.itemsize,
        finite=ours.finite,
    )


def names_of(text: str) -> tuple[str, ...]:
    """Split ``"celo2, elo"`` into names. The path of a directory must not contain a comma."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


__all__ = ["ALL", "BenchPlan", "bench", "measure", "names_of"]
