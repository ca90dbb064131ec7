"""A training run: the files that it writes, and that it resumes after a kill as if it had not been interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trees import SMALL, write_theta

from pylo_zoo import registry
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments import tasks
from pylo_zoo.experiments.train import loop, recipes, schedules
from pylo_zoo.experiments.train.loop import Run, Step, TrainPlan, train
from pylo_zoo.experiments.train.setup import Setup, read_setup
from pylo_zoo.pipeline import build_artifact

STEPS = 9


def run_of(out: Path | None, optimizer: str = "velo-sample", **plan: Any) -> Run:
    task = tasks.make("quadratic", {"size": 4, "noise": 0.1})
    return Run(
        task,
        recipes.find_recipe(optimizer),
        TrainPlan(**{"steps": STEPS, "save_every": 4, "evaluate_every": 3, **plan}),
        out,
    )


def without_times(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics without the fields that differ between runs."""
    lines = [json.loads(line) for line in (out / loop.METRICS).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / loop.CHECKPOINT, weights_only=True)["model"]


@pytest.mark.parametrize("optimizer", ["velo-sample", "muon", "adamw", "sgd"])
def test_a_run_killed_at_any_step_resumes_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    losses = train(run_of(whole, optimizer)).losses
    assert len(losses) == STEPS
    for killed_at in range(STEPS + 1):
        out = tmp_path / f"killed at {killed_at}"
        run = run_of(out, optimizer)
        run.begin()
        for _ in itertools.islice(run.steps(), killed_at):
            pass
        again = run_of(out, optimizer)
        result = train(again, resume=True)
        assert result.losses == losses
        assert result.resumed_at == (STEPS if killed_at == STEPS else killed_at // 4 * 4)
        assert without_times(out) == without_times(whole)
        assert torch.equal(weights(out)["weight"], weights(whole)["weight"])
        assert (
            json.loads((out / loop.RESULT).read_text())["loss"] == json.loads((whole / loop.RESULT).read_text())["loss"]
        )


def test_the_files_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    result = train(run_of(out))
    lines = without_times(out)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["loss"] for line in lines] == result.losses
    assert [line["step"] + 1 for line in lines if "evaluation" in line] == [3, 6, 9] == sorted(result.evaluations)
    described = json.loads((out / loop.RUN).read_text())
    assert described["options"] == {"size": 4, "condition": 1e4, "noise": 0.1, "batch_size": 1}
    assert described["weights"] == recipes.find_recipe("velo-sample").artifact.fingerprint  # pyright: ignore
    found = json.loads((out / loop.RESULT).read_text())
    assert (found["steps"], found["diverged"], found["evaluation"]) == (STEPS, None, result.final)
    assert found["state_bytes"] > 4 * 16 * 4, "momentum with three decays, and the second moment"
    assert {path.name for path in out.iterdir()} == {loop.RUN, loop.METRICS, loop.CHECKPOINT, loop.RESULT}


def test_optimizers_see_the_same_data_and_weights() -> None:
    first = [train(run_of(None, name, steps=1)).losses[0] for name in ("velo-sample", "adamw", "muon")]
    assert len(set(first)) == 1
    assert train(run_of(None, "adamw", steps=1, seed=1)).losses[0] != first[0]


class Breaking(torch.nn.Module):
    """A loss that becomes NaN after a while."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2))
        self.left = after

    def forward(self) -> torch.Tensor:
        self.left -= 1
        return self.weight.sum() * (float("nan") if self.left < 0 else 1.0)


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    task = tasks.Task(
        "breaking",
        "a loss that breaks",
        lambda seed: Breaking(6),
        lambda seed, step: (),
        lambda model, batch: model(),
        lambda model: {"nothing": 0.0},
    )
    run = Run(task, recipes.find_recipe("adamw"), TrainPlan(STEPS, save_every=4), tmp_path / "run")
    result = train(run)
    assert result.diverged is not None
    assert "The loss is nan at step 6" in result.diverged
    assert "The last checkpoint is in" in result.diverged
    assert torch.load(tmp_path / "run" / loop.CHECKPOINT, weights_only=True)["step"] == 4
    assert weights(tmp_path / "run")["weight"].isfinite().all()
    assert json.loads((tmp_path / "run" / loop.RESULT).read_text())["diverged"] == result.diverged


def test_an_interrupt_finishes_the_step_and_saves(tmp_path: Path) -> None:
    import signal

    out = tmp_path / "run"
    run = run_of(out, save_every=0)

    def press(step: Step) -> None:
        if step.step == 4:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(run, on_step=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(out / loop.CHECKPOINT, weights_only=True)["step"] == 5
    assert train(run_of(out, save_every=0), resume=True).losses == train(run_of(None)).losses


def test_a_directory_in_use_and_another_run_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run_of(out))
    with pytest.raises(ZooError, match="is not empty"):
        train(run_of(out))
    with pytest.raises(ZooError, match="contains another run: plan differ"):
        train(run_of(out, seed=1), resume=True)
    with pytest.raises(ZooError, match="contains another run: recipe, weights differ"):
        train(run_of(out, "adamw"), resume=True)
    with pytest.raises(ZooError, match="contains no run"):
        train(run_of(tmp_path / "nothing"), resume=True)


CHECKPOINT = {"step": 8, "model": {}, "optimizer": {}, "random": torch.get_rng_state(), "cuda_random": None}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint",
        [1, 2],
        torch.ones(3),
        CHECKPOINT,
        {**CHECKPOINT, "evaluations": 5},
        {**CHECKPOINT, "step": -1},
        {**CHECKPOINT, "step": 10**9},
        {**CHECKPOINT, "step": "many"},
        {**CHECKPOINT, "model": 5},
    ],
    ids=["empty", "text", "a list", "a tensor", "keys", "evaluations", "negative", "too many", "words", "model"],
)
def test_a_damaged_checkpoint_is_one_error(content: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run_of(out))
    path = out / loop.CHECKPOINT
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ZooError, match=r"checkpoint\.pt cannot be read: .") as error:
        train(run_of(out), resume=True)
    assert error.value.hint == "Start a new run in another directory."


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{", b'{"loss": []}\n' * 20])
def test_damaged_metrics_are_one_error(content: bytes | None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run_of(out))
    path = out / loop.METRICS
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ZooError, match=r"metrics\.jsonl (is damaged|has)"):
        train(run_of(out), resume=True)


def test_a_full_disk_is_reported_before_training_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ZooError, match="1,000 bytes left"):
        train(run_of(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="cannot be written"):
        train(run_of(tmp_path / "file" / "run"))


# --- schedules and recipes ---------------------------------------------------------------------------------------


def test_schedules() -> None:
    for name in schedules.SCHEDULES:
        result = [schedules.factor(name, step, 100, 10) for step in range(100)]
        assert result[:10] == [(step + 1) / 11 for step in range(10)]
        assert result[10] == 1.0
        assert all(0 <= b <= a for a, b in itertools.pairwise(result[10:]))
        assert (result[-1] == 1.0) == (name == "constant")
    assert schedules.factor("cosine", 55, 100, 10) == pytest.approx(0.5)
    assert schedules.factor("wsd", 80, 100) == pytest.approx(1.0)
    assert schedules.factor("wsd", 90, 100) == pytest.approx(0.5)
    with pytest.raises(ZooError, match="Did you mean 'cosine'"):
        schedules.check("cosin")


def test_the_learning_rate_follows_the_schedule_of_every_group() -> None:
    run = Run(tasks.make("digits-mlp"), recipes.find_recipe("muon", schedule="linear", warmup=0.0), TrainPlan(4))
    recorded = [[group["lr"] for group in run.optimizer.param_groups] for _ in run.steps()]
    assert [each[0] / run.base[0] for each in recorded] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert all(each[1] / run.base[1] == pytest.approx(each[0] / run.base[0]) for each in recorded)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adamm", {}, "Did you mean 'adamw'"),
        ("elo-celo3", {}, "Did you mean 'elo-celo2'"),
        ("adamw", {"weights": "velo-sample"}, "has no weights"),
        ("celo", {"weights": "velo-sample"}, "belongs to the family velo, not celo"),
    ],
)
def test_invalid_recipes(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError) as error:
        recipes.find_recipe(name, **arguments)
    assert message in str(error.value)


def test_a_family_with_weights() -> None:
    recipe = recipes.find_recipe("velo", weights="velo-sample", lr=0.5, schedule=None)
    assert (recipe.label, recipe.lr, recipe.schedule, recipe.needs_loss) == ("velo", 0.5, "constant", True)
    assert recipes.needs_download("velo-sample") is None
    assert recipes.needs_download("adamw") is None
    assert "hf://amoudgl/celo/theta.state" in (recipes.needs_download("celo") or "")


def test_a_directory_of_that_name_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("velo").mkdir()
    assert recipes.needs_download("velo") is None
    with pytest.raises(ZooError) as error:  # like weights=: the directory, artifact or not
        recipes.find_recipe("velo")
    assert "velo" in str(error.value)


@pytest.mark.parametrize(("lr", "message"), [(1e9, "leave --lr out, or try --lr 0.01."), (0.03, "try --lr 0.01.")])
def test_the_remedy_for_a_divergence(lr: float, message: str) -> None:
    assert recipes.find_recipe("sgd", lr=lr).remedy.endswith(message)
    assert "the default of sgd is 0.03" in recipes.find_recipe("sgd", lr=lr).remedy
    assert recipes.find_recipe("velo-sample", lr=9.0).default_lr == 1.0


# --- requests ----------------------------------------------------------------------------------------------------


def test_a_setup_is_restored_from_its_directory(tmp_path: Path) -> None:
    setup = Setup("quadratic", "velo-sample", {"size": 3}, steps=5, seed=2, lr=0.5, device="cpu")
    train(setup.build(tmp_path / "run"))
    assert read_setup(tmp_path / "run") == setup
    train(run_of(tmp_path / "other"))
    with pytest.raises(ZooError, match="not started by"):
        read_setup(tmp_path / "other")
    with pytest.raises(ZooError, match="contains no run"):
        read_setup(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0. It must be at least 1"),
        ({"lr": -1.0}, "lr is -1"),
        ({"warmup": 2.0}, "a fraction from 0 to 1"),
        ({"schedule": "no"}, "Unknown schedule 'no'"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_invalid_numbers_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError) as error:
        Setup("quadratic", "adamw", **changed).build(None)
    assert message in str(error.value)


def test_cached_files_need_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that was converted from a local file is in the cache, so no download is announced."""
    entry = registry.get("celo")
    source = write_theta(tmp_path, "celo")
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    pinned = dataclasses.replace(
        entry,
        sources=(dataclasses.replace(entry.weights, sha256=sha256, bytes=source.stat().st_size),),
        architecture=SMALL["celo"],
    )
    monkeypatch.setattr(registry, "load_registry", lambda path=None: {"celo": pinned})
    assert recipes.needs_download("celo") == "hf://amoudgl/celo/theta.state"
    build_artifact("celo", source=source, out=tmp_path / "out", verify=False)
    assert recipes.needs_download("celo") is None
