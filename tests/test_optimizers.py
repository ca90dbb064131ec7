"""What every optimizer owes its user, over a table of them all."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from golden_data import artifact
from torch import Tensor, nn
from trees import synthetic_artifact

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, ELO, ELO_CELO2, AdafacLO, Celo, CeloAdam, MuLO, VeLO
from pylo_zoo.optim.base import LearnedOptimizer


class Entry(NamedTuple):
    cls: type[LearnedOptimizer]
    weights: Artifact
    arguments: dict[str, Any]


TABLE = {
    "VeLO": Entry(VeLO, artifact("velo_small"), {"num_steps": 50}),
    "VeLO, bugged": Entry(VeLO, artifact("velo_bugged"), {"num_steps": 50}),
    "Celo": Entry(Celo, synthetic_artifact("celo"), {"num_steps": 50}),
    "CeloAdam": Entry(CeloAdam, synthetic_artifact("celo-adam"), {"num_steps": 50}),
    "CELO2": Entry(CELO2, artifact("celo2"), {}),
    "CELO2-base": Entry(CELO2, artifact("celo2_base"), {"weight_decay": 0.1}),
    "ELO_CELO2": Entry(ELO_CELO2, artifact("elo_celo2"), {}),
    "ELO": Entry(ELO, artifact("elo"), {"clip_norm": 1.0}),
    "AdafacLO": Entry(AdafacLO, artifact("small_fc_lopt"), {}),
    "MuLO": Entry(MuLO, artifact("small_fc_lopt"), {}),
}
SHAPES = [(), (7,), (1,), (6, 6), (11, 3), (5, 5, 3, 3), (1, 6)]

every_optimizer = pytest.mark.parametrize("entry", TABLE.values(), ids=TABLE.keys())


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def make(entry: Entry, params: Any, **more: Any) -> LearnedOptimizer:
    return entry.cls(params, weights=entry.weights, **{**entry.arguments, **more})


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def loss_at(step: int) -> Tensor:
    return torch.tensor(2.0 * 0.95**step)


def train(optimizer: LearnedOptimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step(loss=loss_at(step))


def same(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- losses ------------------------------------------------------------------------------------------------------


@every_optimizer
def test_the_four_ways_to_give_a_loss_agree(entry: Entry) -> None:
    runs = []
    for how in ("closure", "loss=", "positional", "set_loss"):
        params = parameters()
        optimizer = make(entry, params)
        for step in range(3):
            give_gradients(params, step)
            loss = loss_at(step)
            if how == "closure":
                assert optimizer.step(lambda loss=loss: loss) is loss
            elif how == "loss=":
                assert optimizer.step(loss=loss) is loss
            elif how == "positional":
                optimizer.step(loss.item())
            else:
                optimizer.set_loss(loss)
                optimizer.step()
        runs.append(params)
    assert not same(runs[0], parameters())
    assert all(same(runs[0], run) for run in runs[1:])


@every_optimizer
def test_a_missing_loss_is_an_error_before_anything_moves(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    before, state = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict())
    if not entry.cls.needs_loss:
        optimizer.step()
        assert not same(before, params)
        return
    with pytest.raises(ZooError, match="step\\(loss\\)"):
        optimizer.step()
    with pytest.raises(ZooError, match="not a scalar"):
        optimizer.step(loss=torch.ones(3))
    assert same(before, params)
    assert torch.equal(optimizer.state_dict()["param_groups"][0]["step"], state["param_groups"][0]["step"])


def test_a_loss_is_used_once_and_never_chosen_silently() -> None:
    params = parameters()
    optimizer = make(TABLE["VeLO"], params)
    give_gradients(params, 0)
    optimizer.set_loss(loss_at(0))
    optimizer.step()
    with pytest.raises(ZooError, match="has none"):
        optimizer.step()
    optimizer.set_loss(loss_at(1))
    with pytest.raises(ZooError, match="more than one loss"):
        optimizer.step(loss=loss_at(1))
    optimizer.step(loss=loss_at(1))  # the error has cleared the pending loss


@pytest.mark.parametrize("loss", ["x", [1.0], None])
def test_a_loss_of_another_type_is_an_error_before_any_state_is_made(loss: Any) -> None:
    params = parameters()
    optimizer = make(TABLE["VeLO"], params)
    give_gradients(params, 0)
    with pytest.raises(ZooError, match="loss"):
        optimizer.step(loss)
    assert not optimizer.state


# --- state -------------------------------------------------------------------------------------------------------


@every_optimizer
def test_a_saved_run_goes_on_bit_for_bit(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(5))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = [nn.Parameter(p.detach().clone()) for p in saved["params"]]
    second = make(entry, resumed)
    second.load_state_dict(saved["optimizer"])
    pickled, copied = pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)
    train(optimizer, params, range(5, 15))
    train(second, resumed, range(5, 15))
    assert same(params, resumed)
    for other in (pickled, copied):
        theirs = [p for group in other.param_groups for p in group["params"]]
        train(other, theirs, range(5, 15))
        assert same(params, theirs)


@every_optimizer
def test_low_precision_parameters_keep_float32_state(entry: Entry) -> None:
    params = parameters(torch.bfloat16)
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    second = make(entry, params)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p in params:
        assert p.dtype == torch.bfloat16
        for name, value in second.state[p].items():
            assert value.dtype == (torch.int64 if name == "step" else torch.float32)
            assert torch.equal(value, optimizer.state[p][name])


@every_optimizer
def test_float64_parameters_are_updated_in_float64(entry: Entry) -> None:
    params, halves = parameters(torch.float64), parameters()
    for each in (params, halves):
        train(make(entry, each), each, range(1))
    for p, half in zip(params, halves, strict=True):
        assert p.dtype == torch.float64
        torch.testing.assert_close(p.float(), half, rtol=1e-4, atol=1e-5)
    assert any((p.detach() != half.detach().double()).any() for p, half in zip(params, halves, strict=True))


@every_optimizer
def test_a_state_that_does_not_fit_changes_nothing(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    good = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state_dict())

    def broken(change: Any) -> dict[str, Any]:
        state = copy.deepcopy(good)
        change(state)
        return state

    name = next(name for name in good["state"][3] if name not in ("step", "lstm_hidden", "lstm_cell"))
    for wrong, complaint in (
        (broken(lambda s: s["state"][3].pop(name)), "does not fit"),
        (broken(lambda s: s["state"][3].update(extra=torch.zeros(1))), "does not fit"),
        (broken(lambda s: s["state"][3].update({name: torch.zeros(2, 2)})), "does not fit"),
        (broken(lambda s: s["param_groups"][0].update(weights="other")), "other weights"),
        (broken(lambda s: s["param_groups"][0]["params"].pop()), "groups hold"),
        (broken(lambda s: s["state"].update({99: {}})), "no parameter"),
    ):
        with pytest.raises(ZooError, match=complaint):
            optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert after["state"].keys() == before["state"].keys()
    for key, entry_before in before["state"].items():
        assert all(torch.equal(value, after["state"][key][each]) for each, value in entry_before.items())


# --- parameters and groups ---------------------------------------------------------------------------------------


@every_optimizer
def test_gradients_are_read_only_and_absent_ones_skipped(entry: Entry) -> None:
    params = [*parameters(), nn.Parameter(torch.ones(3)), nn.Parameter(torch.empty(0, 4))]
    optimizer = make(entry, params)
    give_gradients(params, 0)
    for p in params:
        assert p.grad is not None
        p.grad *= 1e6
    params[-2].grad = None
    gradients = [None if p.grad is None else p.grad.clone() for p in params]
    optimizer.step(loss=loss_at(0))
    assert torch.equal(params[-2], torch.ones(3))
    assert params[-2] not in optimizer.state
    for p, gradient in zip(params, gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)  # pyright: ignore[reportArgumentType]
        assert torch.isfinite(p).all()


@every_optimizer
def test_memory_format_does_not_matter(entry: Entry) -> None:
    plain = [nn.Parameter(torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)))]
    strided = [nn.Parameter(plain[0].detach().clone().to(memory_format=torch.channels_last))]
    for params in (plain, strided):
        train(make(entry, params), params, range(3))
    torch.testing.assert_close(plain[0], strided[0].contiguous(), rtol=1e-5, atol=1e-7)


@every_optimizer
def test_groups_have_their_own_options(entry: Entry) -> None:
    frozen, moving = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    optimizer = make(entry, [{"params": [frozen], "lr": 0.0}, {"params": [moving]}])
    late = nn.Parameter(torch.ones(4, 3))
    for step in range(3):
        if step == 1:
            optimizer.add_param_group({"params": [late]})
        for p in (frozen, moving, late):
            p.grad = torch.full_like(p, 0.5) + torch.arange(12.0).view(4, 3) / 10
        optimizer.step(loss=loss_at(step))
    assert torch.equal(frozen, torch.ones(4, 3))
    assert not torch.equal(moving, torch.ones(4, 3))
    assert not torch.equal(late, torch.ones(4, 3))
    assert all(group["step"] is optimizer.param_groups[0]["step"] for group in optimizer.param_groups)


@every_optimizer
def test_a_tensor_lr_and_a_scheduler_act_as_a_float(entry: Entry) -> None:
    ends = []
    for lr in (0.5, torch.tensor(0.5)):
        params = parameters()
        optimizer = make(entry, params, lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for step in range(3):
            give_gradients(params, step)
            optimizer.step(loss=loss_at(step))
            scheduler.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.0625)
        ends.append(params)
    assert same(*ends)


@pytest.mark.parametrize(
    ("params", "arguments", "complaint"),
    [
        ([{"params": [torch.zeros(2, 2)], "layout": "rows"}], {}, "layout is 'rows'"),
        ([{"params": [torch.zeros(2, 2)], "rule": "sgd"}], {}, "rule is 'sgd'"),
        ([{"params": [torch.zeros(2, 2)], "layuot": "jax"}], {}, "layuot"),
        ([torch.zeros(2, 2)], {"lr": -1.0}, "lr is -1.0"),
        ([torch.zeros(2, 2)], {"weight_decay": -1.0}, "weight_decay is -1.0"),
        ([torch.zeros(2, 2)], {"clip_norm": 0.0}, "clip_norm is 0.0"),
        ([torch.zeros(2, 2, dtype=torch.complex64)], {}, "complex64"),
    ],
)
def test_arguments_are_checked(params: Any, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        make(TABLE["CELO2"], params, **arguments)


def test_a_rejected_group_is_not_kept() -> None:
    optimizer = make(TABLE["CELO2"], parameters())
    with pytest.raises(ZooError, match="layout"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "layout": "rows"})
    assert len(optimizer.param_groups) == 1


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(ZooError, match=r"VeLO cannot run .* celo2 checkpoint"):
        VeLO(parameters(), num_steps=5, weights=artifact("celo2"))


def test_num_steps_belongs_to_the_run() -> None:
    with pytest.raises(ZooError, match="num_steps=7, the run 5"):
        VeLO([{"params": parameters(), "num_steps": 7}], num_steps=5, weights=artifact("velo_small"))


@pytest.mark.parametrize("num_steps", [0, -3, 2.5, True])
def test_num_steps_is_checked(num_steps: Any) -> None:
    with pytest.raises(ZooError, match="num_steps"):
        VeLO(parameters(), num_steps=num_steps, weights=artifact("velo_small"))


def test_an_undeclared_3d_parameter_warns_once_and_a_declared_one_does_not() -> None:
    stacks = [nn.Parameter(torch.ones(2, 3, 4)), nn.Parameter(torch.ones(2, 3, 4))]
    with pytest.warns(UserWarning, match="1-d convolution") as caught:
        make(TABLE["CELO2"], stacks)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(TABLE["CELO2"], [{"params": stacks, "layout": "jax"}])


def test_steps_past_the_horizon_go_on_and_warn_once() -> None:
    params = parameters()
    optimizer = make(TABLE["VeLO"], params, num_steps=3)
    train(optimizer, params, range(3))
    with pytest.warns(UserWarning, match="num_steps=3") as caught:
        train(optimizer, params, range(3, 6))
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the user's line, not the library's
    assert all(torch.isfinite(p).all() for p in params)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ZooError, match="sparse"):
        make(TABLE["ELO"], embedding.parameters()).step()


# --- the rules' own claims ---------------------------------------------------------------------------------------


def test_clip_norm_is_clipping_beforehand() -> None:
    inside, outside = parameters(), parameters()
    first, second = make(TABLE["AdafacLO"], inside, clip_norm=0.5), make(TABLE["AdafacLO"], outside)
    for step in range(3):
        give_gradients(inside, step)
        give_gradients(outside, step)
        torch.nn.utils.clip_grad_norm_(outside, 0.5)
        first.step()
        second.step()
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_celo2s_adamw_is_torchs() -> None:
    ours, theirs = [nn.Parameter(torch.linspace(-1, 1, 12))], [nn.Parameter(torch.linspace(-1, 1, 12))]
    first = make(TABLE["CELO2"], ours, lr=1e-3, weight_decay=0.1, adam_lr_mult=20.0)
    second = torch.optim.AdamW(theirs, lr=2e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        first.step()
        second.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


def test_rules_route_by_group_and_by_shape() -> None:
    vector, table, matrix = (nn.Parameter(torch.ones(shape)) for shape in ((4,), (6, 4), (6, 4)))
    groups = [{"params": [vector, matrix]}, {"params": [table], "rule": "adamw", "layout": "jax"}]
    for name, of_vector in (("CELO2", "adamw"), ("CELO2-base", "learned")):
        optimizer = make(TABLE[name], copy.deepcopy(groups))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        give_gradients(params, 0)
        optimizer.step()
        found = ["adamw" if "step" in optimizer.state[p] else "learned" for p in params]
        assert found == [of_vector, "learned", "adamw"]


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
        torch.testing.assert_close((p - s) / 4, w - s, rtol=1e-4, atol=1e-6)


def test_elo_and_mulo_replace_non_finite_gradients_and_others_do_not() -> None:
    for name, survives in (("ELO", True), ("MuLO", True), ("AdafacLO", False)):
        p = nn.Parameter(torch.ones(4, 3))
        p.grad = torch.full((4, 3), 0.1)
        p.grad[0, 0] = float("nan")
        make(TABLE[name], [p], clip_norm=None).step()
        assert bool(torch.isfinite(p).all()) is survives
