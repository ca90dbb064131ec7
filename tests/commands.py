"""Running the command line in a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pylo_zoo import cli, parity
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity import proof, targets
from pylo_zoo.parity.report import Check, Control, Error, Leaves, Report, Statements

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

    monkeypatch.setattr(parity, "verify", lambda made, source, **how: report_of(made, error=1e-7))


def report_of(made: Artifact, error: float) -> Report:
    """A report with one check, which passes up to an error of 1e-5."""
    check = Check("network", "float32", "", "random inputs", 1, {"mlp": Error(error, 1e-5)})
    source = {"uri": made.source.uri, "sha256": made.source.sha256, "bytes": made.source.bytes}
    planted = [Control("one bit", "a bit is flipped", "caught", "leaves")]
    whose = made.name, made.family, source, made.fingerprint
    return Report(*whose, Leaves(compared=3), Statements(), checks=[check], controls=planted)


def without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let JAX be missing."""
    for module in (parity, proof, targets):
        monkeypatch.setattr(module, "jax_is_missing", lambda: True)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
