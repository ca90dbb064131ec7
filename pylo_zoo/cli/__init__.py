"""The command line. Each command has a module, which parses options, calls the library once and prints with `output`.

To add a command, write a module with one function and its examples, and add a line to `COMMANDS`. Import heavy modules
(torch, numpy, jax) inside the function: ``pylo-zoo --help`` must be fast.
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
from pylo_zoo.errors import MAX_WARNING, UsageError, ZooError, debugging, one_line, quoted

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
"""The function and the examples of each command."""

EXAMPLES = """
pylo-zoo list
pylo-zoo convert celo
pylo-zoo verify zoo/celo
pylo-zoo convert velo --source theta.state --out zoo/mine
"""

WRITING = ("convert", "export", "pull", "publish", "compare")
OUTPUTS = ("--out", "--html", "--markdown", "--junit")
"""Commands and options that write files."""
MAX_USAGE_ERROR = 400
"""Maximum length of a usage error in characters, without the option name that Typer prepends."""
CommandLineError: Any = typer.BadParameter.__mro__[1]  # click's class, or that of Typer's vendored copy


def _examples(lines: str) -> str:
    """The examples at the end of a help text; ``\\b`` prevents Typer from rewrapping them."""
    return "\b\nExamples:\n" + textwrap.indent(lines.strip(), "  ")


app = typer.Typer(
    name="pylo-zoo",
    no_args_is_help=True,
    rich_markup_mode=None,  # usage errors are a plain `Error:` line, like all others
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"pylo-zoo {__version__}")
        raise typer.Exit


@app.callback(epilog=_examples(EXAMPLES))
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Learned optimizers for PyTorch: convert JAX checkpoints, verify them, train with them."""


for _name, (_command, _lines) in COMMANDS.items():
    app.command(_name, epilog=_examples(_lines))(_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on ``argv`` (default: the process's arguments) and exit.

    Exit status: 0 success; 1 failure; 2 wrong usage, which is a command line that no file, download or machine can make
    valid, such as an unknown option or name or a value out of range; 130 Ctrl-C. ``PYLO_ZOO_DEBUG=1`` prints
    tracebacks.
    """
    for name in ("stdout", "stderr"):
        _open_stream(name)
        output.encode_anything(getattr(sys, name))
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {one_line(str(message), MAX_WARNING)}\n"
    status = _run(sys.argv[1:] if argv is None else argv)
    if status == output.INTERRUPTED:
        sys.stderr.flush()
        os._exit(status)  # a normal exit crashes if XLA's compiler threads are still running
    try:
        sys.stdout.flush()
    except OSError as error:
        # The reader (`| head`) closed the pipe, which needs no message, or the disk of `> file` is full.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
        status = 1 if isinstance(error, BrokenPipeError) else _fail_on_write(error)
    sys.exit(status)


def _open_stream(name: str) -> None:
    """Replace a standard stream that the caller closed with the null device."""
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for the process's lifetime)


def _fail_on_write(error: OSError) -> int:
    return _fail(f"The output cannot be written: {error.strerror}.", "Check where stdout is redirected.")


def _run(argv: Sequence[str]) -> int:
    try:
        _check_arguments(argv)
        status = app(args=argv, prog_name="pylo-zoo", standalone_mode=False)
        if status == output.INTERRUPTED:  # Typer catches Ctrl-C
            _note_interruption(argv)
        return status if isinstance(status, int) else 0
    except CommandLineError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # its message is the help text
            error.message = one_line(_describe(error), MAX_USAGE_ERROR)
        error.show()
        return error.exit_code
    except typer.Abort:
        return 1
    except SystemExit as stop:  # Typer reports success, wrong usage and `raise typer.Exit` with it
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        _note_interruption(argv)
        return output.INTERRUPTED
    except ZooError as error:
        return _fail(error.message, error.hint, status=2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        return 1
    except UnicodeEncodeError as error:
        return _fail(f"{quoted(error.object)} is not valid UTF-8.", "Rename the file or directory.")
    except OSError as error:
        place = "The output" if error.filename is None else str(error.filename)
        return _fail(
            f"{place} cannot be read or written: {error.strerror or error}.", "Check the path and its permissions."
        )
    except Exception as error:
        message = f"Unexpected {type(error).__name__}: {error}"
        return _fail(message, "This is a bug in pylo-zoo. Set PYLO_ZOO_DEBUG=1 to see the traceback.")


def _check_arguments(argv: Sequence[str]) -> None:
    """Reject empty arguments: an empty path would be the current directory, and no option has an empty value."""
    for before, word in zip(("", *argv), argv, strict=False):
        option, equals, value = word.partition("=")
        if not word or (option.startswith("--") and equals and not value):
            name = option or (before if before.startswith("-") else "")
            subject = f"The value of {name}" if name else _empty_argument(argv)
            raise UsageError(f"{subject} is empty.", "Fill it in or leave it out.")


def _empty_argument(argv: Sequence[str]) -> str:
    """The name of the empty positional argument, such as ``DIR_OR_NAME``."""
    root: Any = typer.main.get_command(app)
    if command := root.commands.get(argv[0]):
        context = command.context_class(command, ignore_unknown_options=True)
        values = command.make_parser(context).parse_args(list(argv[1:]))[0]
        for parameter in command.params:
            if parameter.param_type_name == "argument" and values.get(parameter.name) == "":
                return parameter.metavar or parameter.name.upper()
    return "An argument"


def _note_interruption(argv: Sequence[str]) -> None:
    writes = bool(argv) and (argv[0] in WRITING or any(word.startswith(OUTPUTS) for word in argv[1:]))
    print("Interrupted; nothing was left half-written." if writes else "Interrupted.", file=sys.stderr)


def _describe(error: Any) -> str:
    """The message of a usage error. Typer 0.29 quotes pydantic, which does not name the value."""
    from pylo_zoo.parsing import describe_problem

    problems: Any = getattr(error.__cause__, "errors", None)
    details: Any = problems() if callable(problems) else None
    return describe_problem(details[0]) if details else error.message


def _fail(message: str, hint: str, *, status: int = 1) -> int:
    """Print the exception being handled and return the exit status."""
    if debugging():
        traceback.print_exc()
    output.fail(message, hint)
    return status
