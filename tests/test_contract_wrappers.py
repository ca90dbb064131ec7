"""The contract: what wrappers, quantized models and training frameworks do to an optimizer."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contract_table import TABLE, Entry, give_gradients, holds, loss_at, make, parameters, same, same_state, train
from torch import Tensor, nn

from pylo_zoo.errors import ZooError

# --- steps without gradients -------------------------------------------------------------------------------------

EMPTY_STEPS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda optimizer: optimizer.step(),
    "closure": lambda optimizer: optimizer.step(lambda: None),  # Lightning, if training_step returns None
    "loss": lambda optimizer: optimizer.step(loss=loss_at(0)),
    "nan": lambda optimizer: optimizer.step(loss=torch.tensor(float("nan"))),
    "set_loss": lambda optimizer: [optimizer.set_loss(loss_at(0)), optimizer.step()],
}


@holds("skipped")
@pytest.mark.parametrize(
    ("how", "nonfinite"),
    [*((how, "propagate") for how in EMPTY_STEPS), ("nan", "skip"), ("nan", "raise"), ("closure", "raise")],
)
def test_a_step_without_gradients_changes_nothing(entry: Entry, how: str, nonfinite: str) -> None:
    params, alone = parameters(), parameters()
    more: dict[str, Any] = {"accumulate": 2} if entry.cls.needs_loss else {}
    optimizer, other = make(entry, params, nonfinite=nonfinite, **more), make(entry, alone, **more)
    EMPTY_STEPS[how](optimizer)
    assert not optimizer.state
    for step in range(4):
        train(optimizer, params, range(step, step + 1))
        train(other, alone, range(step, step + 1))
        optimizer.zero_grad()
        before = copy.deepcopy(optimizer.state_dict())
        EMPTY_STEPS[how](optimizer)
        assert same_state(optimizer.state_dict(), before)
    assert same(params, alone)
    assert not same(params, parameters())
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("entry", [TABLE["VeLO"], TABLE["Celo"], TABLE["CeloAdam"]])
def test_a_closure_may_set_the_loss(entry: Entry) -> None:
    """Lightning's hooks run inside the closure, so a loss that they set belongs to this step, not to the next."""
    optimizers = []
    for step in range(2):
        params = parameters()
        optimizer = make(entry, params)
        give_gradients(params, 0)
        if step == 0:
            optimizer.step(loss=loss_at(0))
        else:
            optimizer.step(lambda optimizer=optimizer: [optimizer.set_loss(loss_at(0)), loss_at(1)][1])
            with pytest.raises(ZooError, match="this step has none"):
                optimizer.step()
        optimizers.append(optimizer)
    first, second = (each.param_groups[0]["loss_average"] for each in optimizers)
    assert torch.equal(first, second)
    assert not torch.equal(loss_at(0), loss_at(1))


@holds("skipped")
def test_a_skipped_step_uses_up_its_loss(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    optimizer.set_loss(loss_at(0))
    assert optimizer.step() is not None
    give_gradients(params, 0)
    if entry.cls.needs_loss:
        with pytest.raises(ZooError, match="has none"):
            optimizer.step()
        assert same(params, parameters())
    else:
        assert optimizer.step() is None


# --- parameters that are not trained -----------------------------------------------------------------------------

FROZEN: dict[str, Callable[[], Tensor]] = {
    "uint8": lambda: torch.ones(6, 6, dtype=torch.uint8),
    "int8": lambda: torch.ones(6, 6, dtype=torch.int8),
    "int64": lambda: torch.ones(3, dtype=torch.int64),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "complex64": lambda: torch.ones(4, 4, dtype=torch.complex64),
    "float8": lambda: torch.ones(4, 4).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "expanded": lambda: torch.ones(1, 4).expand(3, 4),
}


@holds("frozen")
def test_frozen_parameters_of_any_kind_are_accepted(entry: Entry) -> None:
    params, alone = parameters(), parameters()
    frozen = [nn.Parameter(build(), requires_grad=False) for build in FROZEN.values()]
    optimizer = make(entry, [*frozen[:4], *params, *frozen[4:]])
    other = make(entry, alone)
    train(optimizer, params, range(3))
    train(other, alone, range(3))
    assert same(params, alone)
    assert not any(p in optimizer.state for p in frozen)
    assert "Parameter Group 0" in repr(optimizer)
    second = make(entry, [*frozen[:4], *parameters(), *frozen[4:]])
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same_state(second.state_dict(), optimizer.state_dict())


@holds("frozen")
@pytest.mark.parametrize("kind", ["complex64", "expanded"])
def test_a_frozen_parameter_that_is_trained_later_is_an_error_before_anything_moves(entry: Entry, kind: str) -> None:
    params, frozen = parameters(), nn.Parameter(FROZEN[kind](), requires_grad=False)
    optimizer = make(entry, [*params, frozen])
    train(optimizer, params, range(2))
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    frozen.requires_grad_(True)
    give_gradients(params, 2)
    frozen.grad = torch.ones(frozen.shape, dtype=frozen.dtype)
    with pytest.raises(ZooError, match="complex64" if kind == "complex64" else "expanded"):
        optimizer.step(loss=loss_at(2))
    assert same_state(optimizer.state_dict(), before[0])
    assert same(params, before[1])
    frozen.grad = None
    train(optimizer, params, range(2, 3))


@holds("frozen")
def test_an_integer_parameter_with_a_gradient_is_an_error(entry: Entry) -> None:
    params, frozen = parameters(), nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
    optimizer = make(entry, [*params, frozen])
    give_gradients(params, 0)
    frozen.grad = torch.ones(3, dtype=torch.int64)
    with pytest.raises(ZooError, match=r"torch\.int64"):
        optimizer.step(loss=loss_at(0))
    assert same(params, parameters())
    assert not optimizer.state


@holds("lazy")
def test_a_lazy_parameter_is_an_error(entry: Entry) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(3, 3))
    with pytest.raises(ZooError, match=r"no shape yet.*Run the model once"):
        make(entry, model.parameters())
    ready = nn.Sequential(nn.LazyLinear(4))
    optimizer = make(entry, parameters())
    with pytest.raises(ZooError, match="no shape yet"):
        optimizer.add_param_group({"params": ready.parameters()})
    assert len(optimizer.param_groups) == 1
    ready(torch.ones(2, 3))
    optimizer.add_param_group({"params": ready.parameters()})


# --- options of other optimizers ---------------------------------------------------------------------------------


@holds("foreign_options")
def test_options_that_would_change_a_step_are_not_ignored(entry: Entry) -> None:
    optimizer = make(entry, parameters())
    options: list[tuple[dict[str, Any], str]] = [
        ({"learning_rate": 1.0}, "'learning_rate'"),
        ({"wd": 0.1}, "'wd'|wd="),
        ({"maximize": True}, "maximize=True"),
        ({"amsgrad": True}, "amsgrad=True"),
        ({"differentiable": True}, "differentiable=True"),
        ({"backend": "eager"}, "sets backend.*constructor"),
        ({"nonfinite": "skip"}, "sets nonfinite.*constructor"),
        ({"clip_norm": 1.0}, "sets clip_norm.*(constructor|clip_grad_norm_)"),
    ]
    if entry.weights is not None:
        options.append(({"weights": "celo2"}, "sets weights='celo2'"))
    if "rule" in optimizer.defaults and entry.weights is not None:
        for option in ({"use_muon": False}, {"use_fallback": True}, {"algorithm": "adamw"}, {"is_embedding": True}):
            options.append((option, f'{next(iter(option))}=.*rule to "adamw"'))
    for option, complaint in options:
        with pytest.raises(ZooError, match=complaint):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(5, 5))], **option})
    assert len(optimizer.param_groups) == 1
    of_adamw = {"maximize": False, "amsgrad": False, "foreach": None, "fused": None, "capturable": False}
    optimizer.add_param_group(
        {"params": [nn.Parameter(torch.zeros(5, 5))], "name": "mine", "lr_scale": 2.0, **of_adamw}
    )


# --- entries of wrappers -----------------------------------------------------------------------------------------


def lookahead(optimizer: Any, params: list[nn.Parameter], step: int) -> None:
    """Entries that Lookahead, SAM and ScheduleFree add to an optimizer: tensors, numbers and nested values."""
    for k, p in enumerate(params):
        state = optimizer.state[p]
        state["slow_buffer"] = p.detach().clone()
        state["old_p"] = {"data": p.detach() * 0.5, "number": step}
        state["history"] = [step, p.detach().mean(), "text"]
        state["k"] = k
    optimizer.state["lookahead"] = {"step": step}
    for group in optimizer.param_groups:
        group.update(k=step, train_mode=True, lr_max=0.5, mine={"a": [1, 2]})


@holds("foreign")
@pytest.mark.parametrize("before_the_first_step", [False, True])
def test_wrapper_entries_are_kept(entry: Entry, before_the_first_step: bool) -> None:
    params, alone, untouched = parameters(), parameters(), nn.Parameter(torch.ones(6, 6))
    optimizer, other = make(entry, [*params, untouched]), make(entry, alone)
    if before_the_first_step:
        lookahead(optimizer, [*params, untouched], 0)
        early = make(entry, [*parameters(), nn.Parameter(torch.ones(6, 6))])
        early.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert same_state(early.state_dict(), optimizer.state_dict())
    train(optimizer, params, range(2))
    train(other, alone, range(2))
    lookahead(optimizer, [*params, untouched], 7)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    second = make(entry, [*resumed, nn.Parameter(torch.ones(6, 6))])
    second.load_state_dict(saved)
    for each in (second, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert same_state(each.state_dict(), optimizer.state_dict())
    first = second.state[resumed[0]]
    assert first["slow_buffer"] is not saved["state"][0]["slow_buffer"]
    assert (first["k"], first["old_p"]["number"], first["history"][2]) == (0, 7, "text")
    assert second.state["lookahead"] == {"step": 7}
    train(second, resumed, range(2, 4))
    train(other, alone, range(2, 4))
    assert same(resumed, alone)


@holds("foreign")
def test_foreign_entries_do_not_hide_damage(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    lookahead(optimizer, params, 1)
    good = copy.deepcopy(optimizer.state_dict())
    foreign = {"slow_buffer", "old_p", "history", "k"}
    for name in set(good["state"][3]) - foreign:
        wrong = copy.deepcopy(good)
        wrong["state"][3].pop(name)
        if set(wrong["state"][3]) == foreign:  # equivalent to a parameter that was never stepped
            continue
        with pytest.raises(ZooError, match="does not fit"):
            optimizer.load_state_dict(wrong)
        assert same_state(optimizer.state_dict(), good)


@holds("foreign")
def test_reading_the_state_leaves_nothing_behind(entry: Entry) -> None:
    """``optimizer.state`` is a defaultdict: reading a missing entry creates it."""
    params, frozen = parameters(), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = make(entry, [*params, frozen])
    assert not [optimizer.state[p].get("momentum") for p in (*params, frozen) if "momentum" in optimizer.state[p]]
    train(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    assert len(saved["state"]) == len(params)
    make(entry, [*parameters(), nn.Parameter(torch.ones(3))]).load_state_dict(saved)


# --- numbers instead of tensors ---------------------------------------------------------------------------------

NUMBERS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "float": float,
    "numpy": np.int64,
    "float32 tensor": lambda n: torch.tensor(float(n)),
    "array": lambda n: np.array(n),
}


@holds("numbers")
@pytest.mark.parametrize("kind", NUMBERS)
def test_counters_can_become_numbers_between_steps(entry: Entry, kind: str) -> None:
    """ScheduleFree's wrapper and PyLO count in ints."""
    params, alone = parameters(), parameters()
    optimizer, other = make(entry, params), make(entry, alone)
    live = "tensor" not in kind  # an existing tensor is kept, not converted
    for step in range(4):
        train(optimizer, params, range(step, step + 1))
        train(other, alone, range(step, step + 1))
        for entries in [*optimizer.param_groups, *optimizer.state.values()] if live else ():
            if "step" in entries:
                entries["step"] = NUMBERS[kind](int(entries["step"]))
    assert same(params, alone)
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in [*saved["param_groups"], *saved["state"].values()]:
        if "step" in entries:
            entries["step"] = NUMBERS[kind](int(entries["step"]))
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(4, 6))
    train(other, alone, range(4, 6))
    assert same(params, alone)


@holds("numbers")
def test_a_number_before_the_first_step_starts_the_count(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    optimizer.param_groups[0]["step"] = 5
    loaded = make(entry, parameters())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loaded.param_groups[0]["step"] == 5
    train(optimizer, params, range(1))
    assert int(optimizer.param_groups[0]["step"]) == (6 if entry.weights is not None else 5)


@holds("numbers")
def test_a_state_from_json_continues_bit_for_bit(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(3))
    state = optimizer.state_dict()
    as_text = json.dumps(state, default=lambda value: value.tolist() if isinstance(value, Tensor) else str(value))
    loaded = json.loads(as_text)
    for saved, group in zip(loaded["param_groups"], state["param_groups"], strict=True):
        saved.update({key: value for key, value in group.items() if isinstance(value, torch.dtype)})
    alone = [nn.Parameter(p.detach().clone()) for p in params]
    other = make(entry, alone)
    other.load_state_dict(loaded)
    assert same_state(other.state_dict()["state"], state["state"])
    train(optimizer, params, range(3, 5))
    train(other, alone, range(3, 5))
    assert same(params, alone)


@holds("numbers")
@pytest.mark.parametrize("wrong", [2.5, -1, "three", None, float("nan"), True, [1, 2]])
def test_an_invalid_counter_is_an_error(entry: Entry, wrong: Any) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(1))
    counters = [each for each in (*optimizer.param_groups, *optimizer.state.values()) if "step" in each]
    good = copy.deepcopy(optimizer.state_dict())
    bad = copy.deepcopy(good)
    for each in (*bad["param_groups"], *bad["state"].values()):
        if "step" in each:
            each["step"] = wrong
    with pytest.raises(ZooError, match="step"):
        optimizer.load_state_dict(bad)
    assert same_state(optimizer.state_dict(), good)
    counters[0]["step"] = wrong
    give_gradients(params, 1)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ZooError, match="step"):
        optimizer.step(loss=loss_at(1))
    assert same(params, before)
