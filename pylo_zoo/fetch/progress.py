"""A progress bar on stderr, if stderr is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRUE = ("1", "ON", "YES", "TRUE")
"""Values of an environment variable that huggingface_hub treats as true."""


def is_env_true(variable: str) -> bool:
    """Whether an environment variable has one of the values in :data:`TRUE`."""
    return os.environ.get(variable, "").upper() in TRUE


def is_bar_enabled(requested: bool) -> bool:
    """Whether to show a bar: it is requested, stderr is a terminal, and the environment does not disable it."""
    return requested and sys.stderr.isatty() and not is_env_true("HF_HUB_DISABLE_PROGRESS_BARS")


@contextmanager
def bar(name: str, show: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that updates the bar with (bytes so far, bytes in total). The bar is cleared at the end."""
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
