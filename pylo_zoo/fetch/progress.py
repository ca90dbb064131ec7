"""A bar on stderr, where somebody is looking."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRUE = ("1", "ON", "YES", "TRUE")
"""What huggingface_hub takes for yes in an environment variable."""


def switched_on(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").upper() in TRUE


def wanted(asked: bool) -> bool:
    """Whether to show a bar: somebody asked, stderr is a terminal, and the environment does not forbid it."""
    return asked and sys.stderr.isatty() and not switched_on("HF_HUB_DISABLE_PROGRESS_BARS")


@contextmanager
def bar(name: str, show: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A function to tell the bytes so far and the bytes in all; the bar disappears with the block."""
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
