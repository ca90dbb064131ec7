"""Helpers that run the command line in tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pylo_zoo import cli, parity
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity import proof, targets
from pylo_zoo.report.records import Check, Control, Error, Leaves, Report, Statements

Capture = pytest.CaptureFixture[str]


def run(*argv: object) -> int:
    """Run the command line with error formatting; return its exit status."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in argv])
    assert isinstance(end.value.code, int)
    return end.value.code


def refused(capsys: Capture, *argv: object, status: int = 1) -> str:
    """Run a command that must fail; return its ``Error:`` and ``Hint:`` lines, which must be all that it prints.

    ``status`` is its exit status: 1 for a failure, 2 for wrong usage.
    """
    assert run(*argv) == status
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert out == ""
    assert error.startswith("Error: ")
    assert hint.startswith("Hint: ")
    return f"{error}\n{hint}"


def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parity pass without running anything."""

    monkeypatch.setattr(parity, "verify", lambda artifact, source, **how: report_of(artifact, error=1e-7))


def report_of(artifact: Artifact, error: float) -> Report:
    """A report with one check, which passes if ``error`` is at most 1e-5."""
    check = Check("network", "float32", "", "random inputs", 1, {"mlp": Error(error, 1e-5)})
    source = {"uri": artifact.source.uri, "sha256": artifact.source.sha256, "bytes": artifact.source.bytes}
    planted = [Control("one bit", "a bit is flipped", "caught", "leaves")]
    whose = artifact.name, artifact.family, source, artifact.fingerprint
    return Report(*whose, Leaves(compared=3), Statements(), checks=[check], controls=planted)


def without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a missing JAX."""
    for module in (parity, proof, targets):
        monkeypatch.setattr(module, "jax_is_missing", lambda: True)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
