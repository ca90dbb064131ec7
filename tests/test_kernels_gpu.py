"""The GPU kernels: in Triton's interpreter, on a GPU if one is available, and compiled ahead of time.

Triton chooses its interpreter on import, so one process per device runs all checks (``gpu_checks.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import margins
import pytest
import torch
from gpu_checks import CHECKS

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module", params=["cpu", "cuda"], ids=["interpreter", "gpu"])
def results(request: pytest.FixtureRequest) -> dict[str, tuple[str | None, list[tuple[float, str]]]]:
    """For each check its error, or None, and its margins."""
    device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    command = [sys.executable, str(HERE / "gpu_checks.py"), device]
    run = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_kernels_agree_with_eager(results: dict[str, tuple[str | None, list[tuple[float, str]]]], check: str) -> None:
    error, ratios = results[check]
    margins.extend(ratios)
    assert error is None, error


@pytest.mark.slow
def test_kernels_compile_ahead_of_time_and_spill_nothing(tmp_path: Path) -> None:
    script, written = HERE.parent / "benchmarks" / "compile_kernels.py", tmp_path / "kernels.json"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(script), "--targets", "sm_90", "--out", str(written)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(kernel["spills"] == 0 for kernel in json.loads(written.read_text())["kernels"])
