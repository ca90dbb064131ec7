"""The parity check passes for correct ports, fails for incorrect ones, and reports where."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import without_jax
from golden_data import CELO, CELO_ADAM, artifact, theta_path
from proofs import QUICK, corrupted, proof, random_weights
from trees import SMALL, write_theta

from pylo_zoo import converters, load, parity
from pylo_zoo.artifact import read, write
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import cases, completeness, controls, plan, trajectory
from pylo_zoo.parity.targets import VerifySettings, verify_target
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Check, Control, Error
from pylo_zoo.samples import velo_sample

pytest.importorskip("jax")

SLOW = {"adafac-mlp", "celo", "celo2-base", "elo-celo2", "mulo"}
"""Families whose whole proof only ``make test-full`` runs: the others reach the same code."""
FAMILIES = [
    pytest.param(family, marks=pytest.mark.slow) if family in SLOW else family for family in converters.FAMILIES
]
SINGLE_STEP = 1e-10
"""The promised accuracy of every float64 step, in units of the update."""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str) -> None:
    random_artifact, _ = random_weights(family)
    assert random_artifact.architecture == SMALL.get(family, random_artifact.architecture)
    report = proof(family)
    failed = [(check.name, check.dtype, check.worst, check.broken) for check in report.checks if not check.passed]
    assert (report.status, failed, report.missed) == ("passed", [], [])
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_float64_step_is_right_to_1e_10_of_the_update(family: str) -> None:
    checks = [check for check in proof(family).of_level("step") if check.dtype == "float64"]
    regimes = {(check.name, check.layout) for check in checks if check.kind == "regime"}
    for regime in cases.REGIMES.values():
        if regime.name == "NaN":
            continue
        for layout in ("torch", "jax"):
            assert (regime.name, layout) in regimes
    for check in checks:
        assert max(error.error for error in check.errors.values()) < SINGLE_STEP
        names, steps = planned(family)[check.name]
        assert (set(check.errors), check.steps) == (names, steps)


def planned(family: str) -> dict[str, tuple[set[str], int]]:
    """Parameter names and number of steps of every run."""
    runs = plan.plan(random_weights(family)[0])
    return {run.name: ({case.name for case in run.cases}, run.steps) for run in runs}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_run_is_stepped_by_the_fused_kernels_too(family: str) -> None:
    """``backend="auto"`` trains with them; the runs include zero parameters and tensors of over 65,536 elements."""
    report = proof(family)
    assert [each.device for each in report.kernels] == ["cpu", "cuda"]
    fused = [each.device for each in report.kernels if each.compared]
    for device in fused:
        for level in ("step", "trajectory"):
            eager = {(c.name, c.layout, c.steps, *c.errors) for c in report.of_level(level) if c.dtype == "float32"}
            assert {(c.name, c.layout, c.steps, *c.errors) for c in report.of_level(level, device)} == eager
        named = {control.name: control.status for control in report.controls}
        assert named[f"last element, {device} kernels"] == named[f"long tensors, {device} kernels"] == "caught"
    assert fused or all(each.reason for each in report.kernels)


Gap = Callable[[list[Check], list[Control]], tuple[list[Check], list[Control]]]


def without(**expected: Any) -> Gap:
    """Leave out the checks with these attributes."""
    return lambda checks, controls: (
        [each for each in checks if any(getattr(each, name) != value for name, value in expected.items())],
        controls,
    )


def emptied(**expected: Any) -> Gap:
    """Keep one parameter in the checks with these attributes."""

    def change(check: Check) -> Check:
        selected = all(getattr(check, name) == value for name, value in expected.items())
        return replace(check, errors=dict([*check.errors.items()][:1])) if selected else check

    return lambda checks, controls: ([change(each) for each in checks], controls)


def widened(factor: float) -> Gap:
    """Widen the bounds of float64 steps."""

    def change(check: Check) -> Check:
        wide = {name: Error(e.error, e.allowed and factor * e.allowed) for name, e in check.errors.items()}
        return replace(check, errors=wide) if (check.level, check.dtype) == ("step", "float64") else check

    return lambda checks, controls: ([change(each) for each in checks], controls)


GAPS: dict[str, Gap] = {
    **{
        f"no regime {name}": without(level="step", name=name)
        for name in [*cases.REGIMES, plan.LONG_RUN]
        if name != "NaN"
    },
    **{f"no {layout} layout": without(level="step", layout=layout) for layout in ("torch", "jax")},
    **{f"no whole run in {layout} layout": without(level="trajectory", layout=layout) for layout in ("torch", "jax")},
    **{f"no {dtype} steps": without(level="step", dtype=dtype, kernels="") for dtype in ("float64", "float32")},
    **{f"no run {planned.name}": without(level="trajectory", name=planned.name) for planned in trajectory.WHOLE_RUNS},
    "no network": without(level="network"),
    "parameters of a regime left out": emptied(level="step", name="huge"),
    "long tensors left out": emptied(name=plan.LONG_RUN),
    "parameters of options left out": emptied(kind="options"),
    "parameters of flags left out": emptied(kind="flags"),
    "wider bounds of steps": widened(6e9),
    **{
        f"no fault {fault.name}": lambda checks, controls, name=fault.name: (
            checks,
            [each for each in controls if each.name != name],
        )
        for fault in controls.FAULTS
    },
    "a level without faults": lambda checks, controls: (checks, [c for c in controls if ", by " not in c.name]),
}


@pytest.mark.parametrize("name", GAPS)
def test_an_incomplete_proof_is_refused(name: str) -> None:
    report = proof("celo-adam")
    fused = [each.device for each in report.kernels if each.compared]
    completeness.check(report.checks, report.controls, fused)
    with pytest.raises(ZooError, match="The proof is incomplete"):
        completeness.check(*GAPS[name]([*report.checks], [*report.controls]), fused)


@pytest.mark.parametrize("name", ["step", "trajectory", "last element, cpu kernels"])
def test_a_proof_without_its_kernels_is_refused(name: str) -> None:
    report = proof("celo-adam")
    checks = [each for each in report.checks if (each.level, each.kernels) != (name, "cpu")]
    planted = [each for each in report.controls if each.name != name]
    if not report.kernels[0].compared:
        pytest.skip("no C++ compiler")
    with pytest.raises(ZooError, match="The proof is incomplete"):
        completeness.check(checks, planted, ["cpu"])


@pytest.mark.parametrize("factor", [2.0, 6e9])
def test_bounds_wider_than_derived_are_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    report = proof("celo-adam")
    right = bounds.allowed
    monkeypatch.setattr(bounds, "allowed", lambda *arguments: factor * right(*arguments))
    with pytest.raises(ZooError, match="bounds are wider"):
        completeness.check(report.checks, report.controls, [])


def test_verify_refuses_an_incomplete_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(checks: Any, planted: Any, *more: Any) -> None:
        assert {each.level for each in checks} >= {"network", "step", "trajectory"}
        assert planted
        raise ZooError("The proof is incomplete.", "Report it.")

    monkeypatch.setattr(completeness, "check", check)
    monkeypatch.setattr(trajectory, "WHOLE_RUNS", trajectory.WHOLE_RUNS[:1])
    monkeypatch.setattr(plan, "plan", lambda artifact, whole=plan.plan: [r for r in whole(artifact) if r.name in QUICK])
    with pytest.raises(ZooError, match="The proof is incomplete"):
        parity.verify(*random_weights("celo-adam"))


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_runs_of_1_10_and_200_steps(family: str) -> None:
    result = {(check.dtype, check.name, check.steps) for check in proof(family).of_level("trajectory")}
    assert result == {
        (dtype, name, steps)
        for dtype in ("float64", "float32")
        for name, steps in (("ordinary", 10), ("spikes", 10), ("long", 200))
    }
    for check in proof(family).of_level("trajectory"):
        assert len(check.by_step) == check.steps
        assert max(check.by_step) == max(error.error for error in check.errors.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_faults_are_caught_and_counted(family: str) -> None:
    result = {control.name: control for control in proof(family).controls}
    assert list(result)[: len(controls.FAULTS)] == [fault.name for fault in controls.FAULTS]
    caught = {name for name, control in result.items() if control.status == "caught"}
    assert {"decays", "transposed weight", "one bit"} <= caught
    assert ("clip of decays" in caught) == bool(plan.clamped(random_weights(family)[0]))
    for level in controls.LEVELS:
        assert {f"weight, by {level}", f"NaN, by {level}"} <= caught
    if family in ("velo", "celo"):
        assert {"tied axes", "layout", "epsilon", "old accumulator", "guard", "gate order"} <= caught
        assert result["tied axes"].by == "row"
        assert result["gate order"].by in ("lstm_cell", "lstm_hidden")
    if family in ("celo2", "elo-celo2"):
        assert {"Adam's epsilon", "Adam's old moments", "Newton–Schulz"} <= caught
        assert result["Newton–Schulz"].by == "orthogonalized"


def test_a_family_plants_its_applicable_faults() -> None:
    names = {family: {run.name.partition(":")[0] for run in plan.plan(random_weights(family)[0])} for family in SMALL}
    assert {"clip_norm 0.01", "AdamW's own", "grad_clip_val 0.001", "switches thrown"} <= names["celo2"]
    assert "NaN" in names["elo"]
    assert "NaN" not in names["velo"]
    assert "width multipliers" in names["mulo"]
    assert {"switches thrown", "numbers changed", "learning rate schedule", "weight decay 0.3"} <= names["velo"]


@pytest.mark.parametrize(
    ("family", "source"), [pytest.param("celo", CELO, marks=pytest.mark.slow), ("celo-adam", CELO_ADAM)]
)
def test_the_published_checkpoints_pass(family: str, source: Path) -> None:
    converted = convert(family, source=source)
    assert converted.name == family  # the registry has the file's hash
    assert parity.verify(converted, source).passed


def test_one_weight_off_by_a_thousandth_fails_at_every_level() -> None:
    random_artifact, source = random_weights("celo-adam")
    report = parity.verify(corrupted(random_artifact, "controller.step_size.weight", 1.001), source)
    assert not report.passed
    assert len(report.leaves.differing) == 1
    failed = {(check.level, check.dtype) for check in report.checks if not check.passed}
    assert {("network", "float64"), ("step", "float64"), ("trajectory", "float64")} <= failed
    assert {control.status for control in report.controls} == {"not applicable"}
    assert report.explanation is not None
    assert report.explanation.failed
    assert (report.explanation.quantity, report.explanation.step, report.explanation.run) == ("lr_mult", 0, "ordinary")
    assert json.loads(json.dumps(report.to_dict()))["status"] == "failed"


@pytest.mark.parametrize("behavior", [{"step_mult": 0.01}, {"initial_momentum_decays": (0.99, 0.9, 0.999)}])
def test_a_behavior_that_contradicts_the_source_fails(
    behavior: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides use the artifact's behavior, so only other sources can contradict it."""
    without_jax(monkeypatch)
    source = Path(velo_sample.__file__).parent / "velo-sample" / "params"
    converted = convert("velo-sample")
    assert parity.verify(converted, source).status == "not_run"
    report = parity.verify(replace(converted, behavior=replace(converted.behavior, **behavior)), source)
    assert report.status == "failed"
    assert "config.gin" in report.statements.contradictions[0]
    with pytest.raises(ZooError, match=r"config\.gin"):
        convert("velo", source=source, settings=behavior)


def test_training_refuses_artifacts_changed_after_the_proof(tmp_path: Path) -> None:
    source = write_theta(tmp_path, "elo")
    converted = convert("elo", source=source)
    origin = {"uri": converted.source.uri, "sha256": converted.source.sha256}
    proven = {"status": "passed", "fingerprint": converted.fingerprint, "name": converted.name, "source": origin}
    directory = write(replace(converted, parity=proven), tmp_path / "elo")
    assert load(directory).fingerprint == converted.fingerprint
    write(replace(corrupted(converted, "mlp.layers.0.weight", 1.5), parity=proven), directory, force=True)
    with pytest.raises(ZooError, match="changed since"):
        load(directory)
    write(replace(converted, parity={"status": "failed"}), directory, force=True)
    with pytest.raises(ZooError, match="failed its parity"):
        load(directory)


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="is not the file"):
        parity.verify(artifact("celo2"), write_theta(tmp_path, "celo2", seed=7))


def test_without_jax_the_leaves_are_still_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    without_jax(monkeypatch)
    report = parity.verify(artifact("celo2"), theta_path("celo2"))
    assert report.status == "not_run"
    assert report.leaves.passed
    assert report.reason is not None
    assert parity.verify(corrupted(artifact("celo2"), "mlp.layers.0.bias", 2.0), theta_path("celo2")).status == "failed"


def test_the_same_run_gives_the_same_report_and_the_same_vectors() -> None:
    random_artifact, source = random_weights("celo-adam")
    one, two = (parity.verify(random_artifact, source) for _ in range(2))
    assert {**one.to_dict(), "created": ""} == {**two.to_dict(), "created": ""}
    assert one.vectors == two.vectors


@pytest.mark.slow
def test_another_seed_gives_another_report_and_a_bound_of_zero_fails() -> None:
    random_artifact, source = random_weights("celo-adam")
    one, other = (parity.verify(random_artifact, source, seed=seed) for seed in (0, 1))
    assert other.passed
    assert other.to_dict()["checks"] != one.to_dict()["checks"]
    assert not parity.verify(random_artifact, source, max_error=0.0).passed


# --- replay ------------------------------------------------------------------------------------------------------


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    """The directory of an artifact with its proof."""
    random_artifact, source = random_weights("celo-adam")
    directory = write(random_artifact, tmp_path / "celo-adam")
    assert verify_target(directory, source).passed
    return directory


def test_verify_target_replaces_the_proof(proven: Path) -> None:
    recorded = read(proven).parity
    assert recorded is not None
    assert recorded["status"] == "passed"
    assert recorded["source"]["sha256"] == read(proven).source.sha256
    assert (proven / "parity-vectors.safetensors").stat().st_size < 1 << 20


def test_a_read_only_artifact_is_verified_with_a_warning(proven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in proven.iterdir()}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.warns(UserWarning, match="is read-only, so the proof was not written to it"):
        assert verify_target(proven, random_weights("celo-adam")[1], settings=VerifySettings(seed=5)).passed
    assert {path.name: path.read_bytes() for path in proven.iterdir()} == before


def test_behavior_without_a_source_is_named() -> None:
    random_artifact, source = random_weights("celo-adam")
    edited = replace(random_artifact, behavior=replace(random_artifact.behavior, step_mult=0.002))
    report = parity.verify(edited, source)
    assert report.passed  # no source contradicts it
    assert "step_mult = 0.002 (released value: 0.001)" in report.statements.unsaid
    assert report.coverage is not None
    assert any("step_mult = 0.002" in each for each in report.coverage.not_covered)
    assert proof("celo-adam").statements.unsaid[0] == "step_mult = 0.001"


def test_a_replay_needs_no_jax_and_detects_faults(proven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_jax(monkeypatch)
    report = parity.replay(read(proven))
    assert report.passed
    assert {check.level for check in report.checks} == {"network", "trajectory"}
    assert [control.name for control in report.controls if control.status == "caught"] == [
        "Adam's epsilon",
        "Adam's old moments",
        "decays",
        "transposed weight",
        "one bit",
        "gate order",
    ]
    loaded = read(proven)
    write(corrupted(loaded, "controller.direct.weight", 1.001), proven.parent / "changed")
    for name in ("parity.json", "parity-vectors.safetensors"):
        (proven.parent / "changed" / name).write_bytes((proven / name).read_bytes())
    report = parity.replay(read(proven.parent / "changed"))
    assert report.status == "failed"
    assert report.statements.contradictions
    assert report.leaves.compared == 0, "the old proof's leaves are not those of the edited weights"
    assert any(not check.passed for check in report.checks if check.level == "trajectory")


def test_a_replay_refuses_other_vectors(proven: Path) -> None:
    vectors = proven / "parity-vectors.safetensors"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(ZooError, match=r"sha256 .*, but parity\.json records another"):
        parity.replay(read(proven))
    vectors.write_bytes(whole[:1000])
    with pytest.raises(ZooError, match="cannot be read"):
        parity.replay(read(proven))
    vectors.unlink()
    with pytest.raises(ZooError, match="cannot be replayed"):
        parity.replay(read(proven))
    (proven / "parity.json").unlink()
    with pytest.raises(ZooError, match="no proof to replay"):
        parity.replay(read(proven))
