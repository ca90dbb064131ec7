"""``gpu_products.py`` in Triton's interpreter, and on a GPU if one is available."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["interpreter", "gpu"])
def test_products_agree_with_torch(device: str) -> None:
    """One process runs all checks, because Triton chooses its interpreter when it is imported."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    command = [sys.executable, str(HERE / "gpu_products.py"), device]
    run = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = {name: error for name, error in json.loads(run.stdout).items() if error}
    assert not result, "\n".join(f"{name}: {error}" for name, error in result.items())
