"""Runs on an accelerator equal runs on the CPU, bit for bit, shown on a pretend one (``pretend_runs.py``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pylo_zoo.ops.adam import adam_directions

HERE = Path(__file__).parent


@pytest.mark.parametrize("extent", ["quick", pytest.param("--thorough", marks=pytest.mark.slow)])
def test_runs_on_the_device_equal_runs_on_the_cpu(extent: str) -> None:
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices that are written in Python")
    command = [sys.executable, str(HERE / "pretend_runs.py"), extent]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert {case: found for case, found in results.items() if found} == {}
    assert len(results) > 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nesterov", [False, True])
def test_counts_in_a_tensor_give_the_directions_of_counts_as_numbers(dtype: torch.dtype, nesterov: bool) -> None:
    """Muon's AdamW reads no counter of an accelerator.

    Two powers ``β^t`` may differ in the last bit of float64; ``1/(1 − β^t) ≤ 20`` amplifies that in ``1 − β^t``. So a
    divisor's two factors, rounded to the dtype, differ by 1 unit roundoff each in float32 and by 40 in float64. Each
    direction has six more roundings, which can differ if their operands do.
    """
    counts, shapes = [1, 7, 7, 1000, 2], [(3, 4), (5,), (), (1, 1), (2, 3, 4)]
    both = []
    for tensor in (False, True):
        generator = torch.Generator().manual_seed(1)
        m, v, g = ([torch.randn(s, generator=generator, dtype=dtype) for s in shapes] for _ in range(3))
        v = [each.square() for each in v]
        given = torch.tensor(counts) if tensor else counts
        both.append([*adam_directions(m, v, g, given, (0.9, 0.95), 1e-8, nesterov), *m, *v])
    units = 2 + 6 if dtype == torch.float32 else 80 + 6
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=units * torch.finfo(dtype).eps, atol=0)
