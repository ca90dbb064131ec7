"""What the command line reads and prints: completion, examples, misspellings, narrow terminals, untrusted names."""

from __future__ import annotations

import json
import math
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from commands import Capture, passing, refused, run
from trees import encode, nested, theta, write_theta

from pylo_zoo import cli, weights
from pylo_zoo.cli import output
from pylo_zoo.converters import FAMILIES
from pylo_zoo.fetch import Unavailable
from pylo_zoo.registry import load_registry

MAIN = "from pylo_zoo.cli import main; main()"
ESCAPE, NEWLINE, MARKUP, BIDI = "e\x1b[31mvil", "two\nlines", "[red]x[bold]", "a\u202eb"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def program(*argv: str, code: str = MAIN, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process."""
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True, check=False)


# --- completion --------------------------------------------------------------------------------------------------


def test_completion_prints_a_shell_script() -> None:
    done = program(_PYLO_ZOO_COMPLETE="source_bash")
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _pylo_zoo_completion pylo-zoo" in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pylo-zoo con", ["convert"]),
        ("pylo-zoo convert ve", [name for name in load_registry() if name.startswith("ve")]),
        ("pylo-zoo convert adafac-m", ["adafac-mlp"]),
        ("pylo-zoo info celo2", [name for name in load_registry() if name.startswith("celo2")]),
        ("pylo-zoo verify velo-sam", ["velo-sample"]),
        ("pylo-zoo convert velo --format ", ["safetensors", "pt"]),
        ("pylo-zoo convert --no-v", ["--no-verify"]),
    ],
)
def test_tab_completes(typed: str, offered: list[str]) -> None:
    code = f"import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {MAIN}"
    words = str(typed.count(" "))
    done = program(code=code, _PYLO_ZOO_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=words)
    assert done.returncode == 0, done.stderr
    assert "typer" in done.stderr.split()
    assert not {"torch", "jax", "rich"} & set(done.stderr.split())
    assert done.stdout.split() == offered


def test_families_are_completed_too() -> None:
    from pylo_zoo.cli import complete

    assert set(complete.names_or_families("")) == {*load_registry(), *FAMILIES}
    assert complete.names_or_families("nothing") == []


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], *([name] for name in cli.COMMANDS)])
def test_help_fits_80_columns(words: list[str], capsys: Capture) -> None:
    assert run(*words, "--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert "\b" not in out
    assert "..." not in out.replace("[ARGS]...", ""), "nothing is truncated"
    _, _, examples = out.partition("Examples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    assert all(line.startswith(" ".join(["pylo-zoo", *words])) for line in lines), (
        "one line per example, without reflowing"
    )


@pytest.mark.parametrize("name", ["info", "verify", "train", "compare", "bench"])
def test_help_names_random_weights(name: str, capsys: Capture) -> None:
    assert run(name, "--help") == 0
    assert "random:FAMILY" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_are_commands_that_parse(name: str) -> None:
    for line in cli.COMMANDS[name][1].strip().splitlines():
        program_name, command, *arguments = shlex.split(line)
        assert (program_name, command) == ("pylo-zoo", name)
        assert run(command, *arguments, "-h") == 0, line  # an unknown option, or one without its value, exits with 2


# --- misspellings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["convrt"], "Did you mean 'convert'?"),
        (["lst"], "Did you mean 'list'?"),
        (["convert", "velo", "--sorce", "x"], "--source"),
        (["convert", "velo", "--format", "ptt"], "pt"),
        (["export", "zoo/x"], "--out"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_suggestion(words: list[str], suggestion: str, capsys: Capture) -> None:
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert suggestion in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["info", "cello"], "'celo'"),
        (["convert", "velo-smple"], "'velo-sample'"),
        (["verify", "velo-smple"], "'velo-sample'"),
        (["convert", "adafac-mpl", "--source", "theta.state"], "'adafac-mlp'"),
        (["convert", "elo", "--source", "theta.state", "--set", "exp_mlt=1"], "'exp_mult'"),
    ],
)
def test_misspelled_names_get_a_suggestion(words: list[str], suggestion: str, capsys: Capture, tmp_path: Path) -> None:
    write_theta(tmp_path, "elo")
    assert f"Did you mean {suggestion}?" in refused(capsys, *words, status=2)


# --- narrow terminals ----------------------------------------------------------------------------------------------


def test_a_narrow_list_has_whole_names(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "size"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [entry.name, entry.family] for entry in load_registry().values()
    ]
    assert max(map(len, lines)) <= 50


@pytest.mark.parametrize("columns", ["20", "50"])
def test_narrow_info_and_inspect_cut_nothing(
    columns: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_theta(tmp_path, "velo")
    assert run("inspect", path, "--json") == 0
    output = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("COLUMNS", columns)
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    for word in [output["sha256"], *(leaf["path"] for leaf in output["leaves"])]:
        assert word in out
    assert run("info", "velo") == 0
    assert "…" not in out + capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("celo", "https://huggingface.co/amoudgl/celo/resolve/main/theta.state"),
        ("velo", "https://storage.googleapis.com/gresearch/learned_optimization/pretrained_lopts/"),
    ],
)
def test_info_prints_addresses_on_one_line(
    name: str, address: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert run("info", name) == 0
    assert f"  url     {address}" in capsys.readouterr().out
    assert run("info", name, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["url"].startswith(address)
    assert run("info", "velo-sample") == 0
    assert "https://" not in capsys.readouterr().out.partition("Source")[2]


# --- untrusted names -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the file system forbids such names")
@pytest.mark.parametrize("name", [ESCAPE, NEWLINE, MARKUP, BIDI, "caf\udce9"], ids=ascii)
def test_escapes_in_file_names_are_neutralized(name: str, capsys: Capture, tmp_path: Path) -> None:
    write_theta(tmp_path, "elo").rename(name)
    assert run("inspect", name) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == output.printable(name)
    assert run("convert", "elo", "--source", name, "--no-verify", "--out", name + ".d") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == output.printable(name + ".d")
    assert run("export", name + ".d", "--out", name + ".e") == 0
    exported = capsys.readouterr().out
    assert len(exported.splitlines()) == 2
    Path(name).write_bytes(b"x")
    error = refused(capsys, "inspect", name)
    for text in (out, err, shown.out, shown.err, exported, error):
        assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert (MARKUP in out) == (name == MARKUP)


@pytest.mark.parametrize("name", [MARKUP, "[/]", ":smile:", "x" * 200])
def test_leaf_names_are_shown_as_they_are(name: str, capsys: Capture) -> None:
    leaves = {**theta("elo"), ("nn", name): np.zeros(2, np.float32)}
    Path("theta.state").write_bytes(encode(nested(leaves)))
    assert run("inspect", "theta.state") == 0
    out = capsys.readouterr().out
    assert f"  nn/{name}  " in out
    assert name in refused(capsys, "convert", "elo", "--source", "theta.state")


@pytest.mark.parametrize("name", [ESCAPE, NEWLINE, BIDI])
def test_leaf_names_with_terminal_escapes_are_refused(name: str, capsys: Capture) -> None:
    Path("theta.state").write_bytes(encode({name: np.zeros(2, np.float32)}))
    Path("theta.pickle").write_bytes(pickle.dumps({name: np.zeros(2, np.float32)}))
    np.savez("theta.npz", **{name: np.zeros(2, np.float32)})  # pyright: ignore[reportArgumentType]
    for file in ("theta.state", "theta.pickle", "theta.npz"):
        error = refused(capsys, "inspect", file)
        assert all(sign.isprintable() or sign == "\n" for sign in error)


def test_printable() -> None:
    assert output.printable("a\x1b\n\r\tb é ×") == "a\\x1b\\n\\r\\tb é ×"
    assert output.printable("\u202e\udce9\x9b") == "\\u202e\\udce9\\x9b"


# --- files that are almost right -----------------------------------------------------------------------------------


def test_trailing_bytes_are_named_in_the_error(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    path.write_bytes(path.read_bytes() + b"\0" * 1234)
    error = refused(capsys, "convert", "elo", "--source", path)
    assert "after its flax msgpack data" in error
    assert "1,234 bytes" in error
    assert "complete flax" not in error


@pytest.mark.parametrize("family", ["celo", "velo", "mulo"])
def test_a_nan_error_names_the_flag(family: str, capsys: Capture) -> None:
    leaves = theta(family)
    next(iter(leaves.values())).flat[0] = math.nan
    Path("theta.state").write_bytes(encode(nested(leaves)))
    error = refused(capsys, "convert", family, "--source", "theta.state", "--no-verify")
    assert "--allow-nonfinite" in error
    assert "leaves fit" not in error


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the shell lacks these redirections")
@pytest.mark.parametrize(
    ("redirection", "words", "status", "message"),
    [
        ("<&-", ["convert", "velo-sample", "--no-verify", "-q"], 0, ""),
        (">&-", ["convert", "velo-sample", "--no-verify", "-q"], 0, ""),
        (">&-", ["list", "--json"], 0, ""),
        (">&-", ["info", "cello"], 2, "Error: Unknown checkpoint"),
        ("2>&-", ["info", "cello"], 2, ""),
        ("2>&-", ["convrt"], 2, ""),
        (">/dev/full", ["list"], 1, "Error: The output cannot be"),
        (">/dev/full", ["info", "celo", "--json"], 1, "Error: The output cannot be"),
    ],
)
def test_streams_that_are_closed_or_full(redirection: str, words: list[str], status: int, message: str) -> None:
    if redirection == ">/dev/full" and not Path("/dev/full").exists():
        pytest.skip("/dev/full does not exist")
    script = f'exec "$@" {redirection}'
    command = ["bash", "-c", script, "bash", sys.executable, "-c", MAIN, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == (2 if message else 0)


def test_json_is_whole_or_absent(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passing(monkeypatch)
    path = write_theta(tmp_path, "elo")
    commands = {
        "list": ([], ["--nonsense"]),
        "info": (["celo"], ["cello"]),
        "inspect": ([path], ["nothing"]),
        "convert": (["elo", "--source", path, "--no-verify", "-q"], ["elo", "--source", "nothing"]),
        "export": (["zoo/elo", "--out", "x"], ["nothing", "--out", "y"]),
        "verify": (["zoo/elo", "-q"], ["nothing"]),
        "pull": (["./zoo/elo"], ["nothing"]),
        "publish": (
            ["zoo/elo", "--repo-id", "a/b", "--license", "MIT", "--allow-unverified", "--dry-run", "-q"],
            ["x"],
        ),
        "train": (
            ["quadratic", "--steps", "1", "-q"],
            ["nothing"],
        ),
        "bench": (
            ["--optimizers", "adamw", "--shapes", "tiny", "--steps", "3", "--no-memory", "-q"],
            ["--shapes", "nothing"],
        ),
        "compare": (
            ["quadratic", "--steps", "2", "--set", "size=4", "--optimizers", "adamw", "--seeds", "1", "-q"],
            ["nothing"],
        ),
    }
    assert commands.keys() == cli.COMMANDS.keys()
    for name, (right, wrong) in commands.items():
        assert run(name, *right, "--json") == 0, name
        out, err = capsys.readouterr()
        assert isinstance(json.loads(out), dict)
        assert err == ""
        assert run(name, *wrong, "--json") in (1, 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert err != ""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("verify", ""), "DIR_OR_NAME"),
        (("train", "--steps", "3", ""), "TASK"),
        (("inspect", ""), "FILE"),
        (("export", "", "--out", "x"), "DIR"),
        (("convert", "celo", "--source", ""), "The value of --source"),
    ],
)
def test_an_empty_argument_is_named(words: tuple[str, ...], name: str, capsys: Capture) -> None:
    assert refused(capsys, *words, status=2).startswith(f"Error: {name} is empty.")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("--optimizer", "velo"), "--optimizer DIR"),
        (("--optimizer", "velo", "--weights", "velo"), "--weights DIR"),
    ],
)
def test_the_hint_for_unavailable_weights_names_the_option(
    words: tuple[str, ...], option: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> NoReturn:
        raise Unavailable("no network.", "Try again later.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "_find", unavailable)
    assert run("train", "digits-mlp", *words, "--steps", 1) == 1
    assert f"copy DIR here and use {option}." in capsys.readouterr().err
