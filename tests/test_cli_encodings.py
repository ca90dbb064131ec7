"""Terminals that are not UTF-8: every command prints all of its output, with replacements for missing characters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import passing
from trees import write_theta

from pylo_zoo import cli
from pylo_zoo.cli import output
from pylo_zoo.experiments.compare import memory, report

ENCODINGS = ("ascii", "latin-1", "cp437", "utf-8")
OUT = ["--out", "out", "--force"]
SHORT, FEW = ["--steps", "4", "--set", "size=4"], ["--steps", "3", "--seconds", "9"]
COMMANDS = {
    "list": ["list"],
    "info": ["info", "celo2"],
    "inspect": ["inspect", "θ.state"],
    "convert": ["convert", "celo2", "--source", "θ.state", *OUT],
    "export": ["export", "made", "--out", "wieder-θ.state", "--force"],
    "verify": ["verify", "made"],
    "pull": ["pull", "made", *OUT],
    "publish": ["publish", "made", "--repo-id", "ORG/μ", "--dry-run", "--license", "MIT", "--allow-unverified"],
    "train": ["train", "quadratic", "--optimizer", "sgd", *SHORT, "--out", "lauf-ü"],
    "compare": ["compare", "quadratic", "--optimizers", "adamw,sgd", "--seeds", "1", "--tune", "none", *SHORT],
    "bench": ["bench", "--optimizers", "muon", "--shapes", "tiny", "--no-memory", "--backends", "eager", *FEW],
}
"""Each command, with names that no single 8-bit encoding covers."""
SLOW = {"bench", "compare"}
FAILS = {"publish"}
"""Commands that fail with an error that contains characters the terminal lacks."""


class Terminal(io.TextIOWrapper):
    """A stream as Python opens it for a terminal or pipe of this encoding."""

    def __init__(self, encoding: str, *, tty: bool, errors: str = "strict") -> None:
        super().__init__(io.BytesIO(), encoding, errors, write_through=True)
        self.bytes = self.buffer
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def text(self, encoding: str) -> str:
        """Everything that was written, decoded with ``encoding``."""
        self.flush()
        assert isinstance(self.bytes, io.BytesIO)
        return self.bytes.getvalue().decode(encoding)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with a Greek name, and the artifact ``made``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(report, "measured", lambda *words: memory.Peak(None, "not measured"))
    passing(monkeypatch)
    write_theta(tmp_path, "celo2", scale=0.1).rename("θ.state")
    from pylo_zoo.pipeline import build_artifact

    build_artifact("celo2", source="θ.state", out="made", verify=False)
    return tmp_path


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, tty: bool, *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command on a terminal of this encoding."""
    out, err = Terminal(encoding, tty=tty), Terminal(encoding, tty=tty, errors="backslashreplace")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
    assert isinstance(end.value.code, int)
    return end.value.code, out.text(encoding), err.text(encoding)


def test_every_command_is_in_the_table() -> None:
    assert COMMANDS.keys() == cli.COMMANDS.keys()


@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_on_every_terminal(name: str, tty: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {}
    for encoding in ENCODINGS[:1] if name in SLOW else ENCODINGS:
        words = [word.replace("lauf", f"lauf-{encoding}") for word in COMMANDS[name]]
        status, out, err = printed(monkeypatch, encoding, tty, *words)
        assert status == (2 if name in FAILS else 0), err
        assert "bug in pylo-zoo" not in err
        lines[encoding] = len(out.splitlines())
    assert len(set(lines.values())) == 1, "some of the output is missing"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("bench", "compare", "publish")])
def test_json_is_the_same_everywhere(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = printed(monkeypatch, "ascii", False, *COMMANDS[name], "--json")
    assert status == 0, err
    assert out.isascii()
    json.loads(out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = printed(monkeypatch, "ascii", False, name, "--help")
    assert status == 0
    assert out.startswith("Usage:")


def test_usage_errors_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such command 'comp?r'" in printed(monkeypatch, "ascii", False, "compär")[2]
    assert "Unknown checkpoint 'celó'" in printed(monkeypatch, "latin-1", False, "info", "celó")[2]
    assert "Unknown checkpoint 'cel?'" in printed(monkeypatch, "ascii", False, "info", "celó")[2]


@pytest.mark.parametrize(
    ("text", "shown"), [("a…b", "a...b"), ("2 × 3", "2 x 3"), ("−1–2", "-1-2"), ("μ", "u"), ("θ", "?"), ("ok", "ok")]
)
def test_replacements_resemble_the_characters(text: str, shown: str) -> None:
    stream = Terminal("ascii", tty=False)
    output.encode_anything(stream)
    stream.write(text)
    assert stream.text("ascii") == shown


def test_an_error_handler_that_the_user_chose_is_kept() -> None:
    stream = Terminal("ascii", tty=False, errors="xmlcharrefreplace")
    output.encode_anything(stream)
    stream.write("θ")
    assert stream.text("ascii") == "&#952;"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_separate_process(encoding: str, tmp_path: Path) -> None:
    """Run ``python -m pylo_zoo`` with the encoding from the environment, as a user does."""
    words = [sys.executable, "-m", "pylo_zoo", "compär…"]
    ended = subprocess.run(
        words, env=os.environ | {"PYTHONIOENCODING": encoding}, cwd=tmp_path, capture_output=True, check=False
    )
    assert ended.returncode == 2
    assert "Error: No such command 'comp" in ended.stderr.decode(encoding)
    assert ended.stdout == b""
