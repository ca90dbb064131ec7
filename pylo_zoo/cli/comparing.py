"""Terminal output of a comparison: progress while it runs, and the table of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pylo_zoo.cli import output
from pylo_zoo.cli.training import showing_progress
from pylo_zoo.errors import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pylo_zoo.experiments.compare.figures import RunRecord
    from pylo_zoo.experiments.compare.running import Monitor
    from pylo_zoo.experiments.train.loop import Run, Step

AFTER = "then memory and figures, a few seconds per optimizer"
AFTER_WITHOUT_MEMORY = "then figures"


@contextmanager
def monitoring(*, quiet: bool, memory: bool = True) -> Iterator[Monitor]:
    """A monitor that prints a line per finished run and, on a terminal, live progress during a run."""
    yield _TerminalMonitor(quiet, AFTER if memory else AFTER_WITHOUT_MEMORY)


class _TerminalMonitor:
    """A :class:`~pylo_zoo.experiments.compare.running.Monitor` that prints to stderr."""

    def __init__(self, quiet: bool, after: str) -> None:
        self.quiet, self.after = quiet, after
        self.left: dict[str, int] = {}
        self.paces: dict[str, float] = {}
        self.spent: dict[str, tuple[int, float]] = {}
        self.runs = self.finished = self.new_runs = 0
        self.training = False

    def expect(self, steps: dict[str, int], runs: int) -> None:
        for label, number in steps.items():
            self.left[label] = self.left.get(label, 0) + number
        self.runs += runs

    def pace(self, label: str, seconds: float) -> None:
        self.paces[label] = seconds

    @contextmanager
    def run(self, title: str, label: str, run: Run) -> Iterator[Callable[[Step], None]]:
        if not self.new_runs:
            done = f"{self.finished} of them already done, " if self.finished else ""
            output.note(f"{count(self.runs, 'run')}, {done}{self._time()}, {self.after}", quiet=self.quiet)
        self.new_runs += 1
        self.training = True
        start = time.monotonic()
        with showing_progress(run, quiet=self.quiet, title=f"{self.finished + 1}/{self.runs}  {title}") as on_step:
            yield on_step
        steps, seconds = self.spent.get(label, (0, 0.0))
        self.spent[label] = steps, seconds = steps + len(run.result.model_seconds), seconds + time.monotonic() - start
        self.paces[label] = seconds / max(steps, 1)
        self.left[label] = self.left.get(label, 0) - run.plan.steps

    def done(self, title: str, record: RunRecord) -> None:
        self.finished += 1
        if not self.training:
            return
        self.training = False
        if record.stopped:
            result = "diverged"
        else:
            last = record.losses[-max(1, len(record.losses) // 20) :]
            result = f"loss {sum(last) / len(last):.4g}"
        left = f", {self._time()}" if self.finished < self.runs else ""
        output.note(f"{self.finished}/{self.runs}  {title}: {result}{left}", quiet=self.quiet)

    def _time(self) -> str:
        """The estimated training time that is left, from the step time of each optimizer."""
        from pylo_zoo.experiments.compare import words

        seconds = sum(max(0, steps) * self.paces.get(label, 0.0) for label, steps in self.left.items())
        return f"about {words.duration(seconds)} of training left"


# --- the table ---------------------------------------------------------------------------------------------------

SHOWN = (0, 1, 2, 3, 4, 6, 10)
"""Columns of the report's table that fit on a terminal."""
MEASURING_WIDTH = 1000
"""Width at which a table is measured before it is fitted to the terminal."""


def table(results: Mapping[str, Any], console: Console) -> Table:
    """The table of results in the widest layout that fits on ``console`` without wrapping a cell.

    The layouts: a row per optimizer, a column per optimizer, or the optimizers stacked.
    """
    from pylo_zoo.experiments.compare import words

    titles = [words.head(results)[i] for i in SHOWN]
    rows = []
    for each in results["optimizers"]:
        row = words.row(each, results)
        if each["diverged"]:
            row[2] = f"diverged ({each['diverged']} of {len(each['runs'])})"
        rows.append([row[i] for i in SHOWN])
    head = [_in_two_lines(title) for title in titles]
    for layout in (_grid(head, *rows), _grid(*zip(titles, *rows, strict=True))):
        if console.measure(layout, options=console.options.update(width=MEASURING_WIDTH)).maximum <= console.width:
            return layout
    stack = _empty_table()
    stack.show_header = False
    for row in rows:
        stack.add_row(output.printable(row[0]), style="bold")
        for title, cell in zip(titles[1:], row[1:], strict=True):
            stack.add_row(f"  {output.printable(title)}", output.printable(cell))
    return stack


def _empty_table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _grid(head: Sequence[str], *rows: Sequence[str]) -> Table:
    """A table whose cells print the main text above the small text."""
    grid = _empty_table()
    for i, title in enumerate(head):
        grid.add_column(_stacked(title), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(_stacked, row))
    return grid


def _in_two_lines(title: str) -> str:
    """``title`` broken into two lines of similar length."""
    breaks = [i for i, character in enumerate(title) if character == " "]
    middle = min(breaks, key=lambda i: abs(2 * i + 1 - len(title)), default=len(title))
    return f"{title[:middle]}\n{title[middle + 1 :]}".rstrip()


def _stacked(cell: str) -> str:
    from pylo_zoo.experiments.compare import words

    return output.printable_lines("\n".join(filter(None, words.parts(cell))))
