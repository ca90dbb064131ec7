"""The examples run, at toy size, as a reader would run them."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trees import write_theta

from pylo_zoo import artifact
from pylo_zoo.convert import convert

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TOY = ("--steps", 6, "--every", 3, "--batch", 2, "--context", 16, "--width", 16, "--depth", 1, "--heads", 2)


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The output of ``python examples/NAME WORDS``, run in this process, which has torch loaded."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


Example = Callable[..., str]


def losses(shown: str) -> dict[int, str]:
    """The printed values by step, without the speed."""
    return {
        int(step): figures
        for step, figures in re.findall(r"^step +(\d+)  (loss .*?)(?:  [\d.]+ steps/s)?$", shown, re.M)
    }


@pytest.mark.parametrize("optimizer", ["velo", "adamw"])
def test_the_plain_loop_learns(example: Example, optimizer: str) -> None:
    result = losses(example("loop.py", "--optimizer", optimizer, "--steps", 120))
    assert list(result) == [0, 100, 119]
    first, *_, last = (float(figures.split()[1]) for figures in result.values())
    assert last < first / 4


def test_the_plain_loop_uses_only_the_optimizer_from_pylo_zoo() -> None:
    text = (ROOT / "examples" / "loop.py").read_text(encoding="utf-8")
    assert re.findall(r"pylo_zoo\S*.*", text) == ["pylo_zoo.optim import VeLO"]
    assert len(text.splitlines()) <= 45


def test_the_gpt_resumes_after_an_interruption(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VeLO with its loss, accumulation, clipping and bfloat16 repeats the second half exactly."""
    save = torch.save

    def kept(what: dict[str, Any], path: Path) -> None:
        for target in (path, tmp_path / "half.pt") if what["step"] == 3 else (path,):
            save(what, target)

    monkeypatch.setattr(torch, "save", kept)
    words = (*TOY, "--every", 1, "--accumulate", 2, "--clip", 1, "--bf16", "--text", ROOT / "README.md")
    whole = losses(example("nanogpt.py", *words, "--out", tmp_path / "whole.pt"))
    half = losses(example("nanogpt.py", *words, "--out", tmp_path / "half.pt"))
    assert list(whole) == [0, 1, 2, 3, 4, 5]
    assert half == {step: whole[step] for step in (3, 4, 5)}
    again = example("nanogpt.py", *words, "--out", tmp_path / "half.pt")
    assert losses(again) == {}
    assert f"The run in {tmp_path / 'half.pt'} is finished. To start a new one, remove it" in again
    with pytest.raises(SystemExit, match="contains another model"):
        example("nanogpt.py", *words, "--width", 8, "--out", tmp_path / "half.pt")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adamm", "Did you mean 'adamw'"),
        ("velo-sampel", "Did you mean 'velo-sample'"),
        ("nope", "Use one of adamw, muon, velo"),
    ],
)
def test_the_gpt_suggests_the_nearest_optimizer(example: Example, name: str, hint: str) -> None:
    with pytest.raises(SystemExit, match=f"Error: Unknown optimizer '{name}'.\nHint: {hint}"):
        example("nanogpt.py", *TOY, "--optimizer", name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "celo2"])
def test_the_gpt_trains_with(example: Example, optimizer: str, tmp_path: Path) -> None:
    name = optimizer
    if optimizer == "celo2":
        converted = convert("celo2", source=write_theta(tmp_path, "celo2", scale=0.1))
        name = str(artifact.write(converted, tmp_path / "celo2"))
    result = losses(example("nanogpt.py", *TOY, "--optimizer", name))
    assert list(result) == [0, 3, 5]
    assert "nan" not in str(result)


def test_two_processes_reproduce_the_run_of_one(example: Example) -> None:
    """Each process takes half of the micro-batches; both step with the mean of gradients and losses."""
    if sys.platform != "linux":
        pytest.skip("torchrun is tested only on Linux")
    words = (*TOY, "--accumulate", 4)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(EXAMPLES / "nanogpt.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    one, two = losses(example("nanogpt.py", *words)), losses(done.stdout)
    assert one.keys() == two.keys()
    for step, figures in one.items():
        numbers = [[float(each) for each in re.findall(r"\d+\.\d+", side)] for side in (figures, two[step])]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)


def test_the_demo_script_runs(example: Example) -> None:
    pytest.importorskip("sklearn")
    shown = example("digits.py", "--steps", 30)
    assert "velo-sample (hand-set)" in shown
    assert "AdamW, lr 0.01" in shown


def test_the_coordinate_check_runs(example: Example, tmp_path: Path) -> None:
    converted = convert("mulo", source=write_theta(tmp_path, "mulo", scale=0.1))
    directory = artifact.write(converted, tmp_path / "mulo")
    shown = example("coordinate_check.py", "--weights", directory, "--widths", 64, 128, "--steps", 1)
    assert "width/64" in shown
    assert "exponent" in shown
