"""Progress of a training run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pylo_zoo.cli import output
from pylo_zoo.errors import count

if TYPE_CHECKING:
    from pylo_zoo.experiments.train.loop import Run, Step

REFRESH_SECONDS = 0.1
"""Interval of the live line. Drawing at each step would cost more than a small step."""
SMOOTHING = 0.98
LINE_SECONDS = 10.0
"""Interval of plain lines."""


def describe_start(run: Run, *, resumed: bool) -> str:
    """The line that is printed before the first step."""
    from pylo_zoo.experiments.train import setup

    name = f"{run.task.name}, {run.recipe.label}, seed {run.plan.seed}"
    start = f"resuming at step {run.step} of {run.plan.steps}" if resumed else count(run.plan.steps, "step")
    return f"{name}: {start}, on {run.plan.device}, {count(setup.threads(), 'thread')} (--threads)"


@contextmanager
def showing_progress(run: Run, *, quiet: bool, title: str | None = None) -> Iterator[Callable[[Step], None]]:
    """A callback that takes each step and shows the progress of the run under ``title``, unless ``quiet``."""
    title = output.printable(title or f"{run.task.name}, {run.recipe.label}, seed {run.plan.seed}")
    if quiet:
        yield lambda step: None
        return
    if not sys.stderr.isatty():
        yield _line_printer(run, title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
    statistics = _Statistics(REFRESH_SECONDS)
    with progress:
        row = progress.add_task(title, total=run.plan.steps, figures="")

        def on_step(step: Step) -> None:
            if statistics.add(step) or step.step + 1 == run.plan.steps:
                progress.update(row, completed=step.step + 1, figures=str(statistics))

        yield on_step


def _line_printer(run: Run, title: str) -> Callable[[Step], None]:
    """A callback that prints a line every :data:`LINE_SECONDS`."""
    statistics = _Statistics(LINE_SECONDS)

    def on_step(step: Step) -> None:
        if statistics.add(step):
            done, steps = step.step + 1, run.plan.steps
            left = (steps - done) / statistics.speed
            output.note(f"{title}: step {done} of {steps}  {statistics}  {left:.0f} s left")

    return on_step


class _Statistics:
    """The smoothed loss, the speed and the optimizer's share of the time."""

    def __init__(self, every: float) -> None:
        self.every = every
        self.loss: float | None = None
        self.model = self.optimizer = 0.0
        self.count = 0
        self.start = self.shown = time.monotonic()

    def add(self, step: Step) -> bool:
        """Add a step; return whether it is time to show the statistics again."""
        self.loss = step.loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * step.loss
        self.model += step.model_seconds
        self.optimizer += step.optimizer_seconds
        self.count += 1
        due = time.monotonic() - self.shown >= self.every
        if due:
            self.shown = time.monotonic()
        return due

    @property
    def speed(self) -> float:
        """Steps per second."""
        return self.count / max(time.monotonic() - self.start, 1e-9)

    def __str__(self) -> str:
        share = self.optimizer / max(self.model + self.optimizer, 1e-9)
        return f"loss {self.loss:.4g}  {self.speed:.3g} steps/s  {share:.0%} in the optimizer"
