"""The command line: one file a command, which parses, calls the library once and prints through `output`.

A new command is a module with one function, its examples, and one line in `COMMANDS`. Heavy modules (torch, numpy, jax)
are imported inside the function, so that ``pylo-zoo --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer

from pylo_zoo import __version__
from pylo_zoo.cli import (
    bench_cmd,
    compare_cmd,
    convert_cmd,
    export_cmd,
    info,
    inspect_cmd,
    list_cmd,
    output,
    publish_cmd,
    pull_cmd,
    train_cmd,
    verify_cmd,
)
from pylo_zoo.errors import ZooError, debugging, one_line, quoted

COMMANDS: Mapping[str, tuple[Callable[..., Any], str]] = {
    "list": (list_cmd.list_checkpoints, list_cmd.EXAMPLES),
    "info": (info.info, info.EXAMPLES),
    "inspect": (inspect_cmd.inspect, inspect_cmd.EXAMPLES),
    "convert": (convert_cmd.convert, convert_cmd.EXAMPLES),
    "export": (export_cmd.export, export_cmd.EXAMPLES),
    "verify": (verify_cmd.verify, verify_cmd.EXAMPLES),
    "pull": (pull_cmd.pull, pull_cmd.EXAMPLES),
    "publish": (publish_cmd.publish, publish_cmd.EXAMPLES),
    "train": (train_cmd.train, train_cmd.EXAMPLES),
    "compare": (compare_cmd.compare, compare_cmd.EXAMPLES),
    "bench": (bench_cmd.bench, bench_cmd.EXAMPLES),
}
"""Each command's function, and what to type, a line each."""

EXAMPLES = """
pylo-zoo list
pylo-zoo convert celo
pylo-zoo verify zoo/celo
pylo-zoo convert velo --source theta.state --out zoo/mine
"""

INTERRUPTED = 130
LONGEST_WARNING = 1_000
LONGEST_USAGE = 400
"""Characters of what Typer reports as wrong usage; it puts the option's name before that."""
UsageError: Any = typer.BadParameter.__mro__[1]  # of click, or of the copy of it that Typer has


def _examples(lines: str) -> str:
    """The end of a help text; ``\\b`` keeps Typer from filling the lines."""
    return "\b\nExamples:\n" + textwrap.indent(lines.strip(), "  ")


app = typer.Typer(
    name="pylo-zoo",
    no_args_is_help=True,
    rich_markup_mode=None,  # usage errors, too, are a plain `Error:` line
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pylo-zoo {__version__}")
        raise typer.Exit


@app.callback(epilog=_examples(EXAMPLES))
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Learned optimizers for PyTorch: JAX checkpoints in, proven torch weights out."""


for _name, (_command, _lines) in COMMANDS.items():
    app.command(_name, epilog=_examples(_lines))(_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on ``argv`` (by default the process's own) and exit with its status.

    0 is success, 1 failure, 2 wrong usage, 130 Ctrl-C. ``PYLO_ZOO_DEBUG=1`` adds the traceback of a failure.
    """
    for name in ("stdout", "stderr"):
        _open_stream(name)
        output.encode_anything(getattr(sys, name))
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {one_line(str(message), LONGEST_WARNING)}\n"
    status = _run(argv)
    if status == INTERRUPTED:
        print("Interrupted; nothing was left half-written.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(status)  # XLA's compiler threads, cut off in the middle, crash an orderly exit
    try:
        sys.stdout.flush()
    except OSError as error:
        # The reader (`| head`) has gone, which is no fault, or the disk of `> file` is full.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter's exit flushes once more
        status = 1 if isinstance(error, BrokenPipeError) else _unwritten(error)
    sys.exit(status)


def _open_stream(name: str) -> None:
    """Give the process a standard stream that its caller closed; what is said there, nobody wanted to hear."""
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for the process's lifetime)


def _unwritten(error: OSError) -> int:
    return _failed(f"The output cannot be written: {error.strerror}.", "Check the place that stdout leads to.")


def _run(argv: Sequence[str] | None) -> int:
    try:
        status = app(args=argv, prog_name="pylo-zoo", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # whose message is the help
            error.message = one_line(error.message, LONGEST_USAGE)
        error.show()
        return error.exit_code
    except typer.Abort:
        return 1
    except SystemExit as end:  # how Typer reports success, wrong usage and `raise typer.Exit`
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except ZooError as error:
        return _failed(error.message, error.hint)
    except BrokenPipeError:
        return 1
    except UnicodeEncodeError as error:
        return _failed(
            f"{quoted(error.object)} is not valid UTF-8.", "Rename the file or directory, or choose another one."
        )
    except OSError as error:
        place = "The output" if error.filename is None else str(error.filename)
        return _failed(
            f"{place} cannot be read or written: {error.strerror or error}.", "Check the path, and its permissions."
        )
    except Exception as error:
        what = f"Unexpected {type(error).__name__}: {error}"
        return _failed(what, "This is a bug in pylo-zoo. Set PYLO_ZOO_DEBUG=1 to see the traceback.")


def _failed(message: str, hint: str) -> int:
    """Report the exception being handled; the exit status."""
    if debugging():
        traceback.print_exc()
    output.fail(message, hint)
    return 1
