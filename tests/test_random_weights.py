"""``random:FAMILY`` stands for random weights wherever a name of weights is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, run
from contract_table import same_state
from torch import nn

import pylo_zoo
from pylo_zoo import converters, weights
from pylo_zoo.compat.pylo import VeLO_naive
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments.bench import subjects
from pylo_zoo.experiments.train import recipes
from pylo_zoo.optim import optimizer_class


@pytest.mark.parametrize("family", converters.OWN)
def test_every_family_has_random_weights_and_they_are_deterministic(family: str) -> None:
    cls: Any = optimizer_class(family)
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        horizon = {"num_steps": 10} if cls.needs_loss else {}
        optimizer = cls(model.parameters(), weights=f"random:{family}", **horizon)
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step(loss=1.0)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        states.append(optimizer.state_dict())
    assert same_state(*states)
    loaded = pylo_zoo.load(f"random:{family}")
    assert (loaded.family, loaded.name, loaded.parity) == (family, f"random:{family}", None)
    assert recipes.find_recipe(f"random:{family}").artifact.fingerprint == loaded.fingerprint  # pyright: ignore
    assert recipes.find_recipe(family, weights=f"random:{family}").label == family
    assert subjects.find_subject(f"random:{family}").weights == f"random:{family}"


def test_pylo_optimizers_accept_random_weights() -> None:
    key = "random:velo"
    assert VeLO_naive(nn.Linear(2, 2).parameters(), hf_key_rnn=key, hf_key_mlp=key).artifact.name == key


@pytest.mark.parametrize("find", [pylo_zoo.load, recipes.find_recipe, subjects.find_subject])
@pytest.mark.parametrize(("name", "suggestion"), [("random:celo3", "celo"), ("random:Adafac_MLP", "adafac-mlp")])
def test_an_unknown_family_is_an_error_with_a_suggestion(find: Any, name: str, suggestion: str) -> None:
    with pytest.raises(ZooError, match=rf"Unknown family.*Did you mean '{suggestion}"):
        find(name)


def test_random_weights_are_not_pulled() -> None:
    with pytest.raises(ZooError, match="random:celo2 stands for random weights"):
        weights.pull("random:celo2")


def test_the_command_line_accepts_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "quadratic", "--set", "size=4", "--steps", "2", "-q", "--json")
    for number, chosen in enumerate((["--optimizer", "random:elo"], ["--optimizer", "elo", "--weights", "random:elo"])):
        assert run(*words, *chosen, "--out", tmp_path / str(number)) == 0
        assert json.loads((tmp_path / str(number) / "result.json").read_text())["steps"] == 2
    capsys.readouterr()
    assert "Did you mean 'celo" in refused(capsys, "train", "quadratic", "--optimizer", "random:celo3", status=2)
