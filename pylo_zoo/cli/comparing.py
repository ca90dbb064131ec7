"""What a comparison shows on a terminal: lines that live while it runs, and a table in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pylo_zoo.cli import output
from pylo_zoo.cli.training import watched

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pylo_zoo.compare.figures import Course
    from pylo_zoo.compare.running import Watch
    from pylo_zoo.train.loop import Run, Step

AFTER = "then memory and figures, some seconds for each optimizer"


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watch]:
    """What looks on: a line a finished run and, where somebody is looking, one that lives during a run."""
    yield _Watch(quiet)


class _Watch:
    """What :class:`~pylo_zoo.compare.running.Watch` asks for, on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.left: dict[str, int] = {}
        self.paces: dict[str, float] = {}
        self.spent: dict[str, tuple[int, float]] = {}
        self.runs = self.finished = self.made = 0
        self.training = False

    def expect(self, steps: dict[str, int], runs: int) -> None:
        for label, number in steps.items():
            self.left[label] = self.left.get(label, 0) + number
        self.runs += runs

    def pace(self, label: str, seconds: float) -> None:
        self.paces[label] = seconds

    @contextmanager
    def run(self, title: str, label: str, run: Run) -> Iterator[Callable[[Step], None]]:
        if not self.made:
            found = f"{self.finished} of them as they were found, " if self.finished else ""
            output.note(f"{self.runs} runs, {found}{self._time()}, {AFTER}", quiet=self.quiet)
        self.made += 1
        self.training = True
        start = time.monotonic()
        with watched(run, quiet=self.quiet, title=f"{self.finished + 1}/{self.runs}  {title}") as listen:
            yield listen
        steps, seconds = self.spent.get(label, (0, 0.0))
        self.spent[label] = steps, seconds = steps + len(run.result.model_seconds), seconds + time.monotonic() - start
        self.paces[label] = seconds / max(steps, 1)
        self.left[label] = self.left.get(label, 0) - run.plan.steps

    def done(self, title: str, course: Course) -> None:
        self.finished += 1
        if not self.training:
            return
        self.training = False
        if course.stopped:
            what = "diverged"
        else:
            last = course.losses[-max(1, len(course.losses) // 20) :]
            what = f"loss {sum(last) / len(last):.4g}"
        left = f", {self._time()}" if self.finished < self.runs else ""
        output.note(f"{self.finished}/{self.runs}  {title}: {what}{left}", quiet=self.quiet)

    def _time(self) -> str:
        """The time that training has left, by what each optimizer's steps took."""
        from pylo_zoo.compare import words

        seconds = sum(max(0, steps) * self.paces.get(label, 0.0) for label, steps in self.left.items())
        return f"about {words.duration(seconds)} of training left"


# --- the table ---------------------------------------------------------------------------------------------------

SHOWN = (0, 1, 2, 3, 4, 6, 10)
"""Columns of the report's table that a terminal has room for."""
WIDEST = 1000
"""Of a table before it is fitted to a terminal."""


def table(found: Mapping[str, Any], console: Console) -> Table:
    """The figures of merit, as wide as ``console`` lets them be without breaking any of them.

    A line an optimizer, else a column an optimizer, else one optimizer below the other.
    """
    from pylo_zoo.compare import words

    titles = [words.head(found)[i] for i in SHOWN]
    rows = []
    for each in found["optimizers"]:
        row = words.row(each, found)
        if each["diverged"]:
            row[2] = f"diverged ({each['diverged']} of {len(each['runs'])})"
        rows.append([row[i] for i in SHOWN])
    head = [_halved(title) for title in titles]
    for made in (_grid(head, *rows), _grid(*zip(titles, *rows, strict=True))):
        if console.measure(made, options=console.options.update(width=WIDEST)).maximum <= console.width:
            return made
    stack = _made()
    stack.show_header = False
    for row in rows:
        stack.add_row(output.printable(row[0]), style="bold")
        for title, cell in zip(titles[1:], row[1:], strict=True):
            stack.add_row(f"  {output.printable(title)}", output.printable(cell))
    return stack


def _made() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _grid(head: Sequence[str], *rows: Sequence[str]) -> Table:
    """A table in whose cells what is in small letters elsewhere stands below what counts."""
    made = _made()
    for i, title in enumerate(head):
        made.add_column(_stacked(title), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        made.add_row(*map(_stacked, row))
    return made


def _halved(title: str) -> str:
    """``title`` in two lines, as like in length as its words allow."""
    breaks = [i for i, sign in enumerate(title) if sign == " "]
    middle = min(breaks, key=lambda i: abs(2 * i + 1 - len(title)), default=len(title))
    return f"{title[:middle]}\n{title[middle + 1 :]}".rstrip()


def _stacked(cell: str) -> str:
    from pylo_zoo.compare import words

    return output.printable_lines("\n".join(filter(None, words.parts(cell))))
