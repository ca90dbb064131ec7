"""Muon: against torch's, its fallback, its routing, and what every optimizer here owes its user."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim import Muon, muon_route, param_groups

SHAPES = [(6, 6), (11, 5), (5, 11), (6, 5, 3, 3), (7,), (), (1, 6), (8, 1, 3), (3, 40)]
"""Four that Muon takes and five that the fallback takes."""


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


def same(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def owned(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


# --- against torch -----------------------------------------------------------------------------------------------

needs_torchs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@needs_torchs
@pytest.mark.parametrize("shape", [(6, 6), (40, 16), (16, 40), (64, 64)])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("arithmetic", ["bfloat16", "float64"])
def test_torchs_muon_agrees(
    shape: tuple[int, int], nesterov: bool, adjust_lr_fn: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch iterates in bfloat16 alone; with its one cast replaced, the two texts are compared in float64."""
    exact = arithmetic == "float64"
    if exact:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    dtype = torch.float64 if exact else torch.float32
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    ours, theirs, start = parameters(dtype, [shape]), parameters(dtype, [shape]), parameters(dtype, [shape])
    ns_dtype = torch.float64 if exact else torch.bfloat16
    first = Muon(ours, ns_coefficients="original", adjust_lr_fn=adjust_lr_fn, ns_dtype=ns_dtype, **options)
    second = torch.optim.Muon(theirs, adjust_lr_fn=adjust_lr_fn, **options)
    train(first, ours, range(10))
    train(second, theirs, range(10))
    movement = (theirs[0] - start[0]).norm()
    # bfloat16: each strays up to 2 % from the run in float64 (25 seeds), and they up to 3.4 % from each other, since
    # torch's norm is bfloat16 too; a wrong scale, momentum or triple is off by far more. float64: rounding, 5e-15.
    assert (ours[0] - theirs[0]).norm() < (1e-13 if exact else 0.06) * movement


def test_the_fallback_is_torchs_adamw() -> None:
    shapes = [(7,), (), (3, 40)]
    ours, theirs = parameters(torch.float64, shapes), parameters(torch.float64, shapes)
    first = Muon(ours, lr=0.03, weight_decay=0.1, betas=(0.8, 0.97), fallback_lr_scale=0.5)
    second = torch.optim.AdamW(theirs, lr=0.015, weight_decay=0.1, betas=(0.8, 0.97), eps=1e-7)
    for optimizer, params in ((first, ours), (second, theirs)):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)
        for step in range(20):
            train(optimizer, params, range(step, step + 1))
            scheduler.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_the_nesterov_fallback_is_nadamw_written_out() -> None:
    params = parameters(torch.float64, [(7,)])
    optimizer = Muon(params, lr=0.03, weight_decay=0.1, nesterov=True)
    p, m, v = params[0].detach().clone(), torch.zeros(7), torch.zeros(7)
    for t in range(1, 11):
        give_gradients(params, t)
        optimizer.step()
        g = params[0].grad
        assert g is not None
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        numerator = (0.9 * m + 0.1 * g) / (1 - 0.9**t)
        p = p * (1 - 0.03 * 0.1) - 0.03 * numerator / (torch.sqrt(v / (1 - 0.95**t)) + 1e-7)
    torch.testing.assert_close(params[0].detach(), p, rtol=1e-12, atol=1e-13)


def test_adamw_lr_is_a_ratio_to_the_constructors_lr() -> None:
    old, new, far = (parameters(shapes=[(7,), (6, 6)]) for _ in range(3))
    train(Muon([{"params": old, "lr": 0.04}], lr=0.02, adamw_lr=0.005), old, range(5))
    train(Muon(new, lr=0.04, fallback_lr_scale=0.25), new, range(5))
    assert same(old, new)
    train(Muon(far, lr=0.04, fallback_lr_scale=0.5), far, range(5))
    assert torch.equal(far[1], new[1])
    assert not torch.equal(far[0], new[0])


def test_schedulers_reach_both_sides() -> None:
    shapes = [(7,), (6, 6)]
    scheduled, by_hand = parameters(shapes=shapes), parameters(shapes=shapes)
    first, second = Muon(scheduled, lr=0.5, fallback_lr_scale=0.5), Muon(by_hand, lr=0.5, fallback_lr_scale=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(first, gamma=0.5)
    for step in range(4):
        train(first, scheduled, range(step, step + 1))
        scheduler.step()
        second.param_groups[0]["lr"] = 0.5 * 0.5**step
        train(second, by_hand, range(step, step + 1))
    assert same(scheduled, by_hand)


def test_a_tensor_lr_acts_as_a_float() -> None:
    ends = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        params = parameters()
        optimizer = Muon(params, lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for step in range(3):
            train(optimizer, params, range(step, step + 1))
            scheduler.step()
        assert isinstance(optimizer.param_groups[0]["lr"], type(lr))
        assert float(optimizer.param_groups[0]["lr"]) == 0.0625
        ends.append(params)
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_it_learns() -> None:
    """A student of the teacher's shape; float32 iterations, whose result does not hang on the machine's bfloat16."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(2))
    x = torch.randn(128, 8)
    y = teacher(x).detach()
    optimizer = Muon(student.parameters(), lr=0.02, ns_dtype=torch.float32)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=150)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(student(x), y)
        loss.backward()
        losses.append(optimizer.step(loss).item())
        scheduler.step()
    assert losses[-1] < 0.01 * losses[0]


# --- routing -----------------------------------------------------------------------------------------------------


def test_where_parameters_go_and_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    optimizer = Muon(model.named_parameters(), nesterov=True)
    found = [(route.name, route.shape, route.rule, route.reason) for route in optimizer.routes()]
    assert found == [
        ("0.weight", (8, 3, 3, 3), "muon", "ok"),
        ("0.bias", (8,), "nadamw", "insufficient_dims"),
        ("2.weight", (4, 8), "muon", "ok"),
        ("2.bias", (4,), "nadamw", "insufficient_dims"),
    ]


@pytest.mark.parametrize(
    ("options", "rule", "reason"),
    [
        ({}, "muon", "ok"),
        ({"use_fallback": False}, "muon", "ok"),
        ({"use_muon": True}, "muon", "ok"),
        ({"rule": "learned"}, "muon", "ok"),
        ({"use_fallback": True}, "adamw", "use_fallback_flag"),
        ({"rule": "adamw"}, "adamw", "use_fallback_flag"),
        ({"use_muon": False}, "adamw", "use_muon_flag"),
        ({"use_fallback": True, "use_muon": True}, "adamw", "use_fallback_flag"),
        ({"use_fallback": True, "use_muon": False}, "adamw", "use_fallback_flag"),
    ],
)
def test_flags_of_a_group(options: dict[str, Any], rule: str, reason: str) -> None:
    params = parameters(shapes=[(6, 6)])
    optimizer = Muon([{"params": params, **options}])
    assert [(route.rule, route.reason) for route in optimizer.routes()] == [(rule, reason)]
    train(optimizer, params, range(1))
    assert set(optimizer.state[params[0]]) == (
        {"momentum_buffer"} if rule == "muon" else {"exp_avg", "exp_avg_sq", "step"}
    )


def test_verbose_logs_a_line_a_parameter(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pylo_zoo.optim.muon")
    Muon(parameters())
    assert caplog.messages == []
    model = nn.Linear(6, 5)
    optimizer = Muon(model.named_parameters(), verbose=True)
    assert caplog.messages == ["weight (5, 6): muon (ok)", "bias (5,): adamw (insufficient_dims)"]
    caplog.clear()
    copied = copy.deepcopy(optimizer)
    copied.add_param_group({"params": [("late", nn.Parameter(torch.ones(4, 600)))], "use_muon": False})
    assert caplog.messages == ["late (4, 600): adamw (use_muon_flag)"]
    caplog.clear()
    Muon([nn.Parameter(torch.ones(4, 600))], verbose=True)
    assert caplog.messages == ["group 0, parameter 0 (4, 600): adamw (extreme_aspect_ratio:150.0)"]


def test_param_groups_give_embeddings_to_adamw_and_declare_stacks() -> None:
    model = nn.Module()
    model.embedding = nn.Embedding(12, 6)
    model.linear = nn.Linear(6, 5)
    model.experts = nn.Parameter(torch.randn(3, 6, 4))
    optimizer = Muon(param_groups(model))
    found = {route.shape: (route.layout, route.rule) for route in optimizer.routes()}
    assert found == {
        (12, 6): ("jax", "adamw"),
        (5, 6): ("torch", "muon"),
        (5,): ("torch", "adamw"),
        (3, 6, 4): ("jax", "muon"),
    }
    train(optimizer, owned(optimizer), range(2))
    assert all(torch.isfinite(p).all() for p in owned(optimizer))


def test_stacked_weights_are_matrices_of_their_own() -> None:
    stack = parameters(torch.float64, [(3, 6, 4)])
    matrices = [nn.Parameter(matrix.T.clone()) for matrix in stack[0].detach()]
    options: dict[str, Any] = {"conv_mode": "batched", "normalize_spatial": False, "ns_dtype": torch.float64}
    first = Muon([{"params": stack, "layout": "jax"}], **options)
    second = Muon(matrices, **options)
    give_gradients(stack, 0)
    assert stack[0].grad is not None
    for matrix, gradient in zip(matrices, stack[0].grad, strict=True):
        matrix.grad = gradient.T.clone()
    first.step()
    second.step()
    torch.testing.assert_close(stack[0].detach(), torch.stack([m.detach().T for m in matrices]), rtol=0, atol=1e-12)


def test_a_parameter_that_changes_sides_is_an_error_before_anything_moves() -> None:
    params = parameters()
    optimizer = Muon(params)
    train(optimizer, params, range(1))
    before = copy.deepcopy(params)
    optimizer.param_groups[0]["use_fallback"] = True
    with pytest.raises(ZooError, match=r"changed sides \(use_fallback_flag\); its state has momentum_buffer"):
        optimizer.step()
    assert same(params, before)
    optimizer.state.clear()
    optimizer.step()
    assert not same(params, before)


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
            torch.testing.assert_close(one, another, rtol=0, atol=1e-12)


def test_zero_gradients_move_nothing_but_the_decay() -> None:
    params = parameters()
    before = copy.deepcopy(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    Muon(params, lr=0.5, weight_decay=0.5).step()
    for p, start in zip(params, before, strict=True):
        assert torch.equal(p, start * 0.75)


def test_what_cannot_be_optimized_is_an_error_before_anything_moves() -> None:
    matrix, embedding = nn.Parameter(torch.ones(5, 5)), nn.Embedding(5, 4, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    matrix.grad = torch.ones(5, 5)
    optimizer = Muon([matrix, embedding.weight])
    with pytest.raises(ZooError, match="sparse"):
        optimizer.step()
    assert torch.equal(matrix, torch.ones(5, 5))
    with pytest.raises(ZooError, match=r"complex64.*view_as_real"):
        Muon([nn.Parameter(torch.ones(5, 5, dtype=torch.complex64))])
    with pytest.raises(ZooError, match="int64"):
        Muon([torch.ones(5, 5, dtype=torch.int64)])


def test_losses_and_closures() -> None:
    params = parameters()
    optimizer = Muon(params)
    assert optimizer.step() is None
    loss = torch.tensor(2.0)
    assert optimizer.step(lambda: loss) is loss
    assert optimizer.step(loss) is loss
    assert optimizer.step(loss=loss) is loss

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = sum((p**2).sum() for p in params)
        assert isinstance(value, Tensor)
        value.backward()  # needs the gradients that step() has switched off around itself
        return value

    assert optimizer.step(closure) > optimizer.step(closure)


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
        ({"momentum": 1.0}, "momentum is 1.0.*under 1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"nesterov": 1}, "nesterov is 1"),
        ({"ns_steps": 0}, "ns_steps is 0"),
        ({"ns_coefficients": "quartic"}, "preset 'quartic'"),
        ({"ns_coefficients": (1.0, 2.0)}, "three finite numbers"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": None}, "eps is None"),
        ({"safety_factor": 0.0}, "safety_factor is 0.0"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn is 'none'"),
        ({"conv_mode": "none"}, "conv_mode is 'none'"),
        ({"normalize_spatial": None}, "normalize_spatial is None"),
        ({"ns_dtype": "bfloat16"}, "ns_dtype is 'bfloat16'"),
        ({"ns_dtype": torch.int32}, "ns_dtype is torch.int32"),
        ({"betas": 0.9}, "betas is 0.9"),
        ({"betas": (0.9,)}, "betas is"),
        ({"betas": (0.9, 1.0)}, "betas is 1.0"),
        ({"fallback_lr_scale": -1.0}, "fallback_lr_scale is -1.0"),
        ({"adamw_lr": -1.0}, "adamw_lr is -1.0"),
        ({"adamw_lr": 0.1, "fallback_lr_scale": 2.0}, "Both adamw_lr and fallback_lr_scale"),
        ({"adamw_lr": 0.1, "lr": 0.0}, "lr is 0"),
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
        ({"use_muon": None}, "use_muon is None"),
        ({"rule": "sgd"}, "rule is 'sgd'"),
        ({"layout": "rows"}, "layout is 'rows'"),
        ({"adamw_lr": 0.1}, "fallback_lr_scale"),
        ({"conv_mod": "batched"}, "Did you mean 'conv_mode'"),
    ],
)
def test_a_group_that_cannot_be_is_not_kept(options: dict[str, Any], complaint: str) -> None:
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
    {"betas": (0.5, 0.6)},
    {"fallback_lr_scale": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_groups_have_their_own_options_and_every_option_does_something(options: dict[str, Any]) -> None:
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


# --- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_saved_run_goes_on_bit_for_bit(dtype: torch.dtype, nesterov: bool) -> None:
    params = parameters(dtype)
    optimizer = Muon(params, nesterov=nesterov, lr=torch.tensor(0.01), ns_coefficients=[(2.0, -1.5, 0.5)])
    train(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = [nn.Parameter(p.detach().clone()) for p in saved["params"]]
    second = Muon(resumed)  # its options come with the state, as in torch
    second.load_state_dict(saved["optimizer"])
    pickled, copied = pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)
    train(optimizer, params, range(3, 8))
    train(second, resumed, range(3, 8))
    assert same(params, resumed)
    for other in (pickled, copied):
        theirs = owned(other)
        train(other, theirs, range(3, 8))
        assert same(params, theirs)


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


def test_a_parameter_added_later_starts_its_own_state() -> None:
    first, late = parameters(shapes=[(7,)]), parameters(shapes=[(7,)])
    optimizer = Muon(first)
    train(optimizer, first, range(3))
    optimizer.add_param_group({"params": late})
    train(optimizer, [*first, *late], range(3, 4))
    assert [int(optimizer.state[p]["step"]) for p in (*first, *late)] == [4, 1]


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
        (broken(lambda s: s["state"][0].update(extra=torch.zeros(1))), "does not fit"),
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


def test_a_state_from_before_an_option_existed_takes_the_default() -> None:
    params = parameters()
    optimizer = Muon(params)
    train(optimizer, params, range(1))
    old = copy.deepcopy(optimizer.state_dict())
    del old["param_groups"][0]["safety_factor"]
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["safety_factor"] == 1.0
    train(optimizer, params, range(1, 2))
