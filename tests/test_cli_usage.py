"""Mistakes on the command line: exit status 1 or 2, and errors that name the value and what was expected."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import Capture, refused, run
from trees import write_theta

from pylo_zoo import cli
from pylo_zoo.errors import UsageError, ZooError, quoted
from pylo_zoo.fetch import NotFound
from pylo_zoo.files import is_local
from pylo_zoo.parsing import describe_problem

TASK = ["quadratic", "--set", "size=4", "--steps", "1"]
TINY = ["--shapes", "tiny", "--steps", "3", "--no-memory"]
DRY = ["--repo-id", "ORG/NAME", "--dry-run"]


@pytest.fixture(autouse=True)
def in_a_directory_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_theta(tmp_path, "elo")
    Path("t.txt").write_text("text")
    Path("zoo").mkdir()


def usage_error(capsys: Capture, *words: object) -> str:
    """Run a command that must exit with status 2; return its last lines."""
    assert run(*words) == 2, words
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    return err


# --- exit status -------------------------------------------------------------------------------------------------

WRONG_USAGE: dict[str, Sequence[Sequence[str]]] = {
    "list": [["extra"], ["--nosuch"]],
    "info": [["cello"], ["random:cello"], ["hf://a b/c"], ["celo", "--max-bytes", "x"]],
    "inspect": [[], ["theta.state", "--max-bytes", "0"]],
    "convert": [
        ["cello"],
        ["random:velo"],
        ["t.txt"],
        ["org/name"],
        ["elo", "--source", "theta.state", "--set", "exp_mult"],
        ["elo", "--source", "theta.state", "--set", "exp_mult=[1"],
        ["elo", "--source", "theta.state", "--set", "nosuch=1"],
        ["elo", "--source", "theta.state", "--set", "exp_mult=text"],
        ["nosuch", "--source", "theta.state"],
        ["velo-sample", "--source", "theta.state"],
        ["elo", "--source", "theta.state", "--cast", "int8"],
    ],
    "export": [["zoo/x"], ["zoo/x", "--out", "y", "--max-bytes", "x"]],
    "verify": [
        ["cello"],
        ["random:cello"],
        [],
        ["velo-sample", "--replay"],
        ["random:velo", "--replay"],
        ["velo-sample", "--seed", "x"],
    ],
    "pull": [["cello"], ["a b/c"], ["org/name", "--revision", ".."], ["celo", "--revision", "v1"], ["random:velo"]],
    "publish": [
        ["zoo/x", "--repo-id", "noslash"],
        ["zoo/x", "--repo-id", "a/b@v1"],
        ["zoo/x", *DRY, "--tag", ".."],
        ["zoo/x", *DRY, "--registry", "r.yaml"],
    ],
    "train": [
        ["nosuch"],
        [*TASK, "--optimizer", "adamww"],
        [*TASK, "--optimizer", "adamw", "--weights", "celo"],
        [*TASK, "--set", "sise=3"],
        [*TASK, "--set", "condition=text"],
        ["quadratic", "--steps", "0"],
        [*TASK, "--seeds", "0"],
        [*TASK, "--lr", "-1"],
        [*TASK, "--lr", "nan"],
        [*TASK, "--schedule", "cosin"],
        [*TASK, "--device", "gpu"],
        ["os:nosuch"],
        ["no_such_module:task"],
    ],
    "compare": [
        ["nosuch"],
        [*TASK, "--optimizers", "adamw,adamww"],
        [*TASK, "--optimizers", "adamw,adamw"],
        [*TASK, "--optimizers", ","],
        [*TASK, "--optimizers", "adamw", "--tune", "sgd"],
        [*TASK, "--optimizers", "adamw", "--lr", "x"],
        [*TASK, "--optimizers", "adamw", "--lr", "adamw=0"],
        [*TASK, "--device", "gpu"],
        [*TASK, "--schedule", "cosin"],
    ],
    "bench": [
        [*TINY, "--optimizers", "adamww"],
        [*TINY, "--backends", "nosuch"],
        ["--shapes", "nosuch"],
        ["--shapes", "tiny", "--steps", "1"],
        [*TINY, "--seconds", "0"],
        [*TINY, "--dtype", "int8"],
        [*TINY, "--device", "gpu"],
    ],
}
FAILURES: dict[str, Sequence[Sequence[str]]] = {
    "info": [["zoo/nosuch"], ["t.txt"]],
    "inspect": [["nosuch"], ["t.txt"]],
    "convert": [["elo", "--source", "nosuch"], ["elo", "--source", "t.txt"]],
    "export": [["zoo/nosuch", "--out", "y"], ["t.txt", "--out", "y"]],
    "verify": [["zoo/nosuch"], ["t.txt"], ["zoo"], ["zoo/nosuch", "--replay"]],
    "pull": [["zoo/nosuch"], ["t.txt"]],
    "publish": [["zoo/nosuch", *DRY], ["t.txt", *DRY]],
    "train": [[*TASK, "--optimizer", "zoo/nosuch"], ["--resume", "nosuch"], [*TASK, "--out", "t.txt"]],
    "compare": [[*TASK, "--optimizers", "adamw,zoo/nosuch"], [*TASK, "--optimizers", "adamw", "--out", "t.txt"]],
    "bench": [[*TINY, "--optimizers", "zoo/nosuch"], ["--from", "nosuch"], ["--from", "t.txt"]],
}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_wrong_usage_has_status_2(command: str, capsys: Capture) -> None:
    for words in WRONG_USAGE[command]:
        usage_error(capsys, command, *words)


@pytest.mark.parametrize("command", FAILURES)
def test_missing_and_damaged_files_have_status_1(command: str, capsys: Capture) -> None:
    for words in FAILURES[command]:
        refused(capsys, command, *words)


def test_every_command_is_in_the_tables() -> None:
    assert WRONG_USAGE.keys() == cli.COMMANDS.keys()
    assert FAILURES.keys() == cli.COMMANDS.keys() - {"list"}


def test_a_damaged_artifact_is_a_failure(capsys: Capture) -> None:
    """Its family is unknown, as in a misspelled argument, but the file is wrong, not the command line."""
    assert run("convert", "velo-sample", "--no-verify", "-q") == 0
    capsys.readouterr()
    config = Path("zoo/velo-sample/config.json")
    config.write_text(config.read_text().replace('"family": "velo"', '"family": "vello"'))
    assert "config.json: Unknown family 'vello'" in refused(capsys, "info", "./zoo/velo-sample")


def test_a_usage_error_is_a_zoo_error() -> None:
    assert issubclass(UsageError, ZooError)


# --- paths and names ---------------------------------------------------------------------------------------------

PATH_COMMANDS: Sequence[Sequence[str]] = [
    ["info"],
    ["verify"],
    ["verify", "--replay"],
    ["pull"],
    ["export", "--out", "y"],
    ["publish", *DRY],
    ["train", *TASK, "--optimizer"],
    ["train", *TASK, "--optimizer", "velo", "--weights"],
    ["compare", *TASK, "--optimizers"],
    ["bench", *TINY, "--optimizers"],
]


@pytest.mark.parametrize("words", PATH_COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("zoo/nosuch", "zoo/nosuch does not exist"),
        ("./nosuch", "nosuch does not exist"),
        ("../nosuch/x", "nosuch/x does not exist"),
        ("~/nosuch", "~/nosuch does not exist"),
        ("nosuch/model.safetensors", "does not exist"),
        ("nosuch.pt", "nosuch.pt does not exist"),
        ("t.txt", "t.txt is a file, not an artifact's directory"),
        ("./t.txt", "t.txt is a file, not an artifact's directory"),
    ],
)
def test_a_path_is_never_a_hub_repository(words: Sequence[str], path: str, problem: str, capsys: Capture) -> None:
    error = refused(capsys, *words, path)
    assert problem in error
    assert "Hub" not in error
    assert "artifact's directory" in error


@pytest.mark.parametrize("command", ["info", "pull"])
def test_an_error_of_the_hub_says_that_the_name_was_taken_for_a_repository(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise NotFound("hf://org/nosuch: the repository org/nosuch does not exist or is private.", "Check the name.")

    monkeypatch.setattr("pylo_zoo.hub.pull", missing)
    error = refused(capsys, command, "org/nosuch")
    assert "org/nosuch is not a local directory, so it was taken for a repository on the Hub: hf://org/nosuch" in error
    assert "taken for" not in refused(capsys, command, "hf://org/nosuch")


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("org/name", False),
        ("celo", False),
        ("org/name-v1.0", False),
        ("zoo/name", True),
        ("t.txt", True),
        ("t.txt/x", False),
        ("a.STATE", True),
        ("/x", True),
    ],
)
def test_is_local(name: str, local: bool) -> None:
    assert is_local(name) == local


def test_a_registry_name_wins_over_a_file_with_that_name(capsys: Capture) -> None:
    Path("velo-sample").write_text("a file")
    assert run("info", "velo-sample") == 0
    assert run("convert", "velo-sample", "--no-verify", "-q") == 0
    assert run("train", *TASK, "--optimizer", "velo-sample", "-q") == 0
    capsys.readouterr()


def test_a_file_of_an_artifact(capsys: Capture) -> None:
    assert run("convert", "velo-sample", "--no-verify", "-q") == 0
    capsys.readouterr()
    for command in (["info"], ["verify"], ["pull"], ["export", "--out", "y"]):
        error = refused(capsys, *command, "zoo/velo-sample/model.safetensors")
        assert "is a file of an artifact" in error
        assert "Pass zoo/velo-sample." in error


@pytest.mark.parametrize("name", ["VELO-SAMPLE", "Velo_Sample", "velo-smple"])
@pytest.mark.parametrize("command", ["info", "convert", "verify", "pull"])
def test_suggestions_ignore_case(command: str, name: str, capsys: Capture) -> None:
    assert "Did you mean 'velo-sample'?" in usage_error(capsys, command, name)


def test_hints_about_random_weights_and_replay(capsys: Capture) -> None:
    assert "random weights" in usage_error(capsys, "convert", "random:velo")
    for name in ("velo-sample", "random:velo"):
        error = usage_error(capsys, "verify", name, "--replay")
        assert f"{name} has no stored vectors" in error
        assert "leave --replay out" in error


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", *TASK, "--seeds", "abc"], "'abc' is not a"),
        (["train", *TASK, "--seeds", "1.5"], "'1.5' is not a"),
        (["train", *TASK, "--seeds", "0"], "0 is "),
        (["train", *TASK, "--seeds", "99999999"], "99999999 is "),
        (["train", *TASK, "--lr", "abc"], "'abc' is not a"),
        (["verify", "velo-sample", "--max-error", "-1"], "-1"),
        (["convert", "velo", "--max-bytes", "x"], "'x' is not a"),
        (["convert", "velo", "--format", "ptt"], "'ptt' is not one of 'safetensors', 'pt'."),
    ],
)
def test_an_error_names_the_value(words: Sequence[str], sentence: str, capsys: Capture) -> None:
    error = usage_error(capsys, *words).splitlines()[-1]
    assert sentence in error
    for foreign in ("Input should", "unable to parse", "Value error", "pydantic"):
        assert foreign not in error


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        ({"type": "int_parsing", "input": "abc"}, "'abc' is not an integer."),
        ({"type": "int_from_float", "input": 1.5}, "1.5 is not an integer."),
        ({"type": "float_parsing", "input": "x"}, "'x' is not a number."),
        ({"type": "bool_type", "input": "x"}, "'x' is not true or false."),
        (
            {"type": "greater_than_equal", "input": "0", "ctx": {"ge": 1}},
            "0 is less than 1, the smallest allowed value.",
        ),
        ({"type": "less_than_equal", "input": 9, "ctx": {"le": 5}}, "9 is more than 5, the largest allowed value."),
        ({"type": "value_error", "input": "x", "ctx": {"error": ValueError("It is x.")}}, "It is x."),
        ({"type": "something_new", "input": "x"}, "'x' is not valid."),
        ({"type": "int_parsing", "input": "9" * 400}, f"{quoted('9' * 400)} is not an integer."),
    ],
)
def test_problems_of_pydantic_become_sentences(problem: dict[str, object], sentence: str) -> None:
    assert describe_problem(problem) == sentence


EMPTY: Sequence[Sequence[str]] = [
    ["info", ""],
    ["inspect", ""],
    ["convert", "elo", "--source", ""],
    ["convert", "elo", "--source="],
    ["convert", "elo", "--source", "theta.state", "--out", ""],
    ["convert", "elo", "--source", "theta.state", "--lock", ""],
    ["export", "", "--out", "y"],
    ["export", "zoo/x", "--out", ""],
    ["verify", ""],
    ["verify", "zoo/x", "--html", ""],
    ["pull", "zoo/x", "--out="],
    ["publish", "", *DRY],
    ["train", *TASK, "--out", ""],
    ["train", "--resume", ""],
    ["train", *TASK, "--weights", ""],
    ["compare", *TASK, "--out", ""],
    ["bench", *TINY, "--out", ""],
    ["bench", "--from", ""],
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_argument_is_refused(words: Sequence[str], capsys: Capture, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    error = usage_error(capsys, *words)
    assert " is empty." in error
    if words[-1] == "" or words[-1].endswith("="):
        option = words[-1] or words[-2]
        assert not option.startswith("--") or option.rstrip("=") in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["inspect"],
        ["convert", "elo", "--source"],
        ["bench", "--from"],
        ["verify"],
        ["export", "--out", "y"],
        ["train", "--resume"],
    ],
    ids=" ".join,
)
def test_an_unreadable_path_is_a_failure_with_a_hint(
    words: Sequence[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader reports it, not the command line's parser."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **how: False if mode == os.R_OK else real(path, mode, **how))
    monkeypatch.setattr(os, "open", unreadable(os.open))
    refused(capsys, *words, "theta.state")


def unreadable(real: Callable[..., int]) -> Callable[..., int]:
    """``os.open``, which cannot read theta.state."""

    def open_file(path: object, flags: int, *more: object, **how: object) -> int:
        if str(path).endswith("theta.state"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *more, **how)

    return open_file


# --- outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "compare"])
def test_an_output_that_is_a_file(command: str, capsys: Capture) -> None:
    error = refused(capsys, command, *TASK, "--out", "t.txt")
    assert "t.txt cannot be written: it is not a directory." in error
    assert "not empty" not in error


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["bench", "--from", "nosuch.json"], "nosuch.json does not exist."),
        (["train", "--resume", "nosuch"], "nosuch does not exist."),
        (["train", "--resume", "t.txt"], "t.txt is a file."),
        (["train", "--resume", "zoo"], "zoo contains no run."),
        (["bench", "--from", "zoo"], "zoo cannot be read: it is a directory"),
    ],
)
def test_missing_files_are_named_without_error_numbers(words: Sequence[str], problem: str, capsys: Capture) -> None:
    error = refused(capsys, *words)
    assert problem in error
    assert "Errno" not in error


def test_the_hint_of_a_failed_download_is_one_action(capsys: Capture) -> None:
    error = refused(capsys, "convert", "celo", "--offline")
    hint = error.splitlines()[1]
    assert hint.startswith("Hint: Download by hand https://")
    assert "Three ways" not in hint
    assert "pylo-zoo convert celo --source theta.state" in hint


def test_info_of_random_weights_shows_no_file(capsys: Capture) -> None:
    assert run("info", "random:velo") == 0
    out = capsys.readouterr().out
    assert "0000" not in out
    assert "sha256" not in out
    assert "random:velo" in out


def test_a_diverged_run_is_not_continued(capsys: Capture) -> None:
    assert run("train", "digits-mlp", "--optimizer", "sgd", "--lr", "1e9", "--steps", 9) == 1
    assert "To train longer" not in capsys.readouterr().out
    shutil.rmtree("runs")
    assert run("train", *TASK) == 0
    assert "To train longer" in capsys.readouterr().out


# --- counts ------------------------------------------------------------------------------------------------------


def test_one_is_singular_everywhere(capsys: Capture) -> None:
    size = ["quadratic", "--set", "size=1", "--steps", "1"]
    texts = []
    for words in (
        ["train", *size],
        ["train", "--resume", "runs/quadratic-adamw-seed0"],
        ["bench", "--optimizers", "adamw", *TINY],
        ["compare", *size, "--optimizers", "adamw", "--seeds", "1", "--tune", "none", "--no-memory", "--out", "c"],
    ):
        assert run(*words) == 0, words
        out, err = capsys.readouterr()
        texts.append(out + err)
    texts += [Path("c/report.md").read_text(), Path("c/report.html").read_text()]
    nouns = r"steps|runs|seeds|measurements|parameters|tensors|threads|cores|optimizers|trials|files"
    wrong = [match[0] for text in texts for match in re.finditer(rf"(?<![\d.,])1 ({nouns})\b", text)]
    assert wrong == []
    assert "1 measurement;" in texts[2]
    assert "1 run," in texts[3]
    assert "1 step" in texts[0]
