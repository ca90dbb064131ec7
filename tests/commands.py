"""Running the command line in a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pylo_zoo import cli, parity
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity.report import Check, Leaves, Report, Statements

Capture = pytest.CaptureFixture[str]


def run(*argv: object) -> int:
    """The exit status of the whole program, errors formatted."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in argv])
    assert isinstance(end.value.code, int)
    return end.value.code


def refused(capsys: Capture, *argv: object) -> str:
    """Run a command that must fail; the ``Error:`` line, which must stand alone with a ``Hint:`` line."""
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert out == ""
    assert error.startswith("Error: ")
    assert hint.startswith("Hint: ")
    return f"{error}\n{hint}"


def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parity pass without running anything."""

    def verify(made: Artifact, source: Path) -> Report:
        check = Check(level="network", dtype="float32", variant="random inputs", errors={"mlp": (1e-7, 1e-5)})
        return Report(made.name, made.family, {}, made.fingerprint, Leaves(compared=3), Statements(), [check])

    monkeypatch.setattr(parity, "verify", verify)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
