"""PyLO's names: the recorded signatures, and our update rules under translated arguments."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from margins import check_close
from pylo_compat import (
    ALIASES,
    ARTIFACTS,
    OURS,
    SIGNATURES,
    build,
    give_gradients,
    keys,
    parameters,
    same,
    stem,
    train,
    widths,
)
from rounding import FUNCTION, gamma
from torch import Tensor, nn

from pylo_zoo import optim
from pylo_zoo.compat import pylo
from pylo_zoo.compat.arguments import to_tuples
from pylo_zoo.errors import ZooError
from pylo_zoo.optim.base import LearnedOptimizer


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_pylos(name: str) -> None:
    parameters = list(inspect.signature(getattr(pylo, name)).parameters.values())
    assert parameters[0].name == "params"
    assert {each.name: to_tuples(each.default) for each in parameters[1:]} == SIGNATURES[name]
    assert [each.name for each in parameters[1:]] == list(SIGNATURES[name]), "positional arguments keep PyLO's order"
    by_keyword = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    first = {"AdafacLO_CUDA": "foreach", "MuLO_naive": "momentum_decays", "MuLO_CUDA": "lr"}.get(name)
    assert by_keyword[:1] == ([first] if first else [])


def test_the_names_and_their_classes() -> None:
    assert set(pylo.__all__) == {*SIGNATURES, *ALIASES}
    for name in ALIASES:
        assert getattr(pylo, name) is getattr(pylo, f"{name}_naive")
    for name, ours in OURS.items():
        assert issubclass(getattr(pylo, name), ours)


# --- updates -----------------------------------------------------------------------------------------------------


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("VeLO_naive", {}, {"lr": 1e-3, "num_steps": 10_000}),
    ("VeLO_CUDA", {"lr": 1.0, "num_steps": 50}, {"lr": 1.0, "num_steps": 50}),
    ("CELO2_naive", {}, {"lr": 1e-3, "adam_lr_mult": 1.0}),
    ("CELO2_CUDA", {"weight_decay": 0.1}, {"weight_decay": 0.1, "adam_lr_mult": 1.0}),
    ("CELO2_naive", {"clip_grad": True, "clip_norm": 0.5}, {"clip_norm": 0.5, "adam_lr_mult": 1.0}),
    (
        "CELO2_naive",
        {"adam_betas": (0.8, 0.9), "adam_eps": 1e-6, "adam_weight_decay": 0.2},
        {"adam_betas": (0.8, 0.9), "adam_eps": 1e-6, "adam_weight_decay": 0.2, "adam_lr_mult": 1.0},
    ),
    ("ELO_CELO2_naive", {}, {"weight_decay": 0.1, "clip_norm": 1.0, "adam_lr_mult": 1.0}),
    ("ELO_CELO2_naive", {"clip_grad": False, "grad_clip_val": 0.1}, {"clip_norm": None, "grad_clip_val": 0.1}),
    ("ELO_CELO2_CUDA", {}, {"adam_lr_mult": 20.0}),
    ("ELO_naive", {"weight_decay": 0.1}, {"weight_decay": 0.1, "clip_norm": None}),
    ("ELO_CUDA", {"clip_grad": True}, {"clip_norm": 1.0}),
    ("AdafacLO_naive", {"lr": 0.5}, {"lr": 0.5}),
    ("AdafacLO_CUDA", {"momentum_dtype": "float32", "eps": 1e-30}, {}),
]


@pytest.mark.parametrize(("name", "pylo_options", "options"), CASES)
def test_updates_equal_ours_bit_for_bit(name: str, pylo_options: dict[str, Any], options: dict[str, Any]) -> None:
    one, other = parameters(), parameters()
    (artifact, *_) = keys(name).values()
    train(build(name, one, **pylo_options), one)
    train(OURS[name](other, weights=artifact, **options), other)
    assert same(one, other)
    assert not same(one, parameters())


@pytest.mark.parametrize("name", ["MuLO_naive", "MuLO_CUDA"])
def test_mulo_divides_lr_by_width(name: str) -> None:
    one, other = parameters(), parameters()
    optimizer = build(name, widths(one[:2]) + widths(one[2:], 2.0), lr=2.0)
    assert [(group["lr"], group["width_mult"]) for group in optimizer.param_groups] == [(0.5, 1.0), (1.0, 1.0)]
    train(optimizer, one)
    groups = [{"params": other[:2], "lr": 0.5, "width_mult": 1}, {"params": other[2:], "lr": 1.0, "width_mult": 1}]
    train(optim.MuLO(groups, weights=ARTIFACTS["mulo"]), other)
    assert same(one, other)


def test_mulo_splits_a_group_by_infshape() -> None:
    params = parameters(shapes=[(6, 6), (7,), (4, 4)])
    for p, (infinite, width) in zip(params, [(2, 8.0), (1, 8.0), (2, 2.0)], strict=True):
        shape = types.SimpleNamespace(ninf=lambda n=infinite: n, width_mult=lambda w=width: w)
        p.infshape = shape  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = pylo.MuLO(params, lr=1.0, hf_key=ARTIFACTS["mulo"])
    result = {group["lr"]: [id(p) for p in group["params"]] for group in optimizer.param_groups}
    assert result == {1 / 8: [id(params[0])], 1.0: [id(params[1])], 1 / 2: [id(params[2])]}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert scheduler.get_last_lr() == [1 / 16, 0.5, 1 / 4]
    bare = parameters(shapes=[(3, 3)])
    with pytest.raises(ZooError, match=r"shape \(3, 3\) has no infshape"):
        optimizer.add_param_group({"params": bare})
    with pytest.raises(ZooError, match="width_mult is 0"):
        optimizer.add_param_group({"params": bare, "width_mult": 0})
    with pytest.raises(ZooError, match="width_mult is a number of 401 digits"):
        optimizer.add_param_group({"params": bare, "width_mult": 10**400})
    with pytest.raises(ZooError, match=r"no shape yet.*Run the model once"):
        optimizer.add_param_group({"params": nn.LazyLinear(2).parameters()})
    with pytest.raises(ValueError, match="some parameters appear in more than one"):
        optimizer.add_param_group({"params": [*bare, params[0]], "width_mult": 2.0})
    assert len(optimizer.param_groups) == 3
    optimizer.add_param_group({"params": bare[0], "width_mult": 2.0})
    assert optimizer.param_groups[-1]["lr"] == 0.5


@pytest.mark.filterwarnings("ignore:weight_decay=")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["VeLO_naive", "AdafacLO_naive", "MuLO_naive"])
def test_decay_applies_to_the_updated_parameter(name: str, dtype: torch.dtype) -> None:
    lr, decay = 0.5, 0.25
    start, without, result = (parameters(dtype) for _ in range(3))
    train(build(name, without, lr=lr), without, range(1))
    train(build(name, result, lr=lr, weight_decay=decay), result, range(1))
    lr /= 4 if name == "MuLO_naive" else 1
    for p0, stepped, p in zip(start, without, result, strict=True):
        # 1 − lr·decay, the product, and each run's last rounding, of the parameter or of its decayed value.
        check_close(p, (1 - lr * decay) * stepped, gamma(4, dtype) * (stepped.abs() + (stepped - p0).abs()))
        on_the_old = stepped - lr * decay * p0
        assert (p - on_the_old).abs().max() > 0.3 * lr * decay * (stepped - p0).abs().max(), "the original's order"


@pytest.mark.parametrize("name", ["CELO2_naive", "ELO_CELO2_naive", "ELO_naive"])
def test_other_decays_apply_to_the_old_parameter(name: str) -> None:
    lr, decay = 0.1, 0.5
    options = {"lr": lr, "clip_grad": False}
    start, without, result = (parameters() for _ in range(3))
    train(build(name, without, weight_decay=0.0, **options), without, range(1))
    train(build(name, result, weight_decay=decay, **options), result, range(1))
    for p0, stepped, p in zip(start, without, result, strict=True):
        rounding = gamma(6, p.dtype) * (p0.abs() + (stepped - p0).abs())  # two runs of three roundings each
        check_close(p, stepped - lr * decay * p0, rounding)


@pytest.mark.parametrize("name", ["AdafacLO_naive", "MuLO_naive"])
def test_max_grad_norm_clips_each_parameter_separately(name: str) -> None:
    one, other, unclipped = parameters(), parameters(), parameters()
    limited, clipped_before, free = build(name, one, max_grad_norm=3.0), build(name, other), build(name, unclipped)
    for step in range(3):
        for each in (one, other, unclipped):
            give_gradients(each, step, scale=1.0 + step)
        inputs = [p.grad.clone() for p in one if p.grad is not None]
        norms = [torch.nn.utils.clip_grad_norm_(p, 3.0) for p in other]
        assert min(norms) < 3 < max(norms)
        for optimizer in (limited, clipped_before, free):
            optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(one, inputs, strict=True) if p.grad is not None)
    for a, b, c, s in zip(one, other, unclipped, parameters(), strict=True):
        # Three steps. Clipping multiplies a gradient by a rounded factor; the rules are scaled by the gradient's norm,
        # so a step changes by a few of its roundings, and the parameter is rounded three times.
        moved = (b - s).abs().max()
        rounding = gamma(2 * 3, a.dtype) * b.abs().max() + gamma(3 * 64, a.dtype) * moved
        check_close(a, b, rounding)
        assert a.numel() < 30 or (a - c).abs().max() > 10 * rounding
    unlimited = parameters()
    train(build(name, [{"params": unlimited, "max_grad_norm": None, "width_mult": 4.0}], max_grad_norm=0.5), unlimited)
    reference = parameters()
    train(build(name, reference), reference)
    assert same(unlimited, reference), "the group's value takes precedence"


# --- CELO2's routes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CELO2_naive", "ELO_CELO2_naive"])
def test_embeddings_and_vectors(name: str) -> None:
    def groups(params: list[nn.Parameter], **embedding: Any) -> list[dict[str, Any]]:
        return [{"params": params[:-1]}, {"params": params[-1:], **embedding}]

    shapes = [(7,), (6, 6), (12, 4)]
    (artifact,) = keys(name).values()
    for pylo_options, option, first, second in (
        ({"is_embedding": True}, {}, None, "adamw"),
        ({"is_embedding": False}, {}, None, None),
        ({}, {"use_adamw_for_1d": False}, "learned", "learned"),
        ({"is_embedding": True}, {"use_adamw_for_1d": False}, "learned", "learned"),
        ({"use_adamw_for_1d": True, "is_embedding": True}, {"use_adamw_for_1d": False}, "learned", "adamw"),
    ):
        one, other = parameters(shapes=shapes), parameters(shapes=shapes)
        optimizer = build(name, groups(one, **pylo_options), **option)
        assert [group["rule"] for group in optimizer.param_groups] == [first, second]
        layout = "jax" if pylo_options.get("is_embedding") else "torch"
        assert optimizer.param_groups[1]["layout"] == layout
        train(optimizer, one)
        ours = groups(other, rule=second, layout=layout)
        ours[0]["rule"] = first
        train(OURS[name](ours, weights=artifact, adam_lr_mult=1.0), other)
        assert same(one, other)
    with pytest.raises(ZooError, match="rule='learned'"):
        build(name, groups(parameters(), is_embedding=True, rule="learned"))


def test_celo2s_adamw_uses_the_constructors_decay_and_clips() -> None:
    (p,) = params = parameters(shapes=[(7,)])
    expected, m, v = p.detach().clone(), torch.zeros(7), torch.zeros(7)
    optimizer = build(
        "CELO2_naive", [{"params": params, "weight_decay": 0.0}], weight_decay=0.5, lr=0.1, grad_clip_val=1
    )
    for t, g in enumerate((torch.linspace(-9, 9, 7), torch.full((7,), 0.5)), start=1):
        p.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g.clamp(-1, 1), 0.95 * v + 0.05 * g.clamp(-1, 1).square()
        direction = m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        expected -= 0.1 * (direction + 0.5 * expected)
        # About ten roundings and two roots make a direction of at most 1; each of t steps also rounds the parameter.
        rounding = gamma(2 * (10 + 2 * FUNCTION), p.dtype) * 0.1 + gamma(2 * 3, p.dtype) * expected.abs()
        check_close(p.detach(), expected, t * rounding)


def test_elo_celo2s_adamw_shares_the_rules_decays() -> None:
    options = {"initial_momentum_decays": (0.8, 0.99, 0.999), "initial_rms_decays": (0.9,)}
    optimizer = build("ELO_CELO2_naive", parameters(), **options)
    assert optimizer.param_groups[0]["adam_betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["adam_eps"] == 1e-8


# --- the optimizer interface -------------------------------------------------------------------------------------

every_name = pytest.mark.parametrize("name", [name for name in SIGNATURES if name.endswith("naive")])


@every_name
def test_the_ways_to_give_a_loss(name: str) -> None:
    def closure() -> Tensor:
        return torch.tensor(2.0)

    ways: list[Callable[[LearnedOptimizer], Any]] = [
        lambda optimizer: optimizer.step(torch.tensor(2.0)),
        lambda optimizer: optimizer.step(loss=torch.tensor(2.0)),
        lambda optimizer: optimizer.step(closure),
    ]
    runs = []
    for way in ways:
        params = parameters()
        optimizer = build(name, params)
        give_gradients(params, 0)
        assert way(optimizer) == 2.0
        runs.append(params)
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    if name != "VeLO_naive":
        build(name, parameters()).step()


@pytest.mark.filterwarnings("ignore:weight_decay=")
@every_name
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_continue_identically(name: str, duplicate: Callable[[Any], Any]) -> None:
    params = parameters()
    option = {"max_grad_norm": 0.5} if stem(name) in ("AdafacLO", "MuLO") else {}
    optimizer = build(name, params, weight_decay=0.1, **option)
    train(optimizer, params, range(2))
    copied = duplicate(optimizer)
    copied_params = [p for group in copied.param_groups for p in group["params"]]
    train(optimizer, params, range(2, 4))
    train(copied, copied_params, range(2, 4))
    assert same(params, copied_params)
    copied.add_param_group({"params": parameters(shapes=[(3,)]), "width_mult": 2.0})


@every_name
def test_states_equal_ours(name: str) -> None:
    (artifact, *_) = keys(name).values()
    params, resumed = parameters(), parameters()
    optimizer = build(name, params)
    train(optimizer, params, range(2))
    resumed = copy.deepcopy(params)
    fresh = build(name, resumed)
    fresh.load_state_dict(optimizer.state_dict())
    train(optimizer, params, range(2, 4))
    train(fresh, resumed, range(2, 4))
    assert same(params, resumed)
    planned = {"num_steps": 10_000} if name == "VeLO_naive" else {}
    OURS[name](copy.deepcopy(params), weights=artifact, **planned).load_state_dict(optimizer.state_dict())
    foreign_states = [{"state": {0: {"mom": torch.zeros(3)}}, "param_groups": []}, {"loss_buffer": {}, "state": {}}]
    for state in foreign_states:
        with pytest.raises(ZooError, match="written by PyLO"):
            fresh.load_state_dict(state)


def test_the_network_is_accessible() -> None:
    optimizer = build("ELO_naive", parameters())
    optimizer.network.requires_grad_(False)
    assert {name: tuple(p.shape) for name, p in optimizer.network.named_parameters()} == {
        name: tuple(tensor.shape) for name, tensor in ARTIFACTS["elo"].state_dict().items()
    }


def test_the_guide_names_every_argument_and_class() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "migrating-from-pylo.md").read_text(encoding="utf-8")
    tables = dict(re.findall(r"^\*\*(.+)\*\*\n((?:.*\n)*?)(?=^\*\*|^## )", guide, re.MULTILINE))
    assert {name for heading in tables for name in heading.split(", ")} == set(SIGNATURES)
    for heading, table in tables.items():
        named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
        known = {argument for name in heading.split(", ") for argument in SIGNATURES[name]}
        assert named == known, heading
    assert all(f"`{name}`" in guide for name in pylo.__all__)
