"""The contract: the checks of PyTorch's own optimizer tests, applied to these optimizers.

The error cases of ``torch.testing._internal.common_optimizers`` run unchanged. The checks of ``test/test_optim.py`` are
not part of a PyTorch wheel; they are rewritten here under their original names.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from contract_table import (
    PROPERTIES,
    TABLE,
    TRAINED,
    Entry,
    give_gradients,
    holds,
    loss_at,
    make,
    owned,
    parameters,
    same,
    same_state,
    train,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@holds("torch_errors")
def test_errors(entry: Entry) -> None:
    """``test_errors``: invalid, duplicate and partly named parameters, and a tensor lr with two elements."""
    from torch.testing._internal.common_optimizers import get_error_inputs_for_all_optims

    cases = get_error_inputs_for_all_optims("cpu", torch.float32)
    assert len(cases) >= 5
    for case in cases:
        inputs = case.optimizer_error_input
        if "param groups should be with/without names" in case.error_regex:
            make(entry, inputs.params)  # accepted here: test_contract_mistakes.py
            continue
        params = parameters() if inputs.params is None else inputs.params
        expected = (
            pytest.warns(UserWarning, match=case.error_regex)
            if case.error_type is UserWarning
            else pytest.raises(case.error_type, match=case.error_regex)
        )
        with expected:
            make(entry, params, **inputs.kwargs)
    with pytest.raises(TypeError, match="must be a dict"):
        make(entry, parameters()).add_param_group(parameters())
    with pytest.raises(ValueError, match="empty parameter list"):
        make(entry, [])


@holds("torch_direction")
@pytest.mark.filterwarnings("ignore:lr has fallen")  # test_contract_advice.py tests the warning
@pytest.mark.parametrize("scheduler", [None, "StepLR", "ReduceLROnPlateau"])
@pytest.mark.parametrize("contiguous", [True, False])
def test_forloop_goes_right_direction(entry: Entry, contiguous: bool, scheduler: str | None) -> None:
    torch.manual_seed(0)
    weight = torch.randn(10, 5) if contiguous else torch.randn(10, 5, 2)[..., 0]
    bias = torch.randn(10) if contiguous else torch.randn(10, 2)[..., 0]
    params, x = [nn.Parameter(weight), nn.Parameter(bias)], torch.randn(5)
    assert all(p.is_contiguous() == contiguous for p in params)
    optimizer = make(entry._replace(weights=TRAINED[entry.cls]()) if entry.cls in TRAINED else entry, params)
    built = {
        "StepLR": lambda: lr_scheduler.StepLR(optimizer, 10, 0.9),
        "ReduceLROnPlateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer),
    }
    schedule = built[scheduler]() if scheduler else None

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (params[0].mv(x) + params[1]).pow(2).sum()
        loss.backward()
        return loss

    initial = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
            schedule.step(loss.detach())
        elif schedule is not None:
            schedule.step()
    assert closure().item() < initial


@holds("torch_noop")
def test_step_is_noop_when_params_have_no_grad(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params, weight_decay=1e-3)
    optimizer.step(loss=loss_at(0))
    assert same(params, parameters())
    assert not optimizer.state
    assert "step" not in optimizer.param_groups[0]


@holds("torch_zero")
def test_step_is_noop_for_zero_grads(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    for _ in range(2):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step(loss=loss_at(0))
    assert same(params, parameters())


MOVED = [name for name in TABLE if PROPERTIES["torch_zero"].reason(name) is not None]


@pytest.mark.parametrize("name", MOVED)
def test_zero_gradients_move_the_optimizers_left_out(name: str) -> None:
    """The reason in the table is true: without decay, zero gradients move a matrix by more than a rounding."""
    params = [nn.Parameter(torch.ones(6, 6)), nn.Parameter(torch.ones(7))]
    optimizer = make(TABLE[name], params, weight_decay=0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step(loss=loss_at(0))
    eps = torch.finfo(torch.float32).eps
    assert float((params[0].detach() - 1).abs().max()) > 10 * eps
    of_adamw = "step" in optimizer.state[params[1]]  # CELO2's path for vectors
    assert bool((params[1] == 1).all()) == of_adamw


# --- hooks -------------------------------------------------------------------------------------------------------


@holds("torch_hooks")
def test_step_all_hooks(entry: Entry) -> None:
    params, alone = parameters(), parameters()
    hooked, other = make(entry, params), make(entry, alone)
    seen: list[str] = []

    def recording(word: str) -> Any:
        return lambda opt, args, kwargs: seen.append(word) if opt is hooked else None

    handles = [
        hooked.register_step_pre_hook(recording("pre")),
        hooked.register_step_pre_hook(lambda opt, args, kwargs: ((opt, loss_at(0)), {})),  # may replace the arguments
        hooked.register_step_post_hook(recording("post")),
        register_optimizer_step_pre_hook(recording("global pre")),
        register_optimizer_step_post_hook(recording("global post")),
    ]
    try:
        give_gradients(params, 0)
        hooked.step(loss=torch.tensor(7.0))
        train(other, alone, range(1))
        assert seen == ["global pre", "pre", "post", "global post"]
        assert same(params, alone)
    finally:
        for handle in handles:
            handle.remove()
    train(hooked, params, range(1, 2))
    assert len(seen) == 4


@holds("torch_state_hooks")
def test_state_dict_hooks(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(1))
    recorded: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: recorded.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "mine": 1})
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "first": "mine" not in state}, prepend=True)
    state = optimizer.state_dict()
    assert recorded == ["pre"]
    assert (state["mine"], state["first"]) == (1, True)


@holds("torch_state_hooks")
def test_load_state_dict_hooks(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    other = make(entry, parameters())
    recorded: list[str] = []

    def pre(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        recorded.append("pre")
        assert not opt.state
        groups = [{**group, "lr": 0.25} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def post(opt: Any) -> None:
        recorded.append("post")
        assert len(opt.state) == len(params)
        assert opt.param_groups[0]["lr"] == 0.25

    other.register_load_state_dict_pre_hook(pre)
    other.register_load_state_dict_pre_hook(lambda opt, state: recorded.append("first"), prepend=True)
    other.register_load_state_dict_post_hook(post)
    other.load_state_dict(saved)
    assert recorded == ["first", "pre", "post"]
    assert same_state(saved, optimizer.state_dict())  # the loaded dict is unchanged
    assert same_state(other.state_dict()["state"], saved["state"])


# --- states and copies -------------------------------------------------------------------------------------------


@holds("torch_state")
def test_state_dict_deterministic(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(3))
    again = [nn.Parameter(p.detach().clone()) for p in params]
    other = make(entry, again)
    loaded = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(loaded)
    for step in range(3, 6):
        train(optimizer, params, range(step, step + 1))
        train(other, again, range(step, step + 1))
        assert same(params, again)
    assert same_state(optimizer.state_dict(), other.state_dict())
    assert not same_state(loaded, other.state_dict())


@holds("torch_state")
@pytest.mark.parametrize("named", [(False, True), (True, False), (True, True)])
def test_can_load_from_to_named_state_dict(entry: Entry, named: tuple[bool, bool]) -> None:
    def build(params: list[nn.Parameter], with_names: bool) -> Any:
        return make(entry, [(f"p{k}", p) for k, p in enumerate(params)] if with_names else params)

    params = parameters()
    optimizer = build(params, named[0])
    train(optimizer, params, range(2))
    other = build(parameters(), named[1])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch_optimizer = torch.optim.AdamW(
        parameters() if not named[1] else [(f"p{k}", p) for k, p in enumerate(parameters())]
    )
    torch_optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    assert other.param_groups[0].get("param_names") == torch_optimizer.param_groups[0].get("param_names")
    assert same_state(other.state_dict()["state"], optimizer.state_dict()["state"])


@holds("torch_state")
def test_save_load_equality_with_weights_only(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params, lr=torch.tensor(0.01))
    train(optimizer, params, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert same_state(torch.load(file, weights_only=True), optimizer.state_dict())


@holds("torch_counter")
def test_load_nontensor_step(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in [*saved["state"].values(), *saved["param_groups"]]:
        if "step" in entries:
            entries["step"] = float(entries["step"])
    alone = [nn.Parameter(p.detach().clone()) for p in params]
    other = make(entry, alone)
    other.load_state_dict(saved)
    assert same_state(other.state_dict(), optimizer.state_dict())
    train(optimizer, params, range(3, 5))
    train(other, alone, range(3, 5))
    assert same(params, alone)


@holds("torch_copies")
def test_deepcopy_copies_all_public_attrs_and_state_is_there(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(1))
    copied = copy.deepcopy(optimizer)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public == {name for name in vars(copied) if not name.startswith("_")}
    assert all(optimizer.state[p] for p in params)
    assert same_state(copied.state_dict(), optimizer.state_dict())
    assert not set(owned(copied)) & set(params)
