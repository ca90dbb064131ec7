"""Tests of the proof itself: exceptions of the optimizer are located, and a proof made vacuous does not pass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from proofs import quick_proof, random_weights, theta
from rich.console import Console

from pylo_zoo import converters
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import cpu as cpu_kernels
from pylo_zoo.kernels import kernels_for
from pylo_zoo.optim import optimizer_class
from pylo_zoo.parity import cases, controls, explain, forward, plan, sides, steps, torch_side, trajectory
from pylo_zoo.parity.leaves import Leaves
from pylo_zoo.report import bounds, tables
from pylo_zoo.report.reading import read_report
from pylo_zoo.report.records import Check, Report

pytest.importorskip("jax")

FAMILY = "elo"


def shown(report: Report) -> str:
    """The terminal's rendering of ``report``, on one line."""
    console = Console(width=200, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    tables.print_report(report, console)
    console.file.close()
    return " ".join(console.export_text().split())


def test_the_quick_proof_passes() -> None:
    """The unmodified proof, which the tests below break, passes."""
    report = quick_proof(FAMILY)
    assert (report.status, report.missed) == ("passed", [])


# --- an optimizer that raises ------------------------------------------------------------------------------------


def raising(error: Exception, step: int, case: int | None) -> Callable[[pytest.MonkeyPatch], None]:
    """Make the eager optimizer raise at a step: in the update of the parameter at that place, or before any update."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        cls: Any = optimizer_class(FAMILY)
        name = "prepare" if case is None else "update"
        right, calls = getattr(cls, name), {"step": 0, "case": 0}

        def wrong(self: Any, *arguments: Any) -> Any:
            steps_taken = self.param_groups[0]["step"]
            calls["case"] = calls["case"] + 1 if int(steps_taken) == calls["step"] else 0
            calls["step"] = int(steps_taken)
            of_case = [p for group in self.param_groups for p in group["params"]]
            selected = case is None or arguments[0].parameter is of_case[case]
            if int(steps_taken) == step and selected:
                raise error
            return right(self, *arguments)

        patch.setattr(cls, name, wrong)

    return plant


RAISED = {
    "in the first step": (raising(ValueError("no"), 0, 1), "ValueError at step 1 of tall dense: no"),
    "in a later step": (raising(RuntimeError("shape"), 2, 0), "RuntimeError at step 3 of vector: shape"),
    "before any update": (raising(KeyError("momentum"), 1, None), "KeyError at step 2: 'momentum'"),
    "a ZooError": (raising(ZooError("Bad state.", "Mend it."), 1, 2), "ZooError at step 2 of square experts"),
    "a long message": (raising(ValueError("x" * 10_000), 0, 0), "ValueError at step 1 of vector: x"),
}


@pytest.mark.parametrize("name", RAISED)
def test_an_exception_of_the_optimizer_is_a_located_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, message = RAISED[name]
    plant(monkeypatch)
    report = quick_proof(FAMILY)
    assert report.status == "failed"
    assert report.explanation is not None
    assert report.explanation.failed
    assert report.explanation.misfit is not None
    assert report.explanation.misfit.startswith(f"the optimizer raised {message}")
    assert len(report.explanation.misfit) < 400
    assert f"the optimizer raised {message}" in shown(report)
    assert not any(check.passed for check in report.of_level("trajectory"))
    read_report(json.loads(json.dumps(report.to_dict(), allow_nan=False)))


def test_an_optimizer_that_raises_in_one_layout_fails_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cls: Any = optimizer_class(FAMILY)
    right = cls.update

    def wrong(self: Any, item: Any, *arguments: Any) -> Any:
        if item.group["layout"] == "torch" and item.parameter.ndim == 3:
            raise ValueError("torch layout")
        return right(self, item, *arguments)

    monkeypatch.setattr(cls, "update", wrong)
    monkeypatch.setattr(cases, "FEW", tuple(each for each in cases.CASES if each.name in ("vector", "conv1d")))
    reference_run = steps.run_reference(
        random_weights(FAMILY)[0],
        theta(FAMILY),
        steps.Run("regime", "ordinary", "ordinary", cases.FEW, dict(converters.get(FAMILY).parity_hyper), steps=1),
        seed=0,
    )
    for layout, failed in (("torch", True), ("jax", False)):
        result = explain.first_difference([steps.compare(random_weights(FAMILY)[0], reference_run, "float64", layout)])
        assert (result is not None) == failed


def test_a_network_that_raises_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, _ = random_weights(FAMILY)
    monkeypatch.setattr(type(artifact.net()), "probe", lambda self, inputs: 1 / 0)
    report = quick_proof(FAMILY)
    network = report.of_level("network")
    assert [check.passed for check in network] == [False, False]
    assert network[0].broken == ["the network raised ZeroDivisionError: division by zero"]
    assert "the network raised ZeroDivisionError" in shown(report)


def test_kernels_that_raise_are_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")

    def move(*arguments: Any) -> None:
        raise MemoryError("workspace")

    monkeypatch.setattr(cpu_kernels.CpuKernels, "move", move)
    report = quick_proof(FAMILY)
    assert report.status == "failed"
    assert report.explanation is not None
    assert (report.explanation.kernels, report.explanation.dtype) == ("cpu", "float32")
    assert report.explanation.misfit == "the optimizer raised MemoryError at step 1: workspace"
    assert {check.kernels for check in report.checks if not check.passed} == {"cpu"}


def test_weights_that_are_not_finite_in_the_original_prove_nothing() -> None:
    """The reference has no finite first step: no step is compared, and the report states that instead of passing."""
    artifact, _ = random_weights(FAMILY)
    run = steps.Run("regime", "ordinary", "ordinary", cases.FEW, dict(converters.get(FAMILY).parity_hyper), steps=1)
    huge: Any = {"nn": {"~": {k: np.full_like(v, 1e30) for k, v in theta(FAMILY)["nn"]["~"].items()}}}
    reference_run = steps.run_reference(artifact, {**theta(FAMILY), **huge}, run, seed=0)
    assert not reference_run.before
    result = steps.compare(artifact, reference_run, "float64", "torch")
    assert result.errors.shape == (0, len(reference_run.ledger.keys))


# --- a proof made vacuous ----------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def wide_bounds(patch: Patch) -> None:
    right = bounds.allowed
    patch.setattr(bounds, "allowed", lambda *arguments: 6e9 * right(*arguments))
    patch.setattr(bounds, "MAX_ERROR", 1.0)
    patch.setattr(steps.compare, "__defaults__", (1.0, "", None))


def nan_is_right_in_steps(patch: Patch) -> None:
    right = steps.Ledger.errors
    patch.setattr(steps.Ledger, "errors", lambda *a: np.nan_to_num(right(*a), nan=0.0, posinf=0.0))


def nan_is_right_in_networks(patch: Patch) -> None:
    right = forward.relative
    patch.setattr(forward, "relative", lambda ours, theirs: right(np.where(np.isnan(ours), theirs, ours), theirs))


def nan_is_right_in_whole_runs(patch: Patch) -> None:
    right = trajectory.judge

    def judge(run: trajectory.Original, ours: Any, *rest: Any) -> Check:
        ours = [
            {name: np.where(np.isnan(value), truth[name], value) for name, value in step.items()}
            for step, truth in zip(ours, run.truth, strict=False)
        ]
        return right(run, ours, *rest)

    patch.setattr(trajectory, "judge", judge)


def steps_compare_the_reference_with_itself(patch: Patch) -> None:
    right = steps.Ledger.errors
    patch.setattr(steps.Ledger, "errors", lambda self, ours, truth, units: right(self, truth, truth, units))


def networks_compare_the_reference_with_itself(patch: Patch) -> None:
    patch.setattr(forward, "relative", lambda ours, theirs: 0.0)


def whole_runs_compare_the_reference_with_itself(patch: Patch) -> None:
    right = trajectory.judge
    patch.setattr(trajectory, "judge", lambda run, ours, *rest: right(run, run.truth, *rest))


def leaves_are_always_right(patch: Patch) -> None:
    patch.setattr(controls, "check_leaves", lambda artifact, source: Leaves(1))


def no_difference_is_found(patch: Patch) -> None:
    patch.setattr(controls, "first_difference", lambda result: None)


def every_check_passes(patch: Patch) -> None:
    patch.setattr(Check, "passed", property(lambda self: True))


def the_fused_side_runs_eager(patch: Patch) -> None:
    right = torch_side.TorchSide.__init__

    def init(self: Any, *arguments: Any, kernels: str = "", tamper: Any = None) -> None:
        right(self, *arguments)

    patch.setattr(torch_side.TorchSide, "__init__", init)


def faults_are_not_planted(patch: Patch) -> None:
    patch.setattr(controls, "substituted", lambda pairs, optimizer: _Nothing())


class _Nothing:
    def __enter__(self) -> list[str]:
        return ["called"]

    def __exit__(self, *arguments: Any) -> None:
        pass


def an_error_of_one_element_is_averaged(patch: Patch) -> None:
    def worst(self: steps.Ledger, errors: np.ndarray) -> np.ndarray:
        return np.minimum.reduceat(errors, self.starts)

    patch.setattr(steps.Ledger, "worst", worst)


VACUOUS: dict[str, Callable[[Patch], None]] = {
    each.__name__: each
    for each in (
        wide_bounds,
        nan_is_right_in_steps,
        nan_is_right_in_networks,
        nan_is_right_in_whole_runs,
        steps_compare_the_reference_with_itself,
        networks_compare_the_reference_with_itself,
        whole_runs_compare_the_reference_with_itself,
        leaves_are_always_right,
        no_difference_is_found,
        every_check_passes,
        the_fused_side_runs_eager,
        faults_are_not_planted,
        an_error_of_one_element_is_averaged,
    )
}


@pytest.mark.parametrize("name", VACUOUS)
def test_a_proof_made_vacuous_fails_by_its_planted_faults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifact is correct, so only the proof can fail."""
    quick_proof(FAMILY)  # the reference's side, before anything is broken
    VACUOUS[name](monkeypatch)
    report = quick_proof(FAMILY)
    assert (report.status, bool(report.missed)) == ("failed", True)


def test_a_report_without_planted_faults_does_not_pass() -> None:
    report = quick_proof(FAMILY)
    assert report.passed
    assert replace(report, controls=[]).status == "failed"


# --- clipping of decays ------------------------------------------------------------------------------------------

CLIPPED = [
    name for name, family in converters.FAMILIES.items() if hasattr(family.behavior(), "initial_adafactor_decays")
]


@pytest.mark.parametrize("family", CLIPPED)
def test_decays_outside_their_range_are_clipped_on_both_sides(family: str) -> None:
    """SPEC §1 and §3: decays of second moments are clipped to [0, 1], learned ones after the offset."""
    artifact, _ = random_weights(family)
    changes = plan.clamped(artifact)
    assert set(changes[plan.BELOW]) == {"initial_rms_decays", "initial_adafactor_decays"}
    decays: Any = sides.with_behavior(artifact, changes[plan.BELOW]).net()
    assert decays.decays().rms.tolist() == [0.0]
    assert decays.decays().adafactor.tolist() == [0.0, 0.0, 0.0]
    learned = "rms_decays" in artifact.tensors
    assert (plan.ABOVE in changes) == (not learned)


def test_every_family_with_learned_decays_reaches_the_clip() -> None:
    assert [family for family in CLIPPED if "rms_decays" in random_weights(family)[0].tensors] == ["adafac-mlp", "mulo"]


@pytest.mark.parametrize("family", ["adafac-mlp", "elo"])
@pytest.mark.parametrize("decay", ["rms", "adafactor"])
def test_one_unclipped_decay_is_detected(family: str, decay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clipped decays among the runs, unclipped rms decays would pass."""
    artifact, _ = random_weights(family)
    run = next(run for run in plan.plan(artifact) if run.name == plan.BELOW)
    reference_run = steps.run_reference(artifact, theta(family), run, seed=0)
    assert explain.first_difference([steps.compare(artifact, reference_run, "float64", "torch")]) is None
    net: Any = type(artifact.net())
    right = net.decays

    def unclipped(self: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pylo_zoo.nets.in_range", lambda decays: decays)
            free = right(self)
        return right(self)._replace(**{decay: getattr(free, decay)})

    monkeypatch.setattr(net, "decays", unclipped)
    result = explain.first_difference([steps.compare(artifact, reference_run, "float64", "torch")])
    assert result is not None
    assert re.fullmatch("second_moment" if decay == "rms" else "row|col|diag", result.quantity)


def test_channels_of_a_scalar_may_have_its_axis() -> None:
    """The update receives a scalar as shape [1]; the reference may record the channels alone."""
    value = np.array([[1.0], [2.0]])
    fitted = steps._fit(value, (2,))
    assert fitted is not None
    np.testing.assert_array_equal(fitted, [1.0, 2.0])
    assert steps._fit(value, (3,)) is None
    assert steps._fit(None, (2,)) is None
