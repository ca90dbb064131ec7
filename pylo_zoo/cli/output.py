"""All printing of the command line: results on stdout, messages on stderr. rich honors ``NO_COLOR``."""

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
from pylo_zoo.errors import ZooError, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pylo_zoo.fetch import Access

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the essential result.")]

Offline = Annotated[
    bool, typer.Option("--offline", help="Use only cached files. HF_HUB_OFFLINE=1 has the same effect.")
]
# Every path option has readable=False: the reader of the file reports a missing permission, with a hint and status 1.
Lock = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Lock file that records hashes.  [default: ./zoo.lock if it exists, else in the cache]",
        readable=False,
    ),
]
UpdateLock = Annotated[
    bool,
    typer.Option("--update-lock", help="Download files without a known hash again and record their new hashes."),
]

Token = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="Hub token.  [default: $HF_TOKEN, or the one stored by `hf auth login`]"),
]


MAX_STEPS = 10**9
MAX_SEEDS = 10_000
MAX_THREADS = 1_024
MAX_SEED = 2**62
"""Upper bounds of numeric options."""


def finite(value: float | None) -> float | None:
    """Reject a non-finite option value; a Typer callback."""
    from pylo_zoo.parsing import is_finite

    if value is not None and not is_finite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def _limit(context: typer.Context, value: int | None) -> int | None:
    """Apply ``--max-bytes`` while the command runs."""
    context.with_resource(limits.allow(value))
    return value


MaxBytes = Annotated[
    int | None,
    typer.Option(
        "--max-bytes",
        metavar="N",
        min=1,
        callback=_limit,
        help="Size limit for checkpoints and weights.  [default: $PYLO_ZOO_MAX_BYTES or 67108864]",
    ),
]
"""A command only declares this option; the callback applies it."""


def access(
    *,
    offline: bool = False,
    lock: Path | None = None,
    update_lock: bool = False,
    quiet: bool = False,
    token: str | None = None,
) -> Access:
    """The access settings of a command. Notes and progress go to stderr, unless ``quiet``."""
    from pylo_zoo.fetch import Access

    return Access(
        progress=not quiet,
        offline=offline,
        lock=lock,
        update_lock=update_lock,
        notify=lambda message: note(message, quiet=quiet),
        token=token,
    )


def emit(data: Mapping[str, Any], human: RenderableType | Callable[[Console], None], *, json: bool) -> None:
    """Print the result of a command.

    Args:
        data: the result as a JSON object.
        human: the result for a person: a rich renderable, or a function that prints to a console.
        json: whether to print ``data`` instead of ``human``.
    """
    if json:
        print(json_format.dumps(data, indent=2, allow_nan=False))
    elif callable(human):
        human(_console())
    else:
        _console().print(human, soft_wrap=isinstance(human, str))  # a path stays one line


@contextmanager
def progress(*, quiet: bool, every: float | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback ``(what, done, total)``, which draws a bar on stderr if that is a terminal.

    The bar appears with the first part and disappears after the last one. If stderr is not a terminal, the callback
    prints a line every ``every`` seconds, or nothing if ``every`` is None.
    """
    if quiet or not sys.stderr.isatty():
        yield _ignore if quiet or every is None else _line_printer(every)
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


def _ignore(what: str, done: int, total: int) -> None:
    pass


def _line_printer(every: float) -> Callable[[str, int, int], None]:
    """A progress callback that prints at most one line per ``every`` seconds."""
    printed_at = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal printed_at
        if done < total and time.monotonic() - printed_at >= every:
            printed_at = time.monotonic()
            note(f"{done} of {total} done; {what} …")

    return show


def note(message: str, *, quiet: bool = False) -> None:
    """Print a message on stderr, unless ``quiet``."""
    if not quiet:
        print(printable(message), file=sys.stderr)


def fail(message: str, hint: str) -> None:
    """Print an ``Error:`` and a ``Hint:`` line on stderr, each at most 500 characters long."""
    for label, text in (("Error", message), ("Hint", hint)):
        print(f"{label}: {one_line(text)}", file=sys.stderr)


REPLACEMENTS = {
    **dict.fromkeys("–—−", "-"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("‘’", "'"),
    **{"…": "...", "×": "x", "→": "->", "∞": "inf", "μ": "u", "·": "*", "✕": "x", "√": "sqrt", "²": "^2"},
}
"""Replacements for characters that the terminal's encoding lacks; other characters become ``?``."""
ERRORS = "pylo_zoo.replace"
LOSSLESS = ("strict", "surrogateescape", "backslashreplace")
"""Python's default error handlers of stdout and stderr; any other is the user's choice (PYTHONIOENCODING)."""


def encode_anything(stream: Any) -> None:
    """Make ``stream`` replace characters that its encoding (ascii, latin-1, cp437, …) lacks instead of raising.

    Typer writes UTF-8 to a stream whose encoding is called ascii, so an ascii stream gets the same codec under another
    name.
    """
    if not hasattr(stream, "reconfigure") or getattr(stream, "errors", None) not in LOSSLESS:
        return
    codecs.register_error(ERRORS, _replace_unencodable)
    codecs.register(_terminal_ascii)
    ascii_only = codecs.lookup(stream.encoding).name == "ascii"
    stream.reconfigure(encoding=TERMINAL_ASCII if ascii_only else stream.encoding, errors=ERRORS)


TERMINAL_ASCII = "pylo_zoo_ascii"


def _terminal_ascii(name: str) -> codecs.CodecInfo | None:
    """A search function for :func:`codecs.register`: the ascii codec under the name :data:`TERMINAL_ASCII`."""
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


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """An error handler for :func:`codecs.register_error`: a replacement for the characters that caused ``error``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(map(_replacement, characters)), error.end


def _replacement(character: str) -> str:
    if "\ud800" <= character <= "\udfff":  # part of a file name that is not UTF-8
        return character.encode("unicode_escape").decode()
    return REPLACEMENTS.get(character, "?")


def printable_lines(text: str) -> str:
    """:func:`printable` applied to each line."""
    return "\n".join(map(printable, text.splitlines()))


def size(count: int | None) -> str:
    """A file size such as ``9.28 MB``, or ``?`` if it is unknown."""
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


@contextmanager
def naming_option(option: str) -> Iterator[None]:
    """Let a hint of the block about unavailable weights name the command's ``option``, not Python's ``weights=``."""
    try:
        yield
    except ZooError as error:
        from pylo_zoo.weights import USE

        error.hint = error.hint.replace(USE, f"{option} DIR")
        raise
