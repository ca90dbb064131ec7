"""Steps in graphs: the optimizer's own and the caller's, on a pretend accelerator with a double of CUDA graphs.

One process runs all cases (``graph_runs.py``): torch allows one pretend device, and Triton chooses its interpreter on
import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from contract_table import LEARNED, TABLE, Entry, holds
from graph_runs import CASES, SLOW

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run(names: list[str]) -> dict[str, str | None]:
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices that are written in Python")
    command = [sys.executable, str(HERE / "graph_runs.py"), *names]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    """For each quick case its error, or None."""
    return run(list(CASES))


@pytest.fixture(scope="module")
def slow_results() -> dict[str, str | None]:
    return run(list(SLOW))


@pytest.mark.parametrize("case", CASES)
def test_graphs(results: dict[str, str | None], case: str) -> None:
    assert results[case] is None, results[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_graphs_at_length(slow_results: dict[str, str | None], case: str) -> None:
    assert slow_results[case] is None, slow_results[case]


@holds("capturable")
def test_a_captured_step_equals_steps_without_a_graph(entry: Entry, results: dict[str, str | None]) -> None:
    name = next(name for name, other in TABLE.items() if other is entry)
    error = results[f"the caller's graph, {name}"]
    assert error is None, error


@holds("own_graph")
def test_the_optimizers_own_graph_changes_nothing(entry: Entry, results: dict[str, str | None]) -> None:
    name = next(name for name, other in TABLE.items() if other is entry)
    assert name in LEARNED
    error = results[f"own graph, {name}"]
    assert error is None, error
