"""The one place that prints: data on stdout, everything said about it on stderr. rich honours ``NO_COLOR``."""

from __future__ import annotations

import json as json_format
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo import limits

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pylo_zoo.fetch import Access

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the essential only.")]

Offline = Annotated[bool, typer.Option("--offline", help="Use cached files alone, as HF_HUB_OFFLINE=1 does.")]
Lock = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where hashes are recorded.  [default: ./zoo.lock if it exists, or the cache's]"),
]
UpdateLock = Annotated[
    bool, typer.Option("--update-lock", help="Fetch files without a known hash anew, and record what they are now.")
]

Token = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="For the Hub.  [default: $HF_TOKEN, or what `hf auth login` stored]"),
]


def _limit(context: typer.Context, value: int | None) -> int | None:
    """Apply --max-bytes while the command runs."""
    context.with_resource(limits.allow(value))
    return value


MaxBytes = Annotated[
    int | None,
    typer.Option(
        "--max-bytes",
        metavar="N",
        min=1,
        callback=_limit,
        help="Largest checkpoint or weights that are read.  [default: $PYLO_ZOO_MAX_BYTES or 67108864]",
    ),
]
"""The callback does the work; a command only declares the option."""


def access(
    *,
    offline: bool = False,
    lock: Path | None = None,
    update_lock: bool = False,
    quiet: bool = False,
    token: str | None = None,
) -> Access:
    """How a command fetches files, from its options: notes and progress on stderr, none of them with -q."""
    from pylo_zoo.fetch import Access

    return Access(
        progress=not quiet,
        offline=offline,
        lock=lock,
        update_lock=update_lock,
        say=lambda message: note(message, quiet=quiet),
        token=token,
    )


def emit(data: Mapping[str, Any], human: RenderableType | Callable[[Console], None], *, json: bool) -> None:
    """Print the result of a command.

    Args:
        data: the result, as JSON holds it, in the order it should be read.
        human: the same for a person: something that rich prints, or a function that prints on the console it gets.
        json: whether ``data`` is wanted.
    """
    if json:
        print(json_format.dumps(data, indent=2, allow_nan=False))
    elif callable(human):
        human(_console())
    else:
        _console().print(human, soft_wrap=isinstance(human, str))  # a path stays one line


@contextmanager
def progress(*, quiet: bool, every: float | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A function to tell what is being done, and how many parts of how many are; a bar, where somebody is looking.

    The bar is there from the first part to the last, so that others may have the terminal before and after. Elsewhere
    there is a plain line every so many seconds, if ``every`` says how many.
    """
    if quiet or not sys.stderr.isatty():
        yield _silent if quiet or every is None else _plainly(every)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    bar = Progress(*columns, text, console=Console(stderr=True, highlight=False), transient=True)

    def show(what: str, done: int, total: int) -> None:
        if done == 0:
            bar.add_task("")
            bar.start()
        bar.update(bar.task_ids[-1], description=printable(what), completed=done, total=total)
        if done == total:
            bar.stop()
            bar.remove_task(bar.task_ids[-1])

    try:
        yield show
    finally:
        bar.stop()


def _silent(what: str, done: int, total: int) -> None:
    """Nothing."""


def _plainly(every: float) -> Callable[[str, int, int], None]:
    """What prints a line when the last one is ``every`` seconds old."""
    said = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal said
        if done < total and time.monotonic() - said >= every:
            said = time.monotonic()
            note(f"{done} of {total} done; {what} …")

    return show


def note(message: str, *, quiet: bool = False) -> None:
    """Say something about the result, on stderr."""
    if not quiet:
        print(printable(message), file=sys.stderr)


def fail(message: str, hint: str) -> None:
    """One ``Error:`` and one ``Hint:`` line on stderr, whatever the texts contain."""
    for label, text in (("Error", message), ("Hint", hint)):
        print(f"{label}: {printable(' '.join(text.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """``text`` in one line, with whatever a terminal would act upon escaped, as in ``\\x1b[31m``.

    File names and leaf names are others' words.
    """
    escaped = (sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return "".join(escaped)


def printable_lines(text: str) -> str:
    """As :func:`printable`, line by line."""
    return "\n".join(map(printable, text.splitlines()))


def size(count: int | None) -> str:
    """A file size for people: ``9.28 MB``, or ``?`` where it is unknown."""
    if count is None:
        return "?"
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
