"""Small end-to-end comparisons: what is trained, what is written, and how an interrupted one continues."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Capture, refused, run
from rich.console import Console

from pylo_zoo.cli import compare_cmd, comparing, complete
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments.compare import machine, memory, plan, plots, report, running, words
from pylo_zoo.experiments.compare.figures import RunRecord
from pylo_zoo.experiments.compare.plan import TUNING_SEED, CompareRequest, plan_comparison
from pylo_zoo.experiments.compare.running import NullMonitor, run_all
from pylo_zoo.experiments.train.loop import Run, Step

SMALL = {"size": 8, "noise": 0.02}
WANTED = CompareRequest("quadratic", ["adamw", "velo-sample"], SMALL, seeds=2, steps=40)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the processes that measure memory."""
    monkeypatch.setattr(report, "measured", lambda *words: memory.Peak(None, "not measured"))


def compared(out: Path, wanted: CompareRequest = WANTED, watch: running.Monitor | None = None) -> report.Results:
    comparison = plan_comparison(wanted)
    running.prepare(comparison, out)
    outcomes = run_all(comparison, out, watch)
    results = report.results(comparison, outcomes, command="pylo-zoo compare", memory=False)
    report.write(results, outcomes, out)
    return results


def without_times(results: Any) -> Any:
    """``results`` without the fields that differ between runs."""
    if isinstance(results, dict):
        return {key: without_times(value) for key, value in results.items() if key not in (*report.TIMES, "notes")}
    return [without_times(each) for each in results] if isinstance(results, list) else results


# --- training ----------------------------------------------------------------------------------------------------


def test_every_optimizer_gets_the_same_weights_and_batches() -> None:
    comparison = plan_comparison(CompareRequest("digits-mlp", ["adamw", "sgd", "velo-sample"], {"width": 8}, steps=3))
    recorded: list[list[torch.Tensor]] = []
    for entrant in comparison.entrants:
        trained = Run(comparison.task, entrant.recipe, running.TrainPlan(3, seed=1))
        torch.rand(7)  # anything else that draws random numbers
        weights = [p.detach().clone() for p in trained.model.parameters()]
        recorded.append([*weights, *(each for step in range(3) for each in comparison.task.batch(1, step))])
    for other in recorded[1:]:
        assert all(map(torch.equal, recorded[0], other))


def test_initial_losses_are_equal_and_only_baselines_are_tuned(tmp_path: Path) -> None:
    results = compared(tmp_path / "out")
    adamw, sample = results["optimizers"]
    assert [each["initial_loss"] for each in adamw["runs"]] == [each["initial_loss"] for each in sample["runs"]]
    assert sample["tuning"] is None
    assert sample["hand_set"]
    tuning = adamw["tuning"]
    assert tuning["runs"] == 5 + tuning["extended"]
    assert tuning["steps"] == 40 * tuning["runs"]
    assert tuning["loss"] == min(each["loss"] for each in tuning["trials"] if each["loss"] is not None)
    assert adamw["lr"] == tuning["lr"]
    assert adamw["cost"]["runs"] == 2 + tuning["runs"]
    assert adamw["cost"]["steps"] == 80 + tuning["steps"]
    assert TUNING_SEED not in results["seeds"]
    assert "hand" in " ".join(results["notes"])


def test_runs_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    class Noting(NullMonitor):
        def done(self, title: str, record: RunRecord) -> None:
            order.append(title)

    compared(
        tmp_path / "out", CompareRequest("quadratic", ["sgd", "adamw"], SMALL, seeds=2, steps=3, tune=[]), Noting()
    )
    assert [title.replace(", lr 0.03", "").replace(", lr 0.003", "") for title in order] == [
        "sgd, seed 0",
        "adamw, seed 0",
        "sgd, seed 1",
        "adamw, seed 1",
    ]


def test_a_diverging_optimizer_is_a_result(tmp_path: Path) -> None:
    wanted = CompareRequest("quadratic", ["adamw", "sgd"], SMALL, seeds=2, steps=40, tune=[], lrs={"sgd": 1e4})
    results = compared(tmp_path / "out", wanted)
    assert results["optimizers"][1]["diverged"] == 2
    assert results["optimizers"][1]["loss"] is None
    assert "Diverged: sgd in 2 of 2." in results["verdict"]
    assert "✕ 2 of 2" in (tmp_path / "out/report.md").read_text()
    assert "sgd" in results["verdict"].partition("Diverged")[2]


# --- interruptions -----------------------------------------------------------------------------------------------


def test_an_interrupted_comparison_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    wanted = CompareRequest("quadratic", ["adamw", "muon"], SMALL, seeds=2, steps=120, tune=["adamw"], tune_steps=20)
    whole = compared(tmp_path / "whole", wanted)

    class Interrupting(NullMonitor):
        steps = 0

        @contextmanager
        def run(self, title: str, label: str, run: Run) -> Iterator[Callable[[Step], None]]:
            def listen(step: Step) -> None:
                self.steps += 1
                if self.steps == 200:  # in the middle of a run, after one of its checkpoints
                    raise KeyboardInterrupt

            yield listen

    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "cut", wanted, Interrupting())
    cut = compared(tmp_path / "cut", wanted)
    assert without_times(cut) == without_times(whole)
    assert not list((tmp_path / "cut").rglob("checkpoint.pt")), "a finished run needs no download"

    class Refusing(NullMonitor):
        def run(self, title: str, label: str, run: Run) -> Any:
            raise AssertionError(f"{title} was run again")

    assert without_times(compared(tmp_path / "cut", wanted, Refusing())) == without_times(whole)


def test_a_finished_comparison_is_reported_unchanged(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Machine, load, date and memory are those of the runs, not of the later report."""
    measured_optimizers: list[str] = []

    def measured(task: str, options: object, optimizer: str, device: str) -> memory.Peak:
        measured_optimizers.append(optimizer)
        return memory.Peak(7, memory.METHODS["linux"])

    monkeypatch.setattr(report, "measured", measured)
    words = ("compare", *TINY, "--optimizers", "adamw,velo-sample", "--out", "out")
    monkeypatch.setattr(machine, "load", lambda: 99.0)
    assert run(*words) == 0
    assert measured_optimizers == ["adamw", "velo-sample"]
    capsys.readouterr()
    first = json.loads(Path("out/results.json").read_text())
    assert first["machine"]["load"] == {"min": 99.0, "max": 99.0}
    assert first["machine"]["busy_runs"] == first["machine"]["runs"] == 2
    assert first["optimizers"][0]["runs"][0]["load"] == 99.0
    assert "The machine was busy in 2 of 2 runs" in " ".join(first["notes"])
    monkeypatch.setattr(machine, "load", lambda: 0.0)
    assert run(*words) == 0
    assert capsys.readouterr().err == f"Already finished: {Path('out/report.html')}\n"
    assert json.loads(Path("out/results.json").read_text()) == first
    assert len(measured_optimizers) == 2, "memory is not measured again"
    assert run(*words, "--optimizers", "adamw,velo-sample,muon") == 0
    err = capsys.readouterr().err
    assert err.splitlines()[0].startswith("3 runs, 2 of them already done, about ")
    assert err.splitlines()[1].startswith("3/3  muon, lr 0.02, seed 0: loss ")
    grown = json.loads(Path("out/results.json").read_text())
    assert measured_optimizers[2:] == ["muon"]
    assert (grown["machine"]["load"], grown["machine"]["busy_runs"]) == ({"min": 0.0, "max": 99.0}, 2)


def test_seeds_can_be_added_but_steps_cannot_change(tmp_path: Path) -> None:
    wanted = CompareRequest("quadratic", ["adamw"], SMALL, seeds=1, steps=5, tune=[])
    compared(tmp_path / "out", wanted)
    assert (
        len(
            compared(tmp_path / "out", CompareRequest("quadratic", ["adamw"], SMALL, 2, 5, []))["optimizers"][0]["runs"]
        )
        == 2
    )
    with pytest.raises(ZooError, match=r"another comparison: --steps is 5 there and 6 here\. "):
        compared(tmp_path / "out", CompareRequest("quadratic", ["adamw"], SMALL, 1, 6, []))
    with pytest.raises(ZooError, match=r"--tune-steps is 5 there and 3 here; --threads is 1 there and 2 here\. "):
        compared(tmp_path / "out", CompareRequest("quadratic", ["adamw"], SMALL, 1, 5, [], tune_steps=3, threads=2))
    torch.set_num_threads(1)


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    wanted = CompareRequest("quadratic", ["adamw"], SMALL, seeds=1, steps=5, tune=[])
    compared(tmp_path / "out", wanted)
    next((tmp_path / "out").rglob("metrics.jsonl")).write_text("{")
    with pytest.raises(ZooError, match=r"adamw-lr0\.003-seed0 is damaged"):
        compared(tmp_path / "out", wanted)


# --- outputs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    compared(out)
    return out


def test_markdown_shows_the_numbers_of_the_results(results_directory: Path) -> None:
    results = json.loads((results_directory / report.RESULTS).read_text())
    lines = [line for line in (results_directory / report.MARKDOWN).read_text().splitlines() if line.startswith("| ")]
    for each, line in zip(results["optimizers"], lines[2:], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0].startswith(each["label"])
        shown = [float(value) for value in re.findall(r"\d[\d.]*(?:e-?\d+)?", cells[2])]
        loss = each["loss"]
        assert shown == pytest.approx([loss["mean"], loss["min"], loss["max"]], rel=5e-3)
        assert float(cells[1].split(",")[0]) == pytest.approx(each["lr"], rel=5e-3)
        assert float(cells[7].split()[0]) == pytest.approx(each["state_bytes_per_parameter"], rel=5e-3)
        losses = [one["loss"] for one in each["runs"]]
        assert loss["mean"] == pytest.approx(sum(losses) / len(losses))


def test_the_page_is_self_contained(results_directory: Path) -> None:
    page = (results_directory / report.PAGE).read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("data:image/png;base64,") == 4
    assert str(results_directory) not in page


def test_figures_are_valid_images(results_directory: Path) -> None:
    from matplotlib import image

    names = {"loss-steps.png", "loss-seconds.png", "held-out.png", "optimizer-time.png"}
    assert {path.name for path in results_directory.glob("*.png")} == names
    for name in names:
        pixels = image.imread(results_directory / name)
        assert pixels.shape[1] == 1200
        assert pixels[..., :3].std() > 0.02, "the image is not blank"


def test_the_same_runs_draw_the_same_bytes(results_directory: Path) -> None:
    comparison = plan_comparison(WANTED)
    outcomes = run_all(comparison, results_directory)
    results = report.results(comparison, outcomes, command="", memory=False)
    for name, data in plots.draw(results, outcomes).items():
        assert data == (results_directory / name).read_bytes(), name


def test_names_with_markup_and_missing_glyphs(results_directory: Path, tmp_path: Path) -> None:
    from pylo_zoo.experiments.compare import markdown, page

    results = json.loads((results_directory / report.RESULTS).read_text())
    results["optimizers"][0]["label"] = "<b>x</b>|$y^2_"
    assert "<b>x</b>|" not in page.render_page(results, {})
    assert "<b>" not in markdown.render_comparison(results)


# --- the command -------------------------------------------------------------------------------------------------

TINY = ("quadratic", "--set", "size=4", "--seeds", "1", "--steps", "5", "--tune", "none")


def test_the_command_shows_and_writes(no_memory: None, capsys: Capture, tmp_path: Path) -> None:
    words = ("compare", *TINY, "--optimizers", "adamw,velo-sample", "--schedule", "linear", "--lr", "adamw=0.01")
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("With one seed")
    assert "velo-sample" in out
    assert re.fullmatch(
        r"2 runs, about .* s of training left, then memory and figures, a few seconds per optimizer",
        err.splitlines()[0],
    )
    assert err.splitlines()[1].startswith("1/2  adamw, lr 0.01, seed 0: loss ")
    results = json.loads(Path("runs/compare-quadratic/results.json").read_text())
    assert [each["schedule"] for each in results["optimizers"]] == ["linear", "constant"]
    assert run(*results["command"].split()[1:], "-q") == 0, "the command repeats the comparison"
    out, err = capsys.readouterr()
    assert out.startswith("With one seed")
    assert err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizers", "adamm"), "Did you mean 'adamw'?"),
        (("--optimizers", "adamw,velo-smple"), "Did you mean 'velo-sample'?"),
        (("--optimizers", "adamw,adamw"), "adamw is named twice"),
        (("--optimizers", ","), "No optimizer is named"),
        (("--optimizers", "adamw", "--tune", "adamv"), "Did you mean 'adamw'?"),
        (("--optimizers", "adamw", "--lr", "muon=1"), "--lr names 'muon'"),
        (("--optimizers", "adamw", "--lr", "adamw"), "is not NAME=X"),
        (("--optimizers", "adamw", "--lr", "adamw=nan"), "above 0"),
        (("--optimizers", "adamw", "--lr", "adamw=1", "--tune", "adamw"), "Leave one of the two out"),
        (("--optimizers", "adamw", "--schedule", "cosin"), "Did you mean 'cosine'?"),
        (("--optimizers", "adamw", "--device", "cudda"), "device is 'cudda'"),
    ],
)
def test_wrong_arguments_are_errors(words: tuple[str, ...], message: str, capsys: Capture) -> None:
    assert message in refused(capsys, "compare", *TINY, *words, status=2)
    assert not Path("runs").exists(), "nothing was started"


@pytest.mark.parametrize("lr", [10**400, -(10**400), float("nan"), float("inf"), 0, True])
def test_a_learning_rate_is_a_positive_float(lr: Any) -> None:
    with pytest.raises(ZooError, match="The learning rate of adamw is ") as error:
        plan_comparison(CompareRequest("quadratic", ["adamw"], SMALL, lrs={"adamw": lr}))
    assert len(str(error.value)) < 200


def test_a_download_is_announced_before_training_starts(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLO_ZOO_CACHE", "empty")
    monkeypatch.setenv("HF_HOME", "empty")
    assert run("compare", *TINY, "--optimizers", "adamw,celo", "--offline") == 1
    assert capsys.readouterr().err.startswith("Error: "), "offline, nothing is fetched"

    def unreachable(*words: object, **options: object) -> None:
        raise ZooError("No weights.", "None.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(plan, "plan_comparison", unreachable)
    assert run("compare", *TINY, "--optimizers", "adamw,celo") == 1
    assert capsys.readouterr().err.startswith("celo is not in the cache; fetching hf://")
    assert not Path("runs").exists()


def test_places_that_cannot_be_written(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    Path("full").mkdir()
    (Path("full") / "other").write_text("")
    assert "cannot be written" in refused(capsys, "compare", *TINY, "--optimizers", "adamw", "--out", "file/x", "-q")
    assert "is not empty" in refused(capsys, "compare", *TINY, "--optimizers", "adamw", "--out", "full", "-q")
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    error = refused(capsys, "compare", *TINY, "--optimizers", "adamw", "--out", "new", "-q")
    assert "1,000 bytes left" in error
    assert not list(Path("new").rglob("run.json"))


def test_ctrl_c_shows_how_to_continue(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    ends: list[int] = []

    def end(status: int) -> None:
        ends.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(running, "train", interrupted)
    monkeypatch.setattr(os, "_exit", end)
    assert run("compare", *TINY, "--optimizers", "adamw") == 130
    err = capsys.readouterr().err
    assert "Resume with: pylo-zoo compare quadratic --optimizers adamw --seeds 1 --steps 5 --tune none" in err
    assert ends == [130]


def test_without_matplotlib_nothing_is_trained(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ZooError("The figures need matplotlib, which is not installed.", "Run pip install 'pylo-zoo[train]'.")

    monkeypatch.setattr(plots, "check", missing)
    assert "pylo-zoo[train]" in refused(capsys, "compare", *TINY, "--optimizers", "adamw")


# --- the terminal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 160])
def test_no_figure_is_broken_on_a_narrow_terminal(results_directory: Path, width: int) -> None:
    results = json.loads((results_directory / report.RESULTS).read_text())
    console = Console(width=width, file=io.StringIO())
    console.print(comparing.table(results, console))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for each in results["optimizers"]:
        assert each["label"] in shown
        for part in filter(None, words.parts(words.mean_and_range(each["loss"]))):
            assert part in shown


def test_every_field_of_a_comparison_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs/training.md").read_text()
    for title, fields in (
        ("`comparison.json`", plan_comparison(WANTED).shared()),
        ("`results.json`", compared(Path("out"))),
    ):
        table = text.partition(f"| {title} |")[2].partition("\n\n")[0]
        rows = [line.split("|")[1] for line in table.splitlines()[2:]]
        assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(fields)
    assert set(running.OPTION_NAMES) == set(plan_comparison(WANTED).shared())


def test_completion_offers_every_task() -> None:
    from pylo_zoo.experiments.tasks import TASKS

    assert set(complete.TASKS) == set(TASKS)
    assert compare_cmd.EXAMPLES
