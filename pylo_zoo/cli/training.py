"""A line that lives while a model trains: steps a second, loss, time left, and where the time goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from pylo_zoo.train.loop import Run, Step

EVERY = 0.1
"""Seconds between two looks at the figures; drawing at each step would cost more than a small step."""
SMOOTH = 0.98


@contextmanager
def watched(run: Run, *, quiet: bool, title: str | None = None) -> Iterator[Callable[[Step], None]]:
    """A function that hears of each step and shows where the run is, under ``title``, if somebody is looking."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
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
    title = output.printable(title or f"{run.task.name}, {run.recipe.label}, seed {run.plan.seed}")
    figures = _Figures()
    with progress:
        row = progress.add_task(title, total=run.plan.steps, figures="")

        def listen(step: Step) -> None:
            if figures.take(step) or step.step + 1 == run.plan.steps:
                progress.update(row, completed=step.step + 1, figures=str(figures))

        yield listen


class _Figures:
    """Loss, speed and shares, averaged over the last steps."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.model = self.optimizer = 0.0
        self.count = 0
        self.start = self.shown = time.monotonic()

    def take(self, step: Step) -> bool:
        """Take a step in; whether it is time to show the figures again."""
        self.loss = step.loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * step.loss
        self.model += step.model_seconds
        self.optimizer += step.optimizer_seconds
        self.count += 1
        due = time.monotonic() - self.shown >= EVERY
        if due:
            self.shown = time.monotonic()
        return due

    def __str__(self) -> str:
        speed = self.count / max(time.monotonic() - self.start, 1e-9)
        share = self.optimizer / max(self.model + self.optimizer, 1e-9)
        return f"loss {self.loss:.4g}  {speed:.3g} steps/s  {share:.0%} in the optimizer"
