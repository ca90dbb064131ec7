"""The benchmark: what it counts, its statistics and its output. No test asserts a time."""

from __future__ import annotations

import gc
import json
import math
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import Capture, refused, run

from pylo_zoo.cli import bench_cmd
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments import peak_memory
from pylo_zoo.experiments.bench import (
    SHAPE_SETS,
    SUBJECTS,
    BenchPlan,
    Cell,
    LeftOut,
    Machine,
    Report,
    bench,
    measuring,
    read,
    report,
    shapes,
    subjects,
    tables,
    write,
)
from pylo_zoo.experiments.bench import run as run_module
from pylo_zoo.experiments.bench.run import PeakCache, names_of
from pylo_zoo.ops import stacks

ROOT = Path(__file__).parents[1]
MACHINE = Machine(
    "2026-01-02T03:04:05+00:00", "A CPU", 2, "Linux", "cpu", 2, "3.11", "2.9", "0.1", (2e10, 1e10, 3e10), (1.0,)
)
CELL = Cell(
    "celo2", "CELO2", "random:celo2", "eager", "gpt", 1000, 10, "AdamW fused", (2.0, 4.0, 9.0), (0.1, 0.2, 0.3), 36_000,
    80_000, 2_000, 8_000, True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def little_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.bandwidth, "__defaults__", (1024, 3))


def report_of(*cells: Cell, left_out: tuple[LeftOut, ...] = ()) -> Report:
    return Report(MACHINE, {"dtype": "float32"}, cells, left_out)


# --- shape sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("gpt", 9_200_640, 76), ("resnet18", 11_173_962, 62), ("square", 4096**2, 1), ("many", 1_024_000, 1000)],
)
def test_shape_sets_have_the_stated_parameters(name: str, parameters: int, tensors: int) -> None:
    assert (SHAPE_SETS[name].parameters, SHAPE_SETS[name].tensors) == (parameters, tensors)


def test_parameters_have_the_stated_shapes() -> None:
    params = SHAPE_SETS["tiny"].make(dtype=torch.bfloat16, seed=3)
    again = SHAPE_SETS["tiny"].make(dtype=torch.bfloat16, seed=3)
    assert sum(p.numel() for p in params) == SHAPE_SETS["tiny"].parameters
    for p, same in zip(params, again, strict=True):
        assert p.grad is not None
        assert p.dtype == p.grad.dtype == torch.bfloat16
        assert torch.equal(p, same)
    assert [group.get("rule") for group in params.groups()] == ["adamw", None]
    assert params.groups(learned=True)[0]["rule"] == "learned"


def test_the_resnet_has_convolutions() -> None:
    assert {len(entry.shape) for entry in SHAPE_SETS["resnet18"].entries} == {1, 2, 4}


# --- figures -------------------------------------------------------------------------------------------------------


def test_the_spread_of_known_times() -> None:
    result = measuring.spread([4.0, 1.0, 3.0, 2.0, 10.0])
    assert (result.least, result.lower, result.median, result.upper, result.most) == (1, 2, 3, 4, 10)
    assert set(vars(measuring.spread([7.0])).values()) == {7.0}


def test_ratios_are_taken_per_pair() -> None:
    assert CELL.ratio.median == 20  # of 20, 20 and 30; the ratio of the medians is also 20, but the quartiles differ
    assert (CELL.ratio.upper, CELL.ratio.most, CELL.ratio.least) == pytest.approx((25, 30, 20))
    assert CELL.time.median == 4
    assert CELL.state_per_parameter == 36
    assert CELL.moved_per_parameter(MACHINE.copies) == 4 * 2e10 / 1000
    assert CELL.least_ratio == 20
    assert CELL.peak_ratio == 8.8  # (8,000 + 80,000) / (8,000 + 2,000)
    assert replace(CELL, against_peak_bytes=None).peak_ratio is None


@pytest.mark.parametrize(
    ("load", "others"), [((), 0), ((0.1, 2.2), 0.2), ((1.0, 2.0), 1.0), ((0.0, 3.0), 1.0), ((0.2, 0.1), 0.2)]
)
def test_a_busy_machine_is_reported(load: tuple[float, ...], others: float) -> None:
    machine = replace(MACHINE, load=load)
    assert machine.others == pytest.approx(others)
    assert machine.busy == ("busy" in tables.about_machine(machine, "float32")) == (others > 0.5)
    assert replace(report_of(CELL), machine=machine).to_dict()["busy"] == machine.busy


def test_pairs_alternate_and_exclude_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock: Iterator[float] = iter(float(i) for i in range(1000))
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    was_on = gc.isenabled()

    def seconds_of(step: object) -> float:
        assert not gc.isenabled()
        step()  # pyright: ignore[reportCallIssue]
        return 1.0 if calls[-1] == "a" else 0.5

    times = measuring.pairs(lambda: calls.append("a"), lambda: calls.append("b"), 4, 1e9, seconds_of)
    assert gc.isenabled() == was_on
    assert "".join(calls) == "abab" + "abba" * 2
    assert times == measuring.Times((1.0,) * 4, (0.5,) * 4)


def test_at_least_three_pairs_are_measured() -> None:
    times = measuring.pairs(lambda: None, lambda: None, 30, 0.0)
    assert len(times.ours) == len(times.reference) == measuring.MIN_PAIRS


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with measuring.threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the peak")
def test_the_peak_is_the_memory_of_a_step() -> None:
    size = 64 * 1024 * 1024
    taken = peak_memory.of_step(lambda: torch.ones(size, dtype=torch.uint8), "cpu")
    if taken is None:
        pytest.skip("this kernel cannot reset the peak")
    assert taken == pytest.approx(size, rel=0.2)


def test_memory_is_not_measured_outside_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "CLEAR", tmp_path / "absent")
    monkeypatch.setattr(peak_memory, "subprocess", SimpleNamespace(run=lambda *_: pytest.fail("a needless process")))
    assert peak_memory.of_step(lambda: pytest.fail("a needless step"), "cpu") is None
    assert PeakCache(BenchPlan())("muon", "eager", "tiny") is None


# --- subjects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_steps_and_stays_finite(name: str) -> None:
    work = SUBJECTS[name].make(SHAPE_SETS["tiny"].make(), "eager")
    for _ in range(3):
        work.step()
    assert work.finite
    assert (work.state_bytes is None) == (name == "newton-schulz")
    SUBJECTS[name].reference(SHAPE_SETS["tiny"].make(), "torch").step()


def test_the_backend_reaches_the_optimizer() -> None:
    for backend in ("eager", "fused"):
        optimizer = SUBJECTS["muon"].make(SHAPE_SETS["tiny"].make(), backend).optimizer
        assert optimizer is not None
        assert optimizer.backend == backend  # pyright: ignore[reportAttributeAccessIssue]


def test_matmul_counts_are_those_of_newton_schulz(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setitem(stacks.PADDED, "cpu", 0)  # zeros would be counted
    counts = []
    for make in (SUBJECTS["newton-schulz"].make, SUBJECTS["newton-schulz"].reference):
        work = make(SHAPE_SETS["tiny"].make(), "torch")
        with FlopCounterMode(display=False) as counter:
            work.step()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_the_rule_without_newton_schulz() -> None:
    assert subjects.random_artifact("celo2").behavior.orthogonalize
    assert not subjects.random_artifact("celo2", orthogonalize=False).behavior.orthogonalize


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--optimizers", "cel2"], "'celo2'"),
        (["--shapes", "resnet"], "'resnet18'"),
        (["--dtype", "int8"], "bfloat16"),
        (["--backends", "triton"], "eager, fused, or all"),
    ],
)
def test_near_misses(arguments: list[str], meant: str, capsys: Capture) -> None:
    assert meant in refused(capsys, "bench", *arguments, status=2)


def test_names() -> None:
    assert names_of("celo2, elo,,elo") == ("celo2", "elo")
    with pytest.raises(ZooError, match="Unknown shape set"):
        shapes.find_shape_set("nothing at all")


# --- whole runs ----------------------------------------------------------------------------------------------------


def test_a_run_end_to_end(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "times.json"
    words = ("--optimizers", "velo-sample,muon,adamw", "--shapes", "tiny", "--steps", 3, "--out", file)
    assert run("bench", *words, "--backends", "eager", "-q") == 0
    assert capsys.readouterr().out.split()[:3] == ["tiny", "adamw", "torch"]
    values = json.loads(file.read_text())
    assert list(values) == ["format", "machine", "busy", "asked", "backends", "cells", "left_out"]
    assert values["backends"] == ["torch", "eager"]
    assert values["machine"].keys() == set(report.KEYS["Machine"])
    for cell in values["cells"]:
        assert cell.keys() == {*report.KEYS["Cell"], "summary"}
        assert len(cell["seconds"]) == len(cell["against_seconds"]) == 3
    again = read(file)
    assert [cell.optimizer for cell in again.cells] == ["adamw", "velo-sample", "muon"]
    parts = again.by_backend()
    assert {name: [cell.optimizer for cell in part.cells] for name, part in parts.items()} == {
        "eager": ["velo-sample", "muon"],
        "torch": ["adamw"],
    }
    assert tables.markdown(*parts.values()).count("\n| ") == 5
    write(again, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == values
    assert run("bench", "--from", file) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "backend" in shown


def test_eager_operations_are_measured_last() -> None:
    plan = BenchPlan(("muon", "adamw"), ("tiny", "many"))
    assert [(subject.name, backend, shape_set.name) for subject, backend, shape_set in plan.cells()] == [
        (name, backend, shape_set)
        for shape_set in ("tiny", "many")
        for name, backend in (("muon", "fused"), ("adamw", "torch"), ("muon", "eager"))
    ]


@pytest.mark.parametrize("seconds", [10**400, math.inf, math.nan, 0, -1])
def test_the_time_limit_is_a_positive_float(seconds: float) -> None:
    with pytest.raises(ZooError, match="seconds is ") as error:
        bench(BenchPlan(("adamw",), ("tiny",), seconds=seconds))
    assert len(str(error.value)) < 200


def test_what_is_left_out_is_reported() -> None:
    result = bench(BenchPlan(("adamw", "muon"), ("tiny", "tiny"), ("fused",), 3, 1e-9, memory=False))
    assert result.cells == ()
    assert tables.absences(result) == ["tiny, adamw, muon (fused): the time limit of 1e-09 s was reached"]


def test_the_command_shows_its_plan_and_progress(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    words = (
        "bench",
        "--shapes",
        "tiny",
        "--optimizers",
        "adamw,muon",
        "--steps",
        "3",
        "--seconds",
        "60",
        "--no-memory",
    )
    assert run(*words) == 0
    assert capsys.readouterr().err == "3 measurements; time limit 60 s (--seconds)\n", "takes less than ten seconds"
    monkeypatch.setattr(bench_cmd, "LINE_SECONDS", 0.0)
    assert run(*words) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "0 of 3 done; adamw, tiny …",
        "1 of 3 done; muon (fused), tiny …",
        "2 of 3 done; muon (eager), tiny …",
    ]
    assert run(*words, "-q") == 0
    assert capsys.readouterr().err == ""


def test_values_that_are_not_finite_are_reported(capsys: Capture, tmp_path: Path) -> None:
    write(report_of(replace(CELL, finite=False)), tmp_path / "nan.json")
    assert run("bench", "--from", tmp_path / "nan.json") == 1
    out, err = capsys.readouterr()
    assert "4,000 NaN" in out
    assert "celo2 on gpt diverged to NaN" in err


def test_a_diverging_optimizer_is_reported() -> None:
    parameters = SHAPE_SETS["tiny"].make()
    work = subjects.adamw(parameters, foreach=False)
    next(iter(parameters)).grad.fill_(math.nan)  # pyright: ignore[reportOptionalMemberAccess]
    work.step()
    assert not work.finite


def test_a_failure_is_reported_and_the_rest_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(parameters: shapes.Parameters, backend: str) -> subjects.Work:
        raise RuntimeError("no memory\nand more")

    monkeypatch.setattr(subjects, "SUBJECTS", {**SUBJECTS, "broken": subjects.Subject("broken", "", broken)})
    result = bench(BenchPlan(("broken", "adamw"), ("tiny",), ("eager",), 3, 60, memory=False))
    assert [cell.optimizer for cell in result.cells] == ["adamw"]
    assert result.left_out == (LeftOut("broken", "tiny", "RuntimeError: no memory", failed=True, backend="eager"),)


@pytest.mark.parametrize(("width", "columns"), [(80, 9), (40, 5), (10, 4), (None, 13)])
def test_narrow_terminals_get_fewer_columns(width: int | None, columns: int) -> None:
    result = tables.fitting([CELL], MACHINE, width)
    assert len(result) == columns
    assert [column.heading for column in result][:3] == ["optimizer", "backend", "ms"]


def test_figures() -> None:
    assert [tables.format_number(x) for x in (None, 0.01234, 12.345, 999.6, 1234.5)] == [
        "–",
        "0.0123",
        "12.3",
        "1,000",
        "1,230",
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 2, "machine": {}}'])
def test_other_files_are_refused_as_reports(text: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.json").write_text(text)
    assert "is not a benchmark report" in refused(capsys, "bench", "--from", tmp_path / "x.json")


def spoil(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        report[path[-1]] = value

    return change


DAMAGED: dict[str, tuple[Callable[[Any], None], str]] = {
    "another format": (spoil("format", value=1), "format is 1, not an integer from 2 to 2"),
    "an unknown field": (spoil("machine", "gpu", value=1), "machine: unknown field 'gpu'"),
    "a text for a number": (spoil("machine", "threads", value="x"), "machine.threads is 'x'"),
    "a number for a list": (spoil("cells", 0, "seconds", value=1.0), r"cells\[0\].seconds is 1.0"),
    "a text in a list": (spoil("cells", 0, "seconds", value=["x", 1.0]), r"cells\[0\].seconds\[0\] is 'x'"),
    "no times": (spoil("cells", 0, "seconds", value=[]), r"cells\[0\].seconds is \[\]"),
    "a time of zero": (spoil("cells", 0, "against_seconds", value=[1.0, 0.0]), r"against_seconds is \[1.0, 0.0\]"),
    "times that do not pair": (spoil("cells", 0, "seconds", value=[1.0]), r"has 1 seconds, and 2 against_seconds"),
    "a negative size": (spoil("cells", 0, "state_bytes", value=-1), r"state_bytes is -1"),
    "cells that are not a list": (spoil("cells", value={}), r"cells is \{\}"),
    "no dtype": (spoil("asked", value={}), "asked has no dtype"),
    "a reason that is a number": (spoil("left_out", value=[{"optimizer": "a", "shapes": "b", "why": 5}]), "why is 5"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_report_is_one_sentence(case: str, tmp_path: Path, capsys: Capture) -> None:
    change, problem = DAMAGED[case]
    cell = replace(CELL, seconds=(1.0, 2.0), against_seconds=(1.0, 1.0))
    write(Report(MACHINE, {"dtype": "float32"}, (cell,)), tmp_path / "x.json")
    assert read(tmp_path / "x.json").cells == (cell,)
    values = json.loads((tmp_path / "x.json").read_text())
    change(values)
    (tmp_path / "x.json").write_text(json.dumps(values))
    error = refused(capsys, "bench", "--from", tmp_path / "x.json")
    assert re.search(f"x.json is not a benchmark report: .*{problem}", error), error


@pytest.mark.parametrize(("script", "function"), [("step_time", "with_figures"), ("newton_schulz", "with_table")])
def test_the_page_shows_the_figures_of_the_files(script: str, function: str) -> None:
    names = runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"))
    page = names["PAGE"].read_text(encoding="utf-8")
    assert names[function](page) == page


def test_a_row_with_fewer_pairs_is_not_left_out(capsys: Capture, tmp_path: Path) -> None:
    """``measure`` stops after three pairs, which is all that fits into the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "measure", lambda *_: CELL)
        measured = bench(BenchPlan(("adamw",), ("tiny",), steps=9999, memory=False))
    few = len(CELL.seconds)
    assert [each.why for each in measured.left_out] == [f"fewer pairs than asked: {few} of 9999"]
    write(measured, tmp_path / "few.json")
    assert run("bench", "--from", tmp_path / "few.json") == 0
    text = capsys.readouterr().out
    assert "Left out" not in text
    assert f"tiny, adamw: fewer pairs than asked: {few} of 9999." in text


def test_the_legend_explains_only_what_the_table_has() -> None:
    assert tables.legend({"optimizer", "ms", "adamw"}) == "ms: median step time."
    headings = {column.heading for column in tables.COLUMNS}
    assert {term for term, _ in tables.LEGEND} <= headings | set(SUBJECTS)
