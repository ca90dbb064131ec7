"""``pylo-zoo train``: its output and files, and the effect of a kill or Ctrl-C on the real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Capture, refused, run

from pylo_zoo.cli import training
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments.train import loop, recipes

COMMAND = [sys.executable, "-c", "import sys; from pylo_zoo.cli import main; main(sys.argv[1:])"]
SMALL = ["quadratic", "--set", "size=4", "--optimizer", "velo-sample", "--device", "cpu"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are written below the current directory."""
    monkeypatch.chdir(tmp_path)


def test_a_run_and_its_files(capsys: Capture) -> None:
    assert run("train", *SMALL, "--steps", 6) == 0
    text = capsys.readouterr().out
    assert "velo-sample, seed 0" in text
    assert "excess_loss" in text
    assert text.endswith(
        "The run is finished; see runs/quadratic-velo-sample-seed0. To train longer, start a new run with more "
        "--steps.\n"
    )
    out = Path("runs/quadratic-velo-sample-seed0")
    assert {path.name for path in out.iterdir()} == {loop.RUN, loop.METRICS, loop.CHECKPOINT, loop.RESULT}
    assert "is not empty" in refused(capsys, "train", *SMALL, "--steps", 6)
    assert run("train", "--resume", out, "--json") == 0, "a finished run has nothing left to do"
    assert json.loads(capsys.readouterr().out)["runs"][0]["resumed_at"] == 6
    assert json.loads((out / loop.RESULT).read_text())["optimizer_ms"] > 0, "and keeps its result"
    assert run("train", "--resume", out) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert again.out.count("finished") == 1
    assert run("train", "--resume", out, "--steps", 9) == 2
    assert "leave out --steps" in capsys.readouterr().err


def test_several_seeds_and_json(capsys: Capture) -> None:
    assert run("train", *SMALL, "--steps", 4, "--seeds", 2, "--seed", 5, "--out", "mine", "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(each["seed"], each["directory"]) for each in runs] == [(5, "mine/seed5"), (6, "mine/seed6")]
    assert all(each["steps"] == 4 and each["loss"] > 0 and each["optimizer_ms"] > 0 for each in runs)
    assert run("train", *SMALL, "--steps", 4, "-q", "--out", "other") == 0
    assert capsys.readouterr() == ("other\n", "")
    assert run("train", *SMALL, "--steps", 2, "--seeds", 2, "--out", "both") == 0
    assert "The runs are finished; see both/seed0, both/seed1." in capsys.readouterr().out


def test_errors_are_reported(capsys: Capture) -> None:
    assert "Did you mean 'quadratic'" in refused(capsys, "train", "quadratik", status=2)
    assert "Did you mean 'velo-sample'" in refused(capsys, "train", "quadratic", "--optimizer", "velo-sampel", status=2)
    assert "Unknown option 'sise'" in refused(capsys, "train", "quadratic", "--set", "sise=3", status=2)
    assert "Unknown schedule 'cosin'" in refused(capsys, "train", "quadratic", "--schedule", "cosin", status=2)
    assert not Path("runs").exists()
    for words in ([], ["quadratic", "--task", "a:b"], ["quadratic", "--resume", "x"]):
        assert run("train", *words) == 2
    capsys.readouterr()


def test_downloads_are_announced_first(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise ZooError("No weights.", "None.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(recipes, "load", none)
    assert run("train", "quadratic", "--optimizer", "celo2") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "celo2 is not in the cache; fetching hf://amoudgl/celo2/theta.state"
    assert lines[1].startswith("Error: ")


@pytest.mark.parametrize("name", ["velo", "celo2"])
def test_a_file_missing_offline_is_a_short_two_line_error(
    name: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLO_ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    error = refused(capsys, "train", "quadratic", "--optimizer", name, "--offline")
    assert f"{name} is not in the cache" in error
    assert f"`pylo-zoo convert {name}`" in error
    assert "://" not in error


def test_plain_lines_without_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LINE_SECONDS", 0.0)
    assert run("train", *SMALL, "--steps", 4, "--out", "a", "--threads", 1) == 0
    out, err = capsys.readouterr()
    first, *lines = err.splitlines()
    title = "quadratic, velo-sample, seed 0"
    assert first == f"{title}: 4 steps, on cpu, 1 thread (--threads)"
    assert [line.partition("  ")[0] for line in lines] == [f"{title}: step {i} of 4" for i in (1, 2, 3, 4)]
    assert all(" steps/s " in line and line.endswith(" s left") for line in lines)
    assert "Ran on cpu, 1 thread." in out
    assert run("train", "--resume", "a") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "The run is finished; see a." in out
    assert "Remove the finished run in it" in refused(capsys, "train", *SMALL, "--out", "a")


def test_a_divergence_is_reported_and_fails(capsys: Capture) -> None:
    assert run("train", "digits-mlp", "--optimizer", "sgd", "--lr", "1e9", "--steps", 20) == 1
    out, err = capsys.readouterr()
    assert "diverged" in out
    assert "Error: The loss is nan" in err or "Error: The loss is inf" in err
    assert "lr was 1e+09, and the default of sgd is 0.03: leave --lr out" in err


# --- the process -------------------------------------------------------------------------------------------------


def started(*words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, "train", *words], stdout=-1, stderr=-1, text=True, env=env)


def wait_for(steps: int, out: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        path = out / loop.METRICS
        if path.is_file() and path.read_bytes().count(b"\n") >= steps:
            return
        time.sleep(0.005)
    raise AssertionError("the run never reached the step")


def losses(out: Path) -> list[Any]:
    return [json.loads(line)["loss"] for line in (out / loop.METRICS).read_text().splitlines()]


def test_a_kill_and_an_interrupt_of_the_process(capsys: Capture) -> None:
    words = [*SMALL, "--steps", "400", "--save-every", "30"]
    assert run("train", *words, "--out", "whole", "-q") == 0
    killed, stopped = Path("killed"), Path("stopped")
    for out, number in ((killed, signal.SIGKILL), (stopped, signal.SIGINT)):
        process = started(*words, "--out", str(out))
        wait_for(70, out)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if out is killed else 130), err
        done = torch.load(out / loop.CHECKPOINT, weights_only=True)["step"]
        assert 60 <= done < 400
        if out is stopped:
            assert f"Stopped after {done} steps. Resume with: pylo-zoo train --resume stopped" in err
            assert "Traceback" not in err
        assert run("train", "--resume", out) == 0
        assert f"resuming at step {done} of 400" in capsys.readouterr().err
        assert losses(out) == losses(Path("whole"))
        ends = [
            torch.load(place / loop.CHECKPOINT, weights_only=True)["model"]["weight"] for place in (out, Path("whole"))
        ]
        assert torch.equal(*ends)
    capsys.readouterr()
