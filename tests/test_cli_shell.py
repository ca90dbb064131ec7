"""The command line's conventions: help, versions, exit codes, errors, and the commands that only read the registry."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
from typer.testing import CliRunner

import pylo_zoo
from pylo_zoo import cli, pipeline, registry
from pylo_zoo.cli import output
from pylo_zoo.errors import ZooError

NAMES = list(registry.load_registry())


def run(*argv: str) -> str:
    """The stdout of a successful command."""
    result = CliRunner().invoke(cli.app, argv)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def status_of(*argv: str) -> int:
    """Run the command line with error formatting; return its exit status."""
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `list` and `info` raise."""

    def plant(error: BaseException) -> None:
        def fail(path: object = None) -> None:
            raise error

        monkeypatch.setattr(registry, "load_registry", fail)

    return plant


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str) -> None:
    text = run(flag)
    for command in cli.COMMANDS:
        assert f"  {command} " in text
        assert run(command, flag).startswith("Usage: ")


def test_version() -> None:
    assert run("--version") == f"pylo-zoo {pylo_zoo.__version__}\n"


def test_list_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("list").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["name", "family", "size", "license", "trained", "from"]
    assert len(lines) == 1 + len(NAMES), "one line per entry, nothing wrapped"
    assert "…" not in "".join(lines)
    celo = next(line for line in lines if line.startswith("celo "))
    assert celo.split() == ["celo", "celo", "149", "kB", "MIT", "yes", "amoudgl"]


def test_list_quiet_prints_names() -> None:
    assert run("list", "-q").split() == NAMES


def test_list_as_json() -> None:
    checkpoints = json.loads(run("list", "--json"))["checkpoints"]
    assert [each["name"] for each in checkpoints] == NAMES
    celo = next(each for each in checkpoints if each["name"] == "celo")
    assert (celo["bytes"], celo["license"], celo["sources"]) == (149_216, "MIT", ["hf://amoudgl/celo/theta.state"])


@pytest.mark.parametrize("name", NAMES)
def test_info(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = json.loads(run("info", name, "--json"))
    entry = registry.get(name)
    assert data["name"] == name
    assert data["defaults"] == entry.defaults
    assert len(data["usage"]) == 3
    text = run("info", name)
    for source in data["sources"]:
        assert source["uri"] in text, "never broken over two lines, so it can be copied"
    for line in data["usage"]:
        assert f"  {line}\n" in text


def test_info_shows_how_to_convert() -> None:
    usage = json.loads(run("info", "velo-s", "--json"))["usage"]
    assert usage == [
        "pylo-zoo convert velo-s --out zoo/velo-s",
        "from pylo_zoo.optim import VeLO, param_groups",
        'opt = VeLO(param_groups(model), num_steps=10_000, weights="zoo/velo-s")',
    ]
    base = json.loads(run("info", "celo2-base", "--json"))["usage"]
    assert base[-1] == 'opt = CELO2(param_groups(model, learned="*"), weights="zoo/celo2-base")'
    assert json.loads(run("info", "velo-sample", "--json"))["usage"][0] == (
        "pylo-zoo convert velo-sample --out zoo/velo-sample"
    )


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["info"], "Missing argument"),
        (["list", "--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_bad_input_is_one_error_and_one_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("info", "cello") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Error: Unknown checkpoint 'cello'.",
        "Hint: Did you mean 'celo'? `pylo-zoo list` shows all names.",
    ]


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (ZooError("Two\nlines.", "Do\nthis."), "Error: Two lines."),
        (RuntimeError("boom"), "Error: Unexpected RuntimeError: boom"),
    ],
)
def test_tracebacks_appear_only_when_debugging(
    error: Exception,
    first: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(error)
    monkeypatch.delenv("PYLO_ZOO_DEBUG", raising=False)
    assert status_of("list") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == first
    assert [line.partition(":")[0] for line in lines] == ["Error", "Hint"]
    monkeypatch.setenv("PYLO_ZOO_DEBUG", "1")
    assert status_of("list") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(KeyboardInterrupt())
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert status_of("list") == 130
    err = capsys.readouterr().err
    assert err == "Interrupted.\n", "list writes nothing"


def test_ctrl_c_of_a_command_that_writes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(pipeline, "build_artifact", interrupt)
    assert status_of("convert", "celo") == 130
    assert capsys.readouterr().err == "Interrupted; nothing was left half-written.\n"


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from pylo_zoo.cli import main; main(['list', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_help_imports_nothing_heavy() -> None:
    """The command line starts without torch, JAX and the Hub's client, which take seconds to import."""
    code = """
import atexit, sys
heavy = {"torch", "jax", "flax", "huggingface_hub", "numpy", "safetensors", "matplotlib"}
atexit.register(lambda: print("imported:", sorted(heavy & sys.modules.keys())))
from pylo_zoo.cli import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize(("force", "colored"), [("NO_COLOR", False), ("FORCE_COLOR", True)])
def test_no_color(force: str, colored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(force, "1")
    assert ("\x1b[" in run("list")) == colored


@pytest.mark.parametrize(
    ("count", "text"), [(None, "?"), (0, "0 B"), (999, "999 B"), (10_096, "10.1 kB"), (9_282_564, "9.28 MB")]
)
def test_size(count: int | None, text: str) -> None:
    assert output.size(count) == text


def test_notices_go_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    output.note("said")
    output.note("unsaid", quiet=True)
    assert err.getvalue() == "said\n"
