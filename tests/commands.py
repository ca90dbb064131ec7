"""Running the command line in a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pylo_zoo import cli

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


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
