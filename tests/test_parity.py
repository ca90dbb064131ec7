"""The parity check itself: it passes where it should, and says no where it must."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import CELO, CELO_ADAM, artifact, theta_path
from trees import SMALL, write_theta

from pylo_zoo import converters, load, parity
from pylo_zoo.artifact import Artifact, read, write
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.ops import accumulators, conditioning, layout
from pylo_zoo.optim import base, velo
from pylo_zoo.parity import cases, trajectory
from pylo_zoo.samples import velo_sample

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


FAULTS = {
    "order of spatial axes": (layout, "jax_axes", "*axes[2:]", "*reversed(axes[2:])"),
    "tie of equal axes": (layout, "axes_of", "by_size[-2], by_size[-1]", "by_size[-1], by_size[-2]"),
    "guard of a squared gradient": (accumulators, "advance_factored", "square() + 1e-30", "square()"),
    "epsilon of the row factor": (accumulators, "factors", "+ 1e-9).clamp", "+ 1e-8).clamp"),
    "fraction past the end": (conditioning, "fraction_features", "step.to(like)", "(step.to(like) + (step >= 7))"),
    "cap of the loss": (conditioning, "advance_loss", "2 * cap", "3 * cap"),
}
"""Module, function, and a piece of its source to be replaced by a fault."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, right, wrong = FAULTS[fault]
    source = write_theta(tmp_path, "celo", scale=0.3)
    made = convert("celo", source=source)
    code = inspect.getsource(getattr(module, name))
    assert code.count(right) == 1
    namespace = dict(vars(module))
    exec(compile("from __future__ import annotations\n" + code.replace(right, wrong), "fault", "exec"), namespace)
    for user in (module, accumulators, conditioning, velo, base):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, namespace[name])
    layout.axes_of.cache_clear()
    try:
        report = parity.verify(made, source)
    finally:
        layout.axes_of.cache_clear()
    assert not report.passed
    assert report.leaves.passed
    assert any(not check.passed for check in report.checks if check.dtype == "float64")


@pytest.mark.parametrize("behavior", [{"step_mult": 0.01}, {"initial_momentum_decays": (0.99, 0.9, 0.999)}])
def test_a_behaviour_that_the_sources_own_files_contradict_fails(
    behavior: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides take the artifact's behaviour, so only what is said elsewhere can show that it is wrong."""
    monkeypatch.setattr(parity, "jax_is_missing", lambda: True)
    source = Path(velo_sample.__file__).parent / "velo-sample" / "params"
    made = convert("velo-sample")
    assert parity.verify(made, source).status == "not_run"
    report = parity.verify(replace(made, behavior=replace(made.behavior, **behavior)), source)
    assert report.status == "failed"
    assert "config.gin" in report.statements.contradictions[0]
    with pytest.raises(ZooError, match=r"config\.gin"):
        convert("velo", source=source, settings=behavior)


def test_training_refuses_what_changed_since_it_was_proven(tmp_path: Path) -> None:
    source = write_theta(tmp_path, "elo")
    made = convert("elo", source=source)
    proven = {"status": "passed", "fingerprint": made.fingerprint}
    directory = write(replace(made, parity=proven), tmp_path / "elo")
    assert load(directory).fingerprint == made.fingerprint
    write(replace(corrupted(made, "mlp.layers.0.weight", 1.5), parity=proven), directory, force=True)
    with pytest.raises(ZooError, match="changed since"):
        load(directory)
    write(replace(made, parity={"status": "failed"}), directory, force=True)
    with pytest.raises(ZooError, match="failed its parity"):
        load(directory)


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
