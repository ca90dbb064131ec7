"""Faults planted in the CPU kernels' source: the proof, which also runs the kernels, shows them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from proofs import quick_proof, quick_references, random_weights

import pylo_zoo.kernels
from pylo_zoo import converters
from pylo_zoo.kernels import cpu, kernels_for
from pylo_zoo.kernels.cpu import build
from pylo_zoo.parity import devices, kernel_faults, plan
from pylo_zoo.report.records import Kernels

pytest.importorskip("jax")


class Fault(NamedTuple):
    """A piece of a source file, its replacement, and the run and quantity that show it."""

    file: str
    right: str
    wrong: str
    run: str
    shows: str


FAULTS = {
    "the guard of the parameter scale": Fault(
        "moments.h",
        "std::sqrt(p2 / n + 1e-9)",
        "std::sqrt(p2 / n)",
        "zero parameters",
        "parameter",
    ),
    "the guard of the LSTM's features": Fault(
        "lstm.h",
        "std::sqrt(square < 1e-9f ? 1e-9f : square)",
        "std::sqrt(square)",
        "zero parameters",
        "lstm_inputs",
    ),
    "a unit of a long tensor": Fault(
        "plan.h",
        "return (groups + unit_groups - 1) / unit_groups * run_blocks * length_blocks;",
        "return (groups + unit_groups - 1) / unit_groups * run_blocks * length_blocks - (task->size() > 65536);",
        plan.LONG_RUN,
        "momentum",
    ),
}


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the kernels' source that is compiled and loaded instead, with little optimization."""
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "source"
    shutil.copytree(build.SOURCES, source)
    monkeypatch.setattr(build, "SOURCES", source)
    monkeypatch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if flag != "-O3"))
    monkeypatch.setenv("PYLO_ZOO_KERNELS", str(tmp_path / "kernels"))
    monkeypatch.setattr(pylo_zoo.kernels, "_by_device", {})
    cpu._library.cache_clear()
    return source


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    cpu._library.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_kernels_source_fails_the_proof(name: str, own_kernels: Path) -> None:
    fault = FAULTS[name]
    path = own_kernels / fault.file
    code = path.read_text(encoding="utf-8")
    assert code.count(fault.right) == 1
    path.write_text(code.replace(fault.right, fault.wrong), encoding="utf-8")
    report = quick_proof("velo")
    assert report.status == "failed"
    assert {(check.name, check.kernels) for check in report.checks if not check.passed} == {(fault.run, "cpu")}
    assert report.explanation is not None
    assert (report.explanation.run, report.explanation.kernels) == (fault.run, "cpu")
    failed = [check for check in report.checks if not check.passed]
    named = {quantity.partition(" of ")[0] for check in failed for quantity in check.broken}
    moved_wrong = any(not error.passed for check in failed for error in check.errors.values())
    assert fault.shows in (named | {"parameter"} if moved_wrong else named)


# --- faults planted in every proof ---


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name != "celo2")) for name in converters.FAMILIES]
)
def test_numbers_show_every_planted_fault(family: str) -> None:
    """No fault is caught only because the faulty kernels raise an exception."""
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")
    planted = list(kernel_faults.run(random_weights(family)[0], "cpu", quick_references(family), right=True))
    assert {control.status for control in planted} <= {"caught", "not applicable"}
    caught = [control for control in planted if control.status == "caught"]
    assert {control.name for control in caught} >= {"last element, cpu kernels", "long tensors, cpu kernels"}
    assert [control for control in caught if control.error is None or not math.isfinite(control.error)] == []


def test_a_planted_fault_that_raises_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(kernel_faults._Unmoved, "plan_adam", lambda self: None)
    planted = kernel_faults.run(random_weights("celo2")[0], "cpu", quick_references("celo2"), right=True)
    missed = {control.name: control.by for control in planted if control.status == "missed"}
    assert missed["last element, cpu kernels"].startswith("the optimizer raised TypeError")


# --- without kernels ---------------------------------------------------------------------------------------------


def test_a_report_states_why_kernels_were_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pylo_zoo.kernels, "_by_device", {"cpu": "No C++ compiler was found."})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = quick_proof("elo")
    assert report.passed
    assert not any(check.kernels for check in report.checks)
    reasons = {each.device: each.reason for each in report.kernels}
    assert "No C++ compiler was found." in reasons["cpu"]
    assert reasons["cuda"] == "this machine has no CUDA device"
    assert report.coverage is not None
    assert any(each.startswith("fused kernels on cpu: ") for each in report.coverage.not_covered)


def test_parameters_that_the_kernels_do_not_cover_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")
    covers = cpu.CpuKernels.covers
    monkeypatch.setattr(cpu.CpuKernels, "covers", lambda self, p, *more: p.ndim == 2 and covers(self, p, *more))
    report = quick_proof("elo")
    assert report.passed
    assert report.kernels[0] == Kernels("cpu", "", ["vector", "square experts", "long vector"])


def test_every_family_has_kernels_to_compare() -> None:
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")
    for family in converters.FAMILIES:
        assert devices.kernels_of(random_weights(family)[0])[0].compared
