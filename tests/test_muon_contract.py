"""Muon follows the contract of every optimizer in the package: gradients, losses, arguments, groups and state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from margins import check_close
from muon_runs import SHAPES, give_gradients, parameters, same, train
from rounding import gamma, simulate
from torch import nn

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.orthogonalize import orthogonalize, resolve_coefficients
from pylo_zoo.optim import Muon, muon_route

# --- parameters and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("conv_mode", ["flatten", "batched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gradients_are_never_written(nesterov: bool, conv_mode: str, dtype: torch.dtype) -> None:
    params = [*parameters(dtype), nn.Parameter(torch.ones(5, 5, dtype=dtype)), nn.Parameter(torch.empty(0, 4))]
    before = copy.deepcopy(params)
    optimizer = Muon(params, nesterov=nesterov, conv_mode=conv_mode, weight_decay=0.1, ns_dtype=dtype)
    give_gradients(params, 0)
    params[-2].grad = None
    gradients = [None if p.grad is None else p.grad.clone() for p in params]
    optimizer.step()
    assert len(optimizer.state) == len(SHAPES)  # nothing for the absent gradient and the empty parameter
    for k, (p, gradient) in enumerate(zip(params, gradients, strict=True)):
        assert p.dtype == (dtype if p.numel() else torch.float32)
        assert torch.isfinite(p).all()
        assert torch.equal(p, before[k]) == (k >= len(SHAPES))
        assert (p.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("conv_mode", ["flatten", "batched"])
def test_memory_format_does_not_matter(conv_mode: str) -> None:
    triples = resolve_coefficients("quintic", 5)
    matrices = [p.detach() for p in parameters(torch.float64, [(5, 36), (6, 9), (8, 6)])]
    runs = [simulate(lambda m=m: [orthogonalize(m, triples, dtype=m.dtype)], torch.float64) for m in matrices]
    rounding = 3 * (2 * max(run.distance(0) for run in runs) + gamma(12, torch.float64))
    ends = []
    for strides in ("contiguous", "channels last", "transposed"):
        params = parameters(torch.float64, [(5, 4, 3, 3), (6, 9), (2, 8, 3, 1)])
        if strides == "channels last":
            params[0::2] = [nn.Parameter(p.detach().to(memory_format=torch.channels_last)) for p in params[0::2]]
        if strides == "transposed":
            params = [nn.Parameter(p.detach().mT.contiguous().mT) for p in params]
        assert params[0].is_contiguous() == (strides == "contiguous")
        train(Muon(params, conv_mode=conv_mode, ns_dtype=torch.float64, nesterov=True), params, range(3))
        ends.append([p.detach().contiguous() for p in params])
    for other in ends[1:]:
        for one, another in zip(ends[0], other, strict=True):
            # Three steps; an element combines two of their roundings. The largest movement: 0.2 √max(1, rows/columns).
            check_close(one, another, rounding * (1 + one.abs()))


def test_zero_gradients_move_nothing_but_the_decay() -> None:
    params = parameters()
    before = copy.deepcopy(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    Muon(params, lr=0.5, weight_decay=0.5).step()
    for p, start in zip(params, before, strict=True):
        assert torch.equal(p, start * 0.75)


# --- arguments and groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": "0.1"}, "lr is '0.1'"),
        ({"lr": torch.tensor(-1.0)}, "lr is -1"),
        ({"lr": torch.ones(2)}, "lr is a tensor"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": torch.tensor(0.1)}, "weight_decay is a tensor"),
        ({"momentum": 1.0}, "momentum is 1.0.*less than 1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"nesterov": 1}, "nesterov is 1"),
        ({"ns_steps": 0}, "ns_steps is 0"),
        ({"ns_coefficients": "quartic"}, "preset 'quartic'"),
        ({"ns_coefficients": (1.0, 2.0)}, "three finite numbers"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": None}, "eps is None"),
        ({"eps": 10**400}, "eps is a number of 401 digits"),
        ({"safety_factor": 10**5000}, "safety_factor is a number of 5,001 digits"),
        ({"safety_factor": 0.0}, "safety_factor is 0.0"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn is 'none'"),
        ({"conv_mode": "none"}, "conv_mode is 'none'"),
        ({"normalize_spatial": None}, "normalize_spatial is None"),
        ({"ns_dtype": "float8"}, "ns_dtype is 'float8'"),
        ({"ns_dtype": torch.int32}, "ns_dtype is torch.int32"),
        ({"betas": 0.9}, "betas is 0.9"),
        ({"betas": (0.9,)}, "betas is"),
        ({"betas": (0.9, 1.0)}, "betas is 1.0"),
        ({"fallback_lr_scale": -1.0}, "fallback_lr_scale is -1.0"),
        ({"adamw_lr": -1.0}, "adamw_lr is -1.0"),
        ({"adamw_lr": 0.1, "fallback_lr_scale": 2.0}, "Both adamw_lr and fallback_lr_scale"),
        ({"adamw_lr": 0.1, "lr": 0.0}, "relative to lr, which is 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        Muon(parameters(), **arguments)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"momentum": 2.0}, "momentum is 2.0"),
        ({"ns_coefficients": "quartic"}, "preset"),
        ({"use_fallback": "yes"}, "use_fallback is 'yes'"),
        ({"use_muon": 1}, "use_muon is 1"),
        ({"use_muon": True, "rule": "adamw"}, "use_muon=True and rule='adamw'"),
        ({"algorithm": "lion"}, "algorithm='lion'.*'muon' or 'adamw'"),
        ({"algorithm": "adamw", "use_muon": True}, "algorithm='adamw' and use_muon=True"),
        ({"mu": 0.9}, "'mu'.*group's momentum"),
        ({"adamw_betas": (0.9, 0.99)}, "'adamw_betas'.*group's betas"),
        ({"epsilon": 1e-8}, "'epsilon'.*group's eps"),
        ({"is_embedding": True}, "'is_embedding'.*rule"),
        ({"maximize": True}, "maximize=True.*Remove maximize"),
        ({"backend": "eager"}, "sets backend.*constructor"),
        ({"rule": "sgd"}, "rule is 'sgd'"),
        ({"layout": "rows"}, "layout is 'rows'"),
        ({"adamw_lr": 0.1}, "fallback_lr_scale"),
        ({"conv_mod": "batched"}, "Did you mean 'conv_mode'"),
    ],
)
def test_an_invalid_group_is_not_added(options: dict[str, Any], complaint: str) -> None:
    optimizer = Muon(parameters())
    with pytest.raises(ZooError, match=complaint):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(5, 5))], **options})
    assert len(optimizer.param_groups) == 1


OPTIONS: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"weight_decay": 0.3},
    {"momentum": 0.5},
    {"nesterov": True},
    {"ns_steps": 3},
    {"ns_coefficients": "polar_express"},
    {"ns_coefficients": [(2.0, -1.5, 0.5)]},
    {"eps": 10.0},
    {"safety_factor": 1.5},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": None},
    {"conv_mode": "batched"},
    {"conv_mode": "batched", "normalize_spatial": False},
    {"ns_dtype": torch.float32},
    {"ns_dtype": "float32"},
    {"betas": (0.5, 0.6)},
    {"fallback_lr_scale": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_groups_have_their_own_options_and_every_option_has_an_effect(options: dict[str, Any]) -> None:
    alone, plain, grouped, untouched = (parameters() for _ in range(4))
    optimizer = Muon([{"params": grouped, **options}])
    optimizer.add_param_group({"params": untouched})
    for step in range(2):
        give_gradients(grouped, step)
        give_gradients(untouched, step)
        optimizer.step()
    train(Muon(alone, **options), alone, range(2))
    train(Muon(plain), plain, range(2))
    assert same(grouped, alone)
    assert same(untouched, plain)
    assert not same(grouped, untouched)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3), (64, 1, 3, 3), (2, 300), (1, 8)])
@pytest.mark.parametrize("options", [{"use_muon": True}, {"algorithm": "muon"}])
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_use_muon_in_a_group_is_respected(shape: tuple[int, ...], options: dict[str, Any], backend: str) -> None:
    """As in the groups of Keller Jordan, timm and Dion: by shape alone each of these would be routed to AdamW."""
    assert not muon_route(shape)[0]
    (p,) = params = [nn.Parameter(torch.ones(shape))]
    optimizer = Muon(
        [{"params": params, **options}], lr=0.1, adjust_lr_fn=None, ns_dtype=torch.float32, backend=backend
    )
    (gradient,) = [torch.randn(shape, generator=torch.Generator().manual_seed(0))]
    p.grad = gradient.clone()
    optimizer.step()
    assert set(optimizer.state[p]) == {"momentum_buffer"}
    assert optimizer.routes()[0].rule == "muon"
    singular = torch.linalg.svdvals(((1 - p.detach()) / 0.1).flatten(1))
    assert (
        float(singular.max()) < 1.3
    )  # quintic iterations leave singular values in 0.7 … 1.2; AdamW's step has norm √n
    second = Muon([{"params": [nn.Parameter(torch.ones(shape))], **options}])
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("shape", [(), (7,)])
def test_use_muon_for_a_vector_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ZooError, match=r"use_muon=True.*use_muon=False"):
        Muon([{"params": [nn.Parameter(torch.ones(shape))], "use_muon": True}])
    Muon([{"params": [nn.Parameter(torch.ones(shape))], "use_muon": True, "use_fallback": True}])
    Muon([{"params": [nn.Parameter(torch.ones(shape), requires_grad=False)], "use_muon": True}])


def test_states_that_predate_use_muon_load() -> None:
    """Such a state has use_muon=True in every group, and AdamW's state for small matrices."""
    params = parameters(shapes=[(6, 6), (3, 3), (7,)])
    optimizer = Muon(params)
    train(optimizer, params, range(2))
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        group["use_muon"] = True
    again = Muon(params)
    again.load_state_dict(old)
    assert again.param_groups[0]["use_muon"] is None
    train(again, params, range(2, 3))


# --- state -------------------------------------------------------------------------------------------------------


def test_schedulers_that_cycle_momentum_cycle_the_fallbacks_betas_and_their_groups_load() -> None:
    params = parameters()
    optimizer = Muon(params)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
    betas = []
    for step in range(4):
        betas.append(optimizer.param_groups[0]["betas"][0])
        train(optimizer, params, range(step, step + 1))
        scheduler.step()
    assert betas[0] > betas[1] > betas[2]
    again = Muon(parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # with max_momentum and base_momentum in the groups
    assert again.param_groups[0]["max_momentum"] == 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_state_is_named_shaped_and_typed_and_loading_keeps_it(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = Muon(params)
    train(optimizer, params, range(2))
    second = Muon(params)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for p in params:
        muons = muon_route(p.shape)[0]
        assert set(second.state[p]) == ({"momentum_buffer"} if muons else {"exp_avg", "exp_avg_sq", "step"})
        for name, value in second.state[p].items():
            assert value.shape == (() if name == "step" else p.shape)
            assert value.dtype == (torch.int64 if name == "step" else wide)
            assert torch.equal(value, optimizer.state[p][name])
            assert value is not optimizer.state[p][name]
    assert second.state[params[-1]]["step"] == 2


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    params = parameters()
    optimizer = Muon(params)
    train(optimizer, params, range(2))
    good = copy.deepcopy(optimizer.state_dict())

    def broken(change: Any) -> dict[str, Any]:
        state = copy.deepcopy(good)
        change(state)
        return state

    for wrong, complaint in (
        (broken(lambda s: s["state"][0].clear()), "does not fit"),
        (broken(lambda s: s["state"][0].update(exp_avg=torch.zeros(1))), "does not fit"),
        (broken(lambda s: s["state"][0].update(momentum_buffer=torch.zeros(2, 2))), "does not fit"),
        (broken(lambda s: s["state"][4].pop("step")), "does not fit"),
        (broken(lambda s: s["param_groups"][0].update(use_fallback=True)), "does not fit"),
        (broken(lambda s: s["param_groups"][0].update(ns_coefficients="quartic")), "preset"),
        (broken(lambda s: s["param_groups"][0].update(lr=-1.0)), "lr is -1.0"),
        (broken(lambda s: s["param_groups"][0]["params"].pop()), "groups hold"),
        (broken(lambda s: s["state"].update({99: {}})), "no parameter"),
    ):
        with pytest.raises(ZooError, match=complaint):
            optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert after["param_groups"] == good["param_groups"]
    for key, entry in good["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in entry.items())
