"""How a training run does: a line that lives, or now and then a plain one where nobody looks on."""

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
PLAIN = 10.0
"""Seconds between two plain lines, which stay."""


def threads(number: int) -> str:
    """So many, in words."""
    return f"{number} thread" + ("s" if number > 1 else "")


def beginning(run: Run, *, resumed: bool) -> str:
    """What is said before the first step: what the run is, on what, and where it takes up."""
    from pylo_zoo.train import setup

    what = f"{run.task.name}, {run.recipe.label}, seed {run.plan.seed}"
    if run.step >= run.plan.steps:
        return f"{what}: the run in {run.out} is over, after {run.step} steps; nothing is left to do."
    start = f"going on at step {run.step} of {run.plan.steps}" if resumed else f"{run.plan.steps} steps"
    return f"{what}: {start}, on {run.plan.device}, {threads(setup.threads())} (--threads)"


@contextmanager
def watched(run: Run, *, quiet: bool, title: str | None = None) -> Iterator[Callable[[Step], None]]:
    """A function that hears of each step and shows where the run is, under ``title``, unless ``quiet``.

    A line that lives on a terminal, elsewhere a plain one every :data:`PLAIN` seconds.
    """
    title = output.printable(title or f"{run.task.name}, {run.recipe.label}, seed {run.plan.seed}")
    if quiet:
        yield lambda step: None
        return
    if not sys.stderr.isatty():
        yield _plain(run, title)
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
    figures = _Figures(EVERY)
    with progress:
        row = progress.add_task(title, total=run.plan.steps, figures="")

        def listen(step: Step) -> None:
            if figures.take(step) or step.step + 1 == run.plan.steps:
                progress.update(row, completed=step.step + 1, figures=str(figures))

        yield listen


def _plain(run: Run, title: str) -> Callable[[Step], None]:
    """What prints a line now and then; none for a run that is short."""
    figures = _Figures(PLAIN)

    def listen(step: Step) -> None:
        if figures.take(step):
            done, steps = step.step + 1, run.plan.steps
            left = (steps - done) / figures.speed
            output.note(f"{title}: step {done} of {steps}  {figures}  {left:.0f} s left")

    return listen


class _Figures:
    """Loss, speed and shares, averaged over the last steps; due again every so many seconds."""

    def __init__(self, every: float) -> None:
        self.every = every
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
        due = time.monotonic() - self.shown >= self.every
        if due:
            self.shown = time.monotonic()
        return due

    @property
    def speed(self) -> float:
        """Steps a second."""
        return self.count / max(time.monotonic() - self.start, 1e-9)

    def __str__(self) -> str:
        share = self.optimizer / max(self.model + self.optimizer, 1e-9)
        return f"loss {self.loss:.4g}  {self.speed:.3g} steps/s  {share:.0%} in the optimizer"
