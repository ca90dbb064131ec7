"""Lines that live while a comparison runs: which run it is, how that one does, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pylo_zoo.cli import output
from pylo_zoo.cli.training import watched

if TYPE_CHECKING:
    from pylo_zoo.compare.figures import Course
    from pylo_zoo.compare.running import Watch
    from pylo_zoo.train.loop import Run, Step


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watch]:
    """What looks on: a line a finished run and, where somebody is looking, one that lives during a run."""
    yield _Watch(quiet)


class _Watch:
    """What :class:`~pylo_zoo.compare.running.Watch` asks for, on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.left: dict[str, int] = {}
        self.pace: dict[str, tuple[int, float]] = {}
        self.runs = self.finished = 0
        self.trained = False

    def expect(self, steps: dict[str, int], runs: int) -> None:
        for label, number in steps.items():
            self.left[label] = self.left.get(label, 0) + number
        self.runs += runs

    @contextmanager
    def run(self, title: str, label: str, run: Run) -> Iterator[Callable[[Step], None]]:
        start = time.monotonic()
        self.trained = True
        with watched(run, quiet=self.quiet, title=f"{self.finished + 1}/{self.runs}  {title}") as listen:
            yield listen
        steps, seconds = self.pace.get(label, (0, 0.0))
        self.pace[label] = (steps + run.plan.steps, seconds + time.monotonic() - start)
        self.left[label] = self.left.get(label, 0) - run.plan.steps

    def done(self, title: str, course: Course) -> None:
        self.finished += 1
        if course.stopped:
            what = "diverged"
        else:
            last = course.losses[-max(1, len(course.losses) // 20) :]
            what = f"loss {sum(last) / len(last):.4g}"
        again = "" if self.trained else ", as it was found"
        left = f", about {self._seconds():.0f} s left" if self._known() else ""
        self.trained = False
        output.note(f"{self.finished}/{self.runs}  {title}: {what}{again}{left}", quiet=self.quiet)

    def _known(self) -> bool:
        """Whether each optimizer that still has steps to make has made some."""
        return self.finished < self.runs and all(label in self.pace for label, steps in self.left.items() if steps > 0)

    def _seconds(self) -> float:
        """Time that is left, by what each optimizer's steps took."""
        paces = {label: seconds / max(steps, 1) for label, (steps, seconds) in self.pace.items()}
        return sum(max(0, steps) * paces.get(label, 0.0) for label, steps in self.left.items())
