"""The parity check itself: it passes where it should, and says no where it must."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_data import CELO, CELO_ADAM, artifact, theta_path
from trees import SMALL, write_theta

from pylo_zoo import converters, parity
from pylo_zoo.artifact import Artifact, read, write
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import cases, trajectory

pytest.importorskip("jax")


def corrupted(made: Artifact, tensor: str, factor: float) -> Artifact:
    """``made`` with one element of one weight multiplied by ``factor``."""
    changed = made.tensors[tensor].clone()
    changed.view(-1)[changed.abs().argmax()] *= factor
    return replace(made, tensors={**made.tensors, tensor: changed})


@pytest.mark.parametrize("family", converters.FAMILIES)
def test_every_family_passes(family: str, tmp_path: Path) -> None:
    source = write_theta(tmp_path, family, scale=0.1)
    made = convert(family, source=source)
    assert made.architecture == SMALL[family]
    report = parity.verify(made, source)
    assert report.passed, report.to_dict()
    assert {(check.level, check.dtype) for check in report.checks} == {
        (level, dtype) for level in ("network", "trajectory") for dtype in ("float32", "float64")
    }
    assert len(report.checks) == 2 + 2 * 2 * 2
    assert not any("steps" in check.variant for check in report.checks)  # all ten were finite
    json.dumps(report.to_dict(), allow_nan=False)


def test_trajectories_are_compared_while_the_original_is_finite() -> None:
    def run(values: list[float]) -> trajectory.Trajectory:
        return [{case.name: np.full(case.shape, value) for case in cases.CASES} for value in values]

    moving, diverging = run([0.0, 1.0, 2.0, 3.0, 4.0]), run([0.0, 1.0, 2.0, 3.0, np.inf])
    assert trajectory.finite_steps(diverging) == 3
    for ours, theirs, expected in (
        (moving, diverging, 0.0),
        (diverging, moving, np.inf),
        (run([0.0, 1.0, 2.0, 3.0, 4.5]), moving, 0.125),
        (moving, run([0.0, 1.0, 2.0, np.nan, np.nan]), np.inf),
        (moving, run([5.0] * 5), np.inf),
    ):
        found = trajectory.errors(ours, theirs, tolerance=1e-3)
        assert {error for error, _ in found.values()} == {expected}


@pytest.mark.parametrize(("family", "source"), [("celo", CELO), ("celo-adam", CELO_ADAM)])
def test_the_published_checkpoints_pass(family: str, source: Path) -> None:
    if not source.exists():
        pytest.skip("the published checkpoint is not here")
    made = convert(family, source=source)
    assert made.name == family  # the registry knows the file
    assert parity.verify(made, source).passed


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("velo_small", "controller.lstm.weight"),
        ("velo_small", "mlp.layers.0.weight"),
        ("celo2", "mlp.layers.2.weight"),
        ("elo", "mlp.layers.1.bias"),
        ("small_fc_lopt", "momentum_decays"),
    ],
)
def test_one_weight_off_by_a_thousandth_fails_at_every_level(case: str, tensor: str) -> None:
    report = parity.verify(corrupted(artifact(case), tensor, 1.001), theta_path(case))
    assert not report.passed
    assert len(report.leaves.differing) == 1
    failed = {(check.level, check.dtype) for check in report.checks if not check.passed}
    assert {("network", "float64"), ("trajectory", "float64")} <= failed
    assert json.loads(json.dumps(report.to_dict()))["status"] == "failed"


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="is not the file"):
        parity.verify(artifact("celo2"), write_theta(tmp_path, "celo2", seed=7))


def test_without_jax_the_leaves_are_still_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "jax_is_missing", lambda: True)
    report = parity.verify(artifact("celo2"), theta_path("celo2"))
    assert report.status == "not_run"
    assert report.leaves.passed
    assert report.reason is not None
    assert parity.verify(corrupted(artifact("celo2"), "mlp.layers.0.bias", 2.0), theta_path("celo2")).status == "failed"


def test_verify_target_replaces_the_artifacts_report(tmp_path: Path) -> None:
    source = write_theta(tmp_path, "elo")
    directory = write(convert("elo", source=source), tmp_path / "elo")
    assert read(directory).parity is None
    assert parity.verify_target(directory, source).passed
    recorded = read(directory).parity
    assert recorded is not None
    assert recorded["status"] == "passed"
    assert recorded["source"]["sha256"] == read(directory).source.sha256
