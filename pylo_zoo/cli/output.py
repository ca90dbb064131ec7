"""The one place that prints: data on stdout, everything said about it on stderr. rich honours ``NO_COLOR``."""

from __future__ import annotations

import codecs
import json as json_format
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo import limits
from pylo_zoo.errors import one_line, printable

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
    bool, typer.Option("--update-lock", help="Fetch files without a known hash again, and record what they are now.")
]

Token = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="For the Hub.  [default: $HF_TOKEN, or what `hf auth login` stored]"),
]


MOST_STEPS = 10**9
MOST_SEEDS = 10_000
MOST_THREADS = 1_024
LARGEST_SEED = 2**62
"""Bounds of options that count: what is beyond them no run, generator or machine has."""


def finite(value: float | None) -> float | None:
    """Check an option that takes a number: a callback of Typer's."""
    from pylo_zoo.config import is_finite

    if value is not None and not is_finite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


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
    """Print one ``Error:`` and one ``Hint:`` line on stderr, of at most 500 characters each, whatever they quote."""
    for label, text in (("Error", message), ("Hint", hint)):
        print(f"{label}: {one_line(text)}", file=sys.stderr)


LIKENESSES = {
    **dict.fromkeys("–—−", "-"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("‘’", "'"),
    **{"…": "...", "×": "x", "→": "->", "∞": "inf", "μ": "u", "·": "*", "✕": "x", "√": "sqrt", "²": "^2"},
}
"""What replaces a character that the encoding of a terminal lacks; one without a likeness becomes ``?``."""
ERRORS = "pylo_zoo.likeness"
LOSSLESS = ("strict", "surrogateescape", "backslashreplace")
"""Error handlers that Python itself gives to stdout and stderr; another one is the user's choice (PYTHONIOENCODING)."""


def encode_anything(stream: Any) -> None:
    """Let ``stream`` replace characters that its encoding (ascii, latin-1, cp437, …) lacks, in place of an exception.

    Typer takes an ascii stream for a mistake and writes UTF-8 to it; under another name, it leaves the stream alone.
    """
    if not hasattr(stream, "reconfigure") or getattr(stream, "errors", None) not in LOSSLESS:
        return
    codecs.register_error(ERRORS, _likeness)
    codecs.register(_terminal_ascii)
    ascii_only = codecs.lookup(stream.encoding).name == "ascii"
    stream.reconfigure(encoding=TERMINAL_ASCII if ascii_only else stream.encoding, errors=ERRORS)


TERMINAL_ASCII = "pylo_zoo_ascii"


def _terminal_ascii(name: str) -> codecs.CodecInfo | None:
    """The codec ascii under the name :data:`TERMINAL_ASCII`, as :func:`codecs.register` asks for it."""
    if name != TERMINAL_ASCII:
        return None
    known = codecs.lookup("ascii")
    return codecs.CodecInfo(
        known.encode,
        known.decode,
        incrementalencoder=known.incrementalencoder,
        incrementaldecoder=known.incrementaldecoder,
        name=name,
    )


def _likeness(error: UnicodeError) -> tuple[str, int]:
    """The replacement for the characters that caused ``error``, as :func:`codecs.register_error` asks for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(map(_alike, signs)), error.end


def _alike(sign: str) -> str:
    if "\ud800" <= sign <= "\udfff":  # part of a file name that is not UTF-8
        return sign.encode("unicode_escape").decode()
    return LIKENESSES.get(sign, "?")


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
