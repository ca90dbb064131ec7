"""The contract: losses, gradients, groups, schedulers."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract_table import TABLE, Entry, give_gradients, holds, loss_at, make, parameters, same, train
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils

from pylo_zoo.errors import ZooError

# --- losses ------------------------------------------------------------------------------------------------------


def one_step(optimizer: Any, how: str, loss: Tensor) -> Any:
    if how == "closure":
        return optimizer.step(lambda: loss)
    if how == "set_loss":
        optimizer.set_loss(loss)
        return optimizer.step()
    return optimizer.step(loss=loss) if how == "loss=" else optimizer.step(loss.item() if how == "number" else loss)


@holds("losses")
def test_the_ways_to_give_a_loss_agree(entry: Entry) -> None:
    runs = []
    for how in ("closure", "loss=", "tensor", "number", "set_loss"):
        params = parameters()
        optimizer = make(entry, params)
        for step in range(3):
            give_gradients(params, step)
            loss = loss_at(step).requires_grad_(how == "tensor")
            returned = one_step(optimizer, how, loss)
            assert returned == loss.item() if how == "number" else returned is loss
        runs.append(params)
    assert not same(runs[0], parameters())
    assert all(same(runs[0], run) for run in runs[1:])


@holds("losses")
@pytest.mark.parametrize("more", [{}, {"accumulate": 2}], ids=str)
def test_a_number_is_not_rounded_to_float32_in_a_float64_run(entry: Entry, more: dict[str, Any]) -> None:
    runs = []
    for loss in (1 / 3, torch.tensor(1 / 3, dtype=torch.float64)):
        params = parameters(torch.float64)
        optimizer = make(entry, params, **(more if "accumulate" in inspect.signature(entry.cls).parameters else {}))
        for step in range(8):
            give_gradients(params, step)
            optimizer.step(loss=loss)
        runs.append(params)
    assert same(*runs)


@holds("losses")
def test_a_closure_runs_with_gradients_on(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((p.square().sum() for p in params), torch.zeros(()))
        loss.backward()
        return loss

    with torch.no_grad():
        optimizer.step(closure)
    assert all(p.grad is not None for p in params)
    assert not same(params, parameters())


@holds("missing_loss")
def test_a_missing_duplicate_or_malformed_loss_is_an_error_before_anything_moves(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    give_gradients(params, 0)
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: optimizer.step(), r"step\(loss\)"),
        (lambda: optimizer.step(lambda: None), "has none"),
        (lambda: optimizer.step(loss=torch.ones(3)), "not a real scalar"),
        (lambda: optimizer.step(loss=torch.tensor(1j)), "not a real scalar"),
        (lambda: optimizer.step(loss=True), "not a real scalar: bool"),
        (lambda: optimizer.step("x"), "not a real scalar: str"),
        (lambda: optimizer.step([1.0]), "not a real scalar: list"),
        (lambda: optimizer.step(loss_at(0), loss=loss_at(0)), "both a closure and a loss"),
    ]
    for call, complaint in wrong:
        with pytest.raises(ZooError, match=complaint):
            call()
    assert same(params, parameters())
    assert not optimizer.state
    assert "step" not in optimizer.param_groups[0]


@holds("pending_loss")
def test_a_pending_loss_is_used_once_and_replaced_by_a_newer_one(entry: Entry) -> None:
    runs = []
    for noise in (False, True):
        params = parameters()
        optimizer = make(entry, params)
        for step in range(2):
            give_gradients(params, step)
            if noise:
                optimizer.set_loss(torch.tensor(float("nan")))  # set by a step that a GradScaler skipped
            if step == 0:
                optimizer.set_loss(loss_at(0))
                optimizer.step()
            else:
                optimizer.step(loss=loss_at(1))
        with pytest.raises(ZooError, match="has none"):
            optimizer.step()
        runs.append(params)
    assert same(*runs)


@holds("pending_loss")
def test_a_loaded_state_drops_the_pending_loss(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(1))
    optimizer.set_loss(loss_at(0))
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ZooError, match="has none"):
        optimizer.step()


# --- gradients ---------------------------------------------------------------------------------------------------


@holds("zero_grad")
def test_zero_grad_and_gradients_are_never_written(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    give_gradients(params, 0)
    for p in params:
        p.grad = p.grad * 1e6  # pyright: ignore[reportOptionalOperand]
    before = [p.grad.clone() for p in params if p.grad is not None]
    optimizer.step(loss=loss_at(0))
    assert same([p.grad for p in params], before)
    assert all(torch.isfinite(p).all() for p in params)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@holds("none_grads")
def test_absent_gradients_and_frozen_parameters_are_left_alone(entry: Entry) -> None:
    params, absent, frozen = parameters(), nn.Parameter(torch.ones(6, 6)), nn.Parameter(torch.ones(3), False)
    alone = parameters()
    optimizer, other = make(entry, [*params, absent, frozen]), make(entry, alone)
    train(optimizer, params, range(3))
    train(other, alone, range(3))
    assert same(params, alone)
    for p in (absent, frozen):
        assert bool((p == 1).all())
        assert p.grad is None
        assert p not in optimizer.state


# --- groups ------------------------------------------------------------------------------------------------------


@holds("added_later")
def test_parameters_can_be_added_during_a_run(entry: Entry) -> None:
    early, late = parameters(shapes=[(6, 6), (7,)]), parameters(shapes=[(6, 6), (7,)], seed=1)
    optimizer = make(entry, early)
    train(optimizer, early, range(2))
    optimizer.add_param_group({"params": late[:1]})
    late[1].requires_grad_(False)
    optimizer.add_param_group({"params": late[1:], "lr": 0.5})
    train(optimizer, [*early, late[0]], range(2, 3))
    assert same(late[1:], parameters(shapes=[(6, 6), (7,)], seed=1)[1:])
    late[1].requires_grad_(True)
    train(optimizer, [*early, *late], range(3, 4))
    fresh = parameters(shapes=[(6, 6), (7,)], seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(late, fresh, strict=True))
    groups = optimizer.param_groups
    assert all(group.get("step") is groups[0].get("step") for group in groups)
    counts = [int(optimizer.state[p]["step"]) for p in (early[1], late[1]) if "step" in optimizer.state[p]]
    assert counts in ([], [4, 1])


@holds("groups")
@pytest.mark.filterwarnings("ignore:weight_decay=0.5")
def test_groups_have_their_own_options(entry: Entry) -> None:
    shapes = [(6, 6), (7,)]
    still, decayed, plain = (parameters(shapes=shapes) for _ in range(3))
    optimizer = make(entry, [{"params": still, "lr": 0.0}, {"params": decayed, "weight_decay": 0.5}, {"params": plain}])
    for p, q, r in zip(still, decayed, plain, strict=True):
        p.grad = q.grad = r.grad = torch.arange(1.0, p.numel() + 1).view_as(p) / p.numel()
    optimizer.step(loss=loss_at(0))
    assert same(still, parameters(shapes=shapes))
    assert not any(torch.equal(q, r) for q, r in zip(decayed, plain, strict=True))
    assert not any(torch.equal(r, s) for r, s in zip(plain, still, strict=True))


@holds("bad_groups")
def test_an_invalid_group_is_an_error_and_not_added(entry: Entry) -> None:
    optimizer = make(entry, parameters())
    options: list[tuple[dict[str, Any], str]] = [
        ({"layout": "rows"}, "layout is 'rows'"),
        ({"rule": "sgd"}, "rule is 'sgd'"),
        ({"layuot": "jax"}, "layuot.*Did you mean 'layout'"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"lr": torch.ones(2)}, "lr is a tensor"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"weight_decay": True}, "weight_decay is True"),
        ({"lr": 10**400}, "lr is a number of 401 digits"),
        ({"master_weights": 1}, "master_weights is 1"),
    ]
    for option, complaint in options:
        with pytest.raises(ZooError, match=complaint):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))], **option})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ZooError, match="nonfinite is 'ignore'"):
        make(entry, parameters(), nonfinite="ignore")


# --- learning rates ----------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.8)], [2]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.001, 3),
}


def test_every_torch_scheduler_is_covered() -> None:
    known = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler", "_LRScheduler")}
    assert known <= SCHEDULERS.keys()


@holds("schedulers")
@pytest.mark.filterwarnings("ignore:lr has fallen")
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # torch 2.6's SequentialLR triggers it
def test_every_scheduler_sets_the_same_lr_as_for_adamw_and_the_step_uses_it(entry: Entry) -> None:
    for name, build in SCHEDULERS.items():
        params, torch_params, by_hand = (parameters(shapes=[(6, 6), (7,)]) for _ in range(3))
        optimizer, adamw, third = (
            make(entry, params, lr=0.05),
            torch.optim.AdamW(torch_params, lr=0.05),
            make(entry, by_hand),
        )
        scheduler, other = build(optimizer), build(adamw)
        for step in range(6):
            assert optimizer.param_groups[0]["lr"] == adamw.param_groups[0]["lr"], name
            third.param_groups[0]["lr"] = adamw.param_groups[0]["lr"]
            train(optimizer, params, range(step, step + 1))
            train(third, by_hand, range(step, step + 1))
            give_gradients(torch_params, step)
            adamw.step()
            for each in (scheduler, other):
                each.step(1.0) if name == "ReduceLROnPlateau" else each.step()
        assert same(params, by_hand), name
        again = make(entry, parameters(shapes=[(6, 6), (7,)]), lr=0.05)
        build(again)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # with the schedulers' entries in the groups
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def schedulers_take_vectors() -> bool:
    """Whether torch's schedulers can set an ``lr`` of shape ``[1]``: those of torch 2.6 raise."""
    optimizer = torch.optim.SGD(parameters(), lr=torch.tensor([0.5]))
    try:
        scheduler = lr_scheduler.StepLR(optimizer, step_size=1)
        optimizer.step()
        scheduler.step()
    except RuntimeError:
        return False
    return True


@holds("tensor_lr")
@pytest.mark.filterwarnings("ignore:lr has fallen")
def test_a_tensor_lr_acts_like_a_float_lr(entry: Entry) -> None:
    ends = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5] if schedulers_take_vectors() else 0.5)):
        params = parameters()
        optimizer = make(entry, params, lr=lr)
        scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for step in range(3):
            train(optimizer, params, range(step, step + 1))
            scheduler.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.0625)
        assert isinstance(optimizer.param_groups[0]["lr"], type(lr))
        ends.append(params)
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def train_from_here(optimizer: Any, params: list[nn.Parameter], steps: range) -> None:
    """Like ``train``, but the step is in this file: the warning must point at the user's line, not at the library's."""
    for step in steps:
        give_gradients(params, step)
        optimizer.step(loss=loss_at(step))


@holds("horizon")
def test_steps_past_num_steps_continue_and_warn_once(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params, num_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, params, range(3))
    before = copy.deepcopy(params)
    with pytest.warns(UserWarning, match="num_steps=3") as caught:
        train_from_here(optimizer, params, range(3, 6))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not same(before, params)
    assert all(torch.isfinite(p).all() for p in params)


@holds("horizon")
def test_num_steps_is_part_of_the_run_state(entry: Entry) -> None:
    with pytest.raises(ZooError, match="num_steps=7, but the run has 100"):
        make(entry, [{"params": parameters(), "num_steps": 7}])
    for wrong in (0, -3, 2.5, True, 10**400):
        with pytest.raises(ZooError, match="num_steps"):
            make(entry, parameters(), num_steps=wrong)


@holds("repr")
def test_repr_shows_options_and_no_buffers(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params, lr=0.125)
    fresh = repr(optimizer)
    train(optimizer, params, range(2))
    assert repr(optimizer) == fresh
    assert fresh.startswith(f"{entry.cls.__name__} (\nParameter Group 0: 309 parameters in 7 tensors\n")
    assert "    lr: 0.125\n" in fresh
    assert "tensor(" not in fresh
    assert all(name in fresh for name in ("weight_decay", "layout", "master_weights"))


def test_the_table_has_every_optimizer_of_the_package() -> None:
    from pylo_zoo import optim

    classes = {
        each for each in vars(optim).values() if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
    }
    assert classes - {optim.LearnedOptimizer} == {entry.cls for entry in TABLE.values()}
