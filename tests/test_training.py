"""Real training: the published Celo, and the hand-set VeLO that ships, on scikit-learn's digits."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_data import CELO

from pylo_zoo import load
from pylo_zoo.convert import convert
from pylo_zoo.experiments.tasks import digits
from pylo_zoo.optim import Celo, VeLO
from pylo_zoo.samples import velo_sample

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
STEPS = 1000


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_published_celo_trains_untuned(seed: int) -> None:
    """Its JAX original reaches 1e-5 to 7e-5 over three seeds; Adam with the best of four rates reaches 3e-4 to 6e-4."""
    model = digits.classifier(seed)
    optimizer = Celo(model.parameters(), num_steps=STEPS, weights=convert("celo", source=CELO))
    losses = digits.train(model, optimizer, digits.load_digits(), STEPS, seed)
    assert np.mean(losses[-20:]) < 1e-3


def test_the_hand_set_velo_trains() -> None:
    model = digits.classifier(0)
    start = digits.accuracy(model, digits.load_digits())
    optimizer = VeLO(model.parameters(), num_steps=STEPS, weights="velo-sample")
    losses = digits.train(model, optimizer, digits.load_digits(), STEPS, 0)
    assert np.mean(losses[-20:]) < 0.01
    assert digits.accuracy(model, digits.load_digits()) > 0.95 > 0.3 > start


def test_the_script_reproduces_the_shipped_sample(tmp_path: Path) -> None:
    velo_sample.main(tmp_path)
    shipped = Path(velo_sample.__file__).parent / "velo-sample"
    for name in ("params", "config.gin"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_the_sample_follows_the_rule_that_its_script_describes() -> None:
    """Its first step is the RMS-normalized gradient at the peak step size, relative to the RMS of the parameter."""
    p = torch.nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    start, gradient = p.detach().clone(), torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    optimizer = VeLO([p], num_steps=10_000, weights="velo-sample")
    p.grad = gradient
    optimizer.step(loss=1.0)
    step = (start - p.detach()) / (0.001 * start.square().mean().sqrt())
    normalized = gradient / (0.001 * gradient.square() + 1e-6).sqrt()
    normalized /= normalized.square().mean().sqrt()
    torch.testing.assert_close(step / step.square().mean().sqrt(), normalized, rtol=1e-3, atol=1e-3)
    assert step.square().mean().sqrt().item() == pytest.approx(velo_sample.PEAK, rel=0.02)


def test_bfloat16_increases_the_loss_and_master_weights_prevent_it() -> None:
    """As in docs/optimizers.md: 0.227 without, 0.114 with it and in float32, over three seeds."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "precision.py"))
    (build, *_) = script["builders"](["velo-sample"]).values()
    runs = ("float32", "bfloat16", "bfloat16, master")
    exact, rounded, mastered = (script["final_loss"](build, run, seeds=1) for run in runs)
    assert rounded > 1.3 * exact
    assert mastered == pytest.approx(exact, rel=0.1)


def test_load_accepts_names_directories_and_artifacts() -> None:
    artifact = load("velo-sample")
    assert load(artifact) is artifact
    assert artifact.family == "velo"
    assert artifact.behavior.ff_mult == velo_sample.FF_MULT
