"""PyLO arguments that belong to a checkpoint: mapped to the artifact, or refused with a reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from margins import check_close
from pylo_compat import ARTIFACTS, SIGNATURES, build, keys, parameters, same, train
from rounding import FUNCTION, gamma
from torch import nn

from pylo_zoo import optim
from pylo_zoo.compat import pylo
from pylo_zoo.compat.arguments import to_tuples
from pylo_zoo.errors import ZooError

BEHAVIOR = [
    ("VeLO_naive", {"exp_mult": 0.01, "step_mult": 0.002, "initial_rms_decays": [0.99]}),
    ("CELO2_naive", {"orthogonalize": False, "rmsmult": 0.5, "param_scale_mult": True, "exp_mult": 0.1}),
    ("CELO2_naive", {"ns_coeffs": [2.0, -1.5, 0.5], "ns_iters": 3, "ns_eps": 1e-6}),
    ("ELO_CELO2_naive", {"rmsmult": 2.0, "initial_adafactor_decays": (0.8, 0.9, 0.99)}),
    ("ELO_naive", {"exp_mult": 0.01, "initial_momentum_decays": torch.tensor([0.5, 0.75, 0.875])}),
    ("AdafacLO_naive", {"exp_mult": 0.01, "step_mult": 0.1}),
    ("AdafacLO_CUDA", {"step_mult": 0.1}),
    ("MuLO_CUDA", {"initial_rms_decays": (0.9,)}),
]


@pytest.mark.parametrize(("name", "options"), BEHAVIOR)
def test_behavior_arguments_override_the_artifacts(name: str, options: dict[str, Any]) -> None:
    (artifact, *_) = keys(name).values()
    expected = dataclasses.replace(artifact, behavior=dataclasses.replace(artifact.behavior, **plain_fields(options)))
    one, other = parameters(), parameters()
    optimizer = build(name, one, **options)
    assert optimizer.artifact.behavior == expected.behavior
    assert optimizer.artifact.fingerprint == expected.fingerprint != artifact.fingerprint
    train(optimizer, one)
    train(build(name, other, **keys(name, expected)), other)
    assert same(one, other)


def plain_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: to_tuples(value) for name, value in fields.items()}


def test_defaults_follow_the_artifact() -> None:
    for name in SIGNATURES:
        (artifact, *_) = keys(name).values()
        assert build(name, parameters()).artifact is artifact
    assert build("VeLO_naive", parameters(), hidden_layers=1, lstm_hidden_size=5).artifact is ARTIFACTS["velo"]
    assert build("CELO2_naive", parameters(), ff_hidden_layers=3).artifact is ARTIFACTS["celo2"]
    assert build("ELO_naive", parameters(), hidden_size=6, hidden_layers=1).artifact is ARTIFACTS["elo"]


def test_learned_offsets() -> None:
    offsets = {"momentum_decays": [0.1, 0.2, 0.3], "rms_decays": [0.01], "adafactor_decays": [-0.1, 0.0, 0.05]}
    optimizer = build("AdafacLO_naive", parameters(), **offsets)
    for name, value in offsets.items():
        assert torch.equal(optimizer.artifact.tensors[name], torch.tensor(value))
    assert not torch.equal(ARTIFACTS["mulo"].tensors["rms_decays"], torch.tensor([0.01]))
    artifact = build("VeLO_naive", parameters(), initial_rms_decays=(0.9,), **offsets).artifact
    result = artifact.behavior.initial_momentum_decays, artifact.behavior.initial_rms_decays
    for each, before, name in zip(result, ([0.9, 0.99, 0.999], [0.9]), offsets, strict=False):
        effective = 1 - torch.exp(10 * (torch.log(1 - torch.tensor(before)) / 10 + torch.tensor(offsets[name])))
        # A logarithm, a division, a sum of at most 1 and an exponential of ten times that, in float32.
        check_close(torch.tensor(each), effective.clamp(0, 1), gamma(10 + 4 * FUNCTION, torch.float32))
    build("VeLO_naive", parameters(), **offsets).step(torch.tensor(1.0))
    huge = build("VeLO_naive", parameters(), momentum_decays=(100.0, 0.0, -100.0)).artifact
    assert huge.behavior.initial_momentum_decays == (0.0, 0.99, 1.0)


REFUSED = [
    ("VeLO_naive", {"clip_grad": True}, "never reads it"),
    ("VeLO_naive", {"mup_lrs": [0.1]}, "never reads it"),
    ("VeLO_naive", {"concat_weights": False}, "never reads it"),
    ("VeLO_naive", {"make_separate_weights": True}, "never reads it"),
    ("VeLO_naive", {"split_weights": True}, "never reads it"),
    ("VeLO_naive", {"input_size": 29}, "part of the update rule"),
    ("VeLO_naive", {"lstm_input_size": 29}, "part of the update rule"),
    ("VeLO_naive", {"lstm_hidden_size": 64}, "has 5"),
    ("VeLO_naive", {"param_inits": 64}, "has 3"),
    ("VeLO_naive", {"hidden_size": 8}, "has 4"),
    ("VeLO_naive", {"hidden_layers": 2}, "has 1"),
    ("VeLO_naive", {"momentum_decays": [0.1]}, "Pass 3 finite numbers"),
    ("VeLO_naive", {"rms_decays": ["x"]}, "Pass 1 finite numbers"),
    ("VeLO_naive", {"rms_decays": [10**400]}, "Pass 1 finite numbers"),
    ("VeLO_naive", {"initial_rms_decays": (0.9, 0.99)}, "list of length 1"),
    ("VeLO_naive", {"num_steps": None}, "num_steps is None"),
    ("VeLO_naive", {"hf_key_rnn": None}, "No weights"),
    ("VeLO_naive", {"hf_key_mlp": "velo-sample"}, "is a whole VeLO"),
    ("CELO2_naive", {"ff_hidden_size": 16}, "has 8"),
    ("CELO2_naive", {"ff_hidden_layers": 4}, "has 3"),
    ("CELO2_naive", {"ns_iters": 0}, "an integer from 1 to 100"),
    ("CELO2_naive", {"orthogonalize": "yes"}, "true or false"),
    ("CELO2_naive", {"hf_key": None}, "a random network"),
    ("CELO2_naive", {"hf_key": "celo3"}, "Unknown checkpoint 'celo3'"),
    ("CELO2_naive", {"network": "celo2"}, "network is a str"),
    ("CELO2_naive", {"network": nn.Linear(2, 2)}, "is not a checkpoint of the family celo2"),
    ("CELO2_naive", {"checkpoint_path": "absent.pt"}, "absent.pt"),
    ("CELO2_naive", {"hf_key": ARTIFACTS["elo"]}, "cannot run 'elo'"),
    ("CELO2_naive", {"clip_grad": True, "clip_norm": 0.0}, "clip_norm is 0"),
    ("ELO_naive", {"hidden_size": 64}, "has 6"),
    ("AdafacLO_naive", {"input_size": 38}, "part of the update rule"),
    ("AdafacLO_naive", {"clip_grad": True}, "max_grad_norm clips"),
    ("AdafacLO_naive", {"mup_lrs": {}}, "MuLO_naive"),
    ("AdafacLO_naive", {"max_grad_norm": 0.0}, "max_grad_norm is 0"),
    ("MuLO_CUDA", {"max_grad_norm": -1.0}, "max_grad_norm is -1"),
    ("AdafacLO_naive", {"max_grad_norm": "1.0"}, "max_grad_norm is '1.0'"),
    ("AdafacLO_CUDA", {"max_grad_norm": 10**400}, "max_grad_norm is a number of 401 digits"),
    ("AdafacLO_CUDA", {"foreach": True}, "no multi-tensor version"),
    ("AdafacLO_CUDA", {"momentum_dtype": torch.bfloat16}, "float32"),
    ("AdafacLO_CUDA", {"eps": 1e-8}, "1e-30"),
    ("AdafacLO_CUDA", {"min_dim_size_to_factor": 128}, "never reads it"),
    ("AdafacLO_CUDA", {"unscaled_wd": True}, "never reads it"),
    ("AdafacLO_CUDA", {"load_from_file": "absent.pt"}, "absent.pt cannot be read"),
    ("MuLO_naive", {"impl": torch.optim.Adam}, "impl is"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_refusals_give_a_reason(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError) as caught:
        build(name, parameters(), **options)
    assert message in str(caught.value)
    assert caught.value.hint


def test_backend_arguments_are_translated() -> None:
    for impl in ("naive", pylo.AdafacLO_naive, pylo.AdafacLO_CUDA, optim.AdafacLO):
        build("MuLO_naive", parameters(), impl=impl)
    for impl in ("cuda", "triton"):
        with pytest.warns(UserWarning, match="pylo-zoo chooses the backend"):
            build("MuLO_naive", parameters(), impl=impl)
    with pytest.warns(UserWarning, match="legacy=True is ignored"):
        build("VeLO_CUDA", parameters(), legacy=True)


@pytest.mark.parametrize(
    ("name", "option"),
    [("CELO2_naive", {"orthogonalize": False}), ("ELO_naive", {"clip_grad": True}), ("VeLO_naive", {"exp_mult": 0.1})],
)
def test_a_group_cannot_set_global_options(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(ZooError, match=f"{next(iter(option))}.*belongs to the whole optimizer"):
        build(name, [{"params": parameters(), **option}])


def test_a_groups_max_grad_norm_is_checked_when_added_and_when_loaded() -> None:
    for value in (0.0, "1.0", 10**400):
        with pytest.raises(ZooError, match="max_grad_norm is"):
            build("AdafacLO_naive", [{"params": parameters(), "max_grad_norm": value}])
        optimizer = build("AdafacLO_naive", parameters())
        saved = optimizer.state_dict()
        saved["param_groups"][0]["max_grad_norm"] = value
        with pytest.raises(ZooError, match="max_grad_norm is"):
            optimizer.load_state_dict(saved)
