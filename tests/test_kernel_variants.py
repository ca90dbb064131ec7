"""``benchmarks/kernel_variants.py`` in Triton's interpreter, and the announcement that kernels are compiled."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kernel_variants.py"


def explore(path: Path, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "--out", str(path), *arguments]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text())["variants"]


def test_the_table_in_use_is_right(tmp_path: Path) -> None:
    rows = explore(tmp_path / "rows.json", "--first", "4", TRITON_INTERPRET="1")
    assert [row["pass"] for row in rows] == ["sums", "moments", "move", "network"]
    assert all(0 < row["error"] < 2**-12 for row in rows)


@pytest.mark.slow
def test_every_variant_is_right(tmp_path: Path) -> None:
    rows = explore(tmp_path / "rows.json", TRITON_INTERPRET="1")
    assert len(rows) > 20


@pytest.mark.slow
def test_every_variant_of_the_network_compiles(tmp_path: Path) -> None:
    rows = explore(tmp_path / "rows.json", "--compile-only", "--first", "12", TRITON_CACHE_DIR=str(tmp_path))
    assert all(row["loads_16"] > 0 for row in rows if row["pass"] in ("moments", "move"))
    assert all(row["spills"] == 0 for row in rows[:4])


def test_division_by_multiplication_is_exact() -> None:
    from pylo_zoo.kernels.gpu.records import divisor

    divisors = [*range(1, 300), 4095, 4096, 4097, 2**29 - 1, 2**29 + 1, 2**30 - 1]
    for d in divisors:
        packed = divisor(d)
        magic, shift = packed & 0xFFFFFFFF, packed >> 32
        assert magic == packed - (shift << 32) < 2**32
        most = (2**30 - 1) // d
        for multiple in (each for each in (0, 1, 2, 3, 1000, most - 1, most) if 0 <= each <= most):
            for n in (multiple * d, min(multiple * d + d - 1, 2**30 - 1)):
                assert n * magic < 2**63
                assert n * magic >> shift == n // d


def test_compiling_is_announced_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from pylo_zoo.kernels.gpu.launch import launch

    module = sys.modules["pylo_zoo.kernels.gpu.launch"]
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())

    class Kernel:
        def __getitem__(self, _: Any) -> Any:
            return lambda *_, **__: None

    def launched(seconds: float) -> list[str]:
        ticks = count()
        monkeypatch.setattr(module, "clock", lambda: next(ticks) * seconds)
        caplog.clear()
        launch(Kernel(), 1, torch.empty(1, device="meta"))
        return [record.getMessage() for record in caplog.records]

    monkeypatch.setattr(module, "_announced", [])
    with caplog.at_level(logging.WARNING, logger="pylo_zoo"):
        assert not launched(0.01)
        (message,) = launched(1.0)
        assert message.startswith("compiling the GPU kernels, once per kind of parameter (about")
        assert not launched(1.0)
