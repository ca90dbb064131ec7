"""Mistakes and edge cases of every optimizer's constructor and groups: modules, names, infinite limits."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from contract_table import TABLE, Entry, give_gradients, loss_at, make, owned, parameters, same, train
from torch import nn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim import param_groups
from pylo_zoo.optim.checks import check_limit, check_max_norm

entries = pytest.mark.parametrize("entry", TABLE.values(), ids=list(TABLE))
CLIPS = [
    (name, option)
    for name, entry in TABLE.items()
    for option in ("clip_norm", "grad_clip_val")
    if option in inspect.signature(entry.cls).parameters
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)


# --- modules -----------------------------------------------------------------------------------------------------

MODULES: dict[str, Any] = {
    "module": Net,
    "sequential": lambda: nn.Sequential(nn.Linear(3, 3)),
    "list": lambda: [Net()],
    "list of groups": lambda: [{"params": Net()}],
    "groups of lists": lambda: [{"params": [Net()]}],
    "parameter dict": lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(3))}),
}


@entries
@pytest.mark.parametrize("kind", MODULES)
def test_a_module_instead_of_parameters_is_one_error(entry: Entry, kind: str) -> None:
    with pytest.raises(ZooError, match=r"received the module (Net|Sequential|ParameterDict) .*model\.parameters\(\)"):
        make(entry, MODULES[kind]())


@entries
def test_a_module_in_a_new_group_is_an_error_and_is_not_kept(entry: Entry) -> None:
    optimizer = make(entry, parameters())
    with pytest.raises(ZooError, match="received the module Net"):
        optimizer.add_param_group({"params": Net()})
    assert len(optimizer.param_groups) == 1


@entries
def test_a_module_is_reported_before_weights_are_loaded(entry: Entry) -> None:
    if entry.weights is not None:
        with pytest.raises(ZooError, match="received the module Net"):
            make(entry, Net(), weights="no-such-weights")


@entries
def test_what_contains_parameters_is_accepted(entry: Entry) -> None:
    for params in (
        nn.ParameterList(parameters()),
        parameters()[0],
        iter(parameters()),
        Net().named_parameters(),
        [{"params": p} for p in parameters()],
    ):
        if not isinstance(params, torch.Tensor):
            assert owned(make(entry, params))


# --- names -------------------------------------------------------------------------------------------------------


def unnamed() -> dict[str, Any]:
    return {"params": Net().parameters(), "lr": 0.5}


def named() -> dict[str, Any]:
    return {"params": Net().named_parameters(prefix="late"), "lr": 0.5}


def tensor() -> dict[str, Any]:
    return {"params": nn.Parameter(torch.ones(5, 5)), "lr": 0.5}


STARTS = {
    "param_groups": param_groups,
    "named": lambda model: model.named_parameters(),
    "unnamed": lambda model: model.parameters(),
}


@entries
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("group", [unnamed, named, tensor])
def test_groups_with_and_without_names_can_be_added(entry: Entry, start: str, group: Any) -> None:
    model = Net()
    optimizer = make(entry, STARTS[start](model))
    train(optimizer, owned(optimizer), range(1))
    optimizer.add_param_group(group())
    optimizer.add_param_group(group())
    train(optimizer, owned(optimizer), range(1, 3))
    assert {group["lr"] for group in optimizer.param_groups[-2:]} == {0.5}
    assert all(each.grad is not None for each in owned(optimizer))
    if "param_names" in optimizer.param_groups[0]:
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        assert len(names) == len(owned(optimizer))
        assert group is named or len(set(names)) == len(names)
    other = make(entry, STARTS[start](Net()))
    other.add_param_group(group())
    other.add_param_group(group())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@entries
def test_names_do_not_change_a_step(entry: Entry) -> None:
    results = []
    for group in (unnamed, named):
        torch.manual_seed(0)
        optimizer = make(entry, Net().named_parameters())
        optimizer.add_param_group(group())
        train(optimizer, owned(optimizer), range(2))
        results.append([p.detach().clone() for p in owned(optimizer)])
    assert same(*results)


# --- names in warnings and errors --------------------------------------------------------------------------------


def named_by(params: list[nn.Parameter], name: str) -> list[tuple[str, nn.Parameter]]:
    return [(f"other.{k}", p) for k, p in enumerate(params[:-1])] + [(name, params[-1])]


@entries
def test_a_warning_about_a_parameter_names_it(entry: Entry) -> None:
    shapes = [(3, 3), (4, 4, 3)]
    for params, name in (
        (named_by(parameters(shapes=shapes), "stem.conv"), r" \(stem\.conv\)"),
        (parameters(shapes=shapes), ""),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(entry, params)
        texts = [str(each.message) for each in caught if "1-d convolution" in str(each.message)]
        assert len(texts) == (entry.weights is not None)
        for text in texts:
            assert text.startswith(f"a parameter of shape (4, 4, 3){name.replace(chr(92), '')} is read as")


@pytest.mark.parametrize("name", ["CELO2", "ELO_CELO2", "Muon"])
def test_a_warning_about_an_embedding_names_it(name: str) -> None:
    params = [nn.Parameter(torch.ones(5000, 200))]
    optimizer = make(TABLE[name], named_by(params, "table"))
    params[0].grad = torch.ones_like(params[0])
    with pytest.warns(UserWarning, match=r"a parameter of shape \(5000, 200\) \(table\) looks like an embedding"):
        optimizer.step()


@entries
def test_errors_about_a_parameter_name_it(entry: Entry) -> None:
    sharp = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
    with pytest.raises(ZooError, match=r"A parameter of shape \(4, 4\) \(wave\) is torch.complex64"):
        make(entry, named_by([*parameters(), sharp], "wave"))
    params = parameters(shapes=[(3, 3), (5, 5)])
    optimizer = make(entry, named_by(params, "late"), nonfinite="raise")
    give_gradients(params, 0)
    params[-1].grad[0, 0] = math.nan  # pyright: ignore[reportOptionalSubscript]
    with pytest.raises(ZooError, match=r"the first of a parameter of shape \(5, 5\) \(late\)"):
        optimizer.step(loss=loss_at(0))
    params[-1].grad = torch.ones(5, 5).to_sparse()
    with pytest.raises(ZooError, match=r"The gradient of a parameter of shape \(5, 5\) \(late\) is sparse"):
        optimizer.step(loss=loss_at(0))


# --- infinite limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "option"), CLIPS)
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_an_infinite_limit_does_not_clip(name: str, option: str, backend: str) -> None:
    huge = 3e38 if option == "grad_clip_val" else None  # no gradient of the test is clipped at this value
    results = []
    for value in (math.inf, huge):
        params = parameters()
        optimizer = make(TABLE[name], params, backend=backend, **{option: value})
        train(optimizer, params, range(3))
        results.append(params)
        assert all(torch.isfinite(p).all() for p in params)
    assert same(*results)


def test_other_limits_are_errors() -> None:
    for value in (-math.inf, math.nan, -1.0, True, "inf", 10**400, torch.tensor(math.inf)):
        with pytest.raises(ZooError, match=r"^clip (is|must)"):
            check_limit("clip", value)
        with pytest.raises(ZooError, match=r"^clip (is|must)"):
            check_max_norm("clip", value)
    assert (check_max_norm("clip", None), check_max_norm("clip", math.inf), check_max_norm("clip", 2)) == (
        None,
        None,
        2,
    )
    with pytest.raises(ZooError, match=r"^clip is 0\."):
        check_max_norm("clip", 0)
    assert check_limit("clip", 0) == 0


def test_an_infinite_max_grad_norm_of_pylos_classes_does_not_clip() -> None:
    from pylo_zoo.compat.pylo import AdafacLO_naive

    results = []
    for value in (None, math.inf):
        params = parameters()
        optimizer = AdafacLO_naive(params, hf_key=TABLE["AdafacLO"].weights, max_grad_norm=value)
        train(optimizer, params, range(2))
        results.append(params)
    assert same(*results)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_a_parameter_that_is_listed_twice_is_updated_once(name: str, backend: str) -> None:
    results = []
    for times in (1, 2):
        (p,) = parameters(shapes=[(6, 4)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warning about duplicates
            optimizer = make(TABLE[name], [p] * times, backend=backend)
        for step in range(3):
            give_gradients([p], step)
            optimizer.step(loss=1.0)
        results.append(p.detach().clone())
    assert torch.equal(*results)
