"""No step waits for an accelerator, shown on a pretend one (``pretend_device.py``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["quick", pytest.param("--thorough", marks=pytest.mark.slow)])
def waits(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Where each optimizer waits, by optimizer, backend and arguments."""
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices that are written in Python")
    command = [sys.executable, str(HERE / "pretend_device.py"), request.param]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_no_step_waits_for_the_device(waits: dict[str, list[str]]) -> None:
    assert {case: lines for case, lines in waits.items() if lines and case != "control"} == {}
    assert len(waits) > 30


def test_a_wait_is_found(waits: dict[str, list[str]]) -> None:
    assert any("reads a value" in line for line in waits["control"])
