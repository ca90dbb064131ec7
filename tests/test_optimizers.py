"""Properties of single optimizers, in addition to the contract of all (test_contract_*.py)."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_table import TABLE, give_gradients, make, parameters
from displaced_runs import displaced
from golden_data import artifact
from margins import check_close
from rounding import gamma
from torch import nn

from pylo_zoo import converters, usage
from pylo_zoo.artifact import write
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, VeLO
from pylo_zoo.weights import load


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(ZooError, match=r"VeLO cannot run .* celo2 checkpoint"):
        VeLO(parameters(), num_steps=5, weights=artifact("celo2"))


def test_a_registry_entry_of_another_family_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("pylo_zoo.optim.base.load", fetch)
    with pytest.raises(ZooError, match="VeLO cannot run 'celo2': it is a celo2 checkpoint"):
        VeLO(parameters(), num_steps=5, weights="celo2")


def test_a_directory_with_the_name_of_an_entry_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(load("velo-sample"), tmp_path / "celo2")
    assert VeLO(parameters(), num_steps=5, weights="celo2").artifact.family == "velo"


@pytest.mark.parametrize("weights", [None, 3, ["velo-sample"], "", " "])
def test_invalid_weights_are_refused(weights: Any) -> None:
    with pytest.raises(ZooError, match=r"^weights is "):
        VeLO(parameters(), num_steps=5, weights=weights)


def test_more_calls_per_step_than_calls() -> None:
    with pytest.raises(ZooError, match="accumulate is 50, more than num_steps=20"):
        VeLO(parameters(), num_steps=20, weights="velo-sample", accumulate=50)


def test_an_undeclared_3d_parameter_warns_once_and_a_declared_one_does_not() -> None:
    stacks = [nn.Parameter(torch.ones(2, 3, 4)), nn.Parameter(torch.ones(2, 3, 4))]
    with pytest.warns(UserWarning, match="1-d convolution") as caught:
        make(TABLE["CELO2"], stacks)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(TABLE["CELO2"], [{"params": stacks, "layout": "jax"}])


def test_celo2s_adamw_equals_torchs() -> None:
    params, torch_params = parameters(shapes=[(12,)]), parameters(shapes=[(12,)])
    first = make(TABLE["CELO2"], params, lr=1e-3, weight_decay=0.1, adam_lr_mult=20.0)
    second = torch.optim.AdamW(torch_params, lr=2e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(20):
        give_gradients(params, step)
        give_gradients(torch_params, step)
        first.step()
        second.step()
    simulation = displaced(TABLE["CELO2"], 20, [(12,)], lr=1e-3, weight_decay=0.1, adam_lr_mult=20.0)
    check_close(params[0], torch_params[0], 2 * simulation.distance(0))


def test_rules_route_by_group_and_by_shape() -> None:
    vector, table, matrix = (nn.Parameter(torch.ones(shape)) for shape in ((4,), (6, 4), (6, 4)))
    groups = [{"params": [vector, matrix]}, {"params": [table], "rule": "adamw", "layout": "jax"}]
    for name, of_vector in (("CELO2", "adamw"), ("CELO2-base", "learned")):
        optimizer = make(TABLE[name], copy.deepcopy(groups))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        give_gradients(params, 0)
        optimizer.step()
        result = ["adamw" if "step" in optimizer.state[p] else "learned" for p in params]
        assert result == [of_vector, "learned", "adamw"]


def test_mulo_divides_by_the_width_multiplier() -> None:
    plain, wide = parameters(), parameters()
    first = make(TABLE["MuLO"], plain)
    second = make(TABLE["MuLO"], [{"params": wide, "width_mult": 4.0}])
    give_gradients(plain, 0)
    give_gradients(wide, 0)
    start = parameters()
    first.step()
    second.step()
    for p, w, s in zip(plain, wide, start, strict=True):
        # Each run rounds a product, a decay and their sum, at most of a parameter's size; one is divided by four.
        rounding = gamma(4, p.dtype) * (s.abs() + (p - s).abs())
        check_close((p - s) / 4, w - s, rounding)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"adam_betas": 0.9}, "adam_betas is 0.9"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas is 1.0"),
        ({"adam_eps": -1e-8}, "adam_eps is -1e-08"),
        ({"adam_lr_mult": float("inf")}, "adam_lr_mult is inf"),
        ({"adam_weight_decay": "0.1"}, "adam_weight_decay is '0.1'"),
        ({"grad_clip_val": None}, "grad_clip_val is None"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
    ],
)
def test_celo2s_arguments_are_checked(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        make(TABLE["CELO2"], parameters(), **arguments)


def test_the_record_decides_which_rule_updates_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = artifact("celo2")
    vector = torch.nn.Parameter(torch.ones(3))
    assert [route.rule for route in CELO2([vector], weights=weights).routes()] == ["adamw"]
    monkeypatch.setitem(converters.OWN, "celo2", replace(converters.OWN["celo2"], learns_all=True))
    opt = CELO2([vector], weights=weights)
    assert [(route.rule, route.reason) for route in opt.routes()] == [("learned", "celo2 updates every parameter")]
    assert 'param_groups(model, learned="*")' in usage.training("celo2", "x")[-1]
