"""The command line: one file a command, which parses, calls the library once and prints through `output`.

A new command is a module with one function and one line in `COMMANDS`. Heavy modules (torch, numpy, jax) are imported
inside the function, so that ``pylo-zoo --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer

from pylo_zoo import __version__
from pylo_zoo.cli import convert_cmd, export_cmd, info, inspect_cmd, list_cmd, output, verify_cmd
from pylo_zoo.errors import ZooError

COMMANDS: Mapping[str, Callable[..., Any]] = {
    "list": list_cmd.list_checkpoints,
    "info": info.info,
    "inspect": inspect_cmd.inspect,
    "convert": convert_cmd.convert,
    "export": export_cmd.export,
    "verify": verify_cmd.verify,
}

INTERRUPTED = 130

app = typer.Typer(
    name="pylo-zoo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # usage errors, too, are a plain `Error:` line
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pylo-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Learned optimizers for PyTorch: JAX checkpoints in, proven torch weights out."""


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on ``argv`` (by default the process's own) and exit with its status.

    0 is success, 1 failure, 2 wrong usage, 130 Ctrl-C. ``PYLO_ZOO_DEBUG=1`` adds the traceback of a failure.
    """
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    status = _run(argv)
    if status == INTERRUPTED:
        print("Interrupted; nothing was left half-written.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(status)  # XLA's compiler threads, cut off in the middle, crash an orderly exit
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone: nobody is left to print to, at the interpreter's exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _run(argv: Sequence[str] | None) -> int:
    try:
        app(args=argv, prog_name="pylo-zoo")
    except SystemExit as end:  # how Typer reports success, wrong usage and `raise typer.Exit`
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except ZooError as error:
        return _failed(error.message, error.hint)
    except Exception as error:
        what = f"Unexpected {type(error).__name__}: {error}"
        return _failed(what, "This is a bug in pylo-zoo. Set PYLO_ZOO_DEBUG=1 to see the traceback.")
    return 0


def _failed(message: str, hint: str) -> int:
    """Report the exception being handled; the exit status."""
    if os.environ.get("PYLO_ZOO_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    output.fail(message, hint)
    return 1
