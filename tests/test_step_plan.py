"""A step's plan is kept while nothing changes, and a step after a change equals that of an optimizer without a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract_table import TABLE, give_gradients, make, parameters, same
from torch import nn

from pylo_zoo.kernels import kernels_for
from pylo_zoo.optim import CELO2, MuLO, Muon

SHAPES = [(6, 6), (4, 4, 3, 3), (7,), (9,), ()]
PLANNED = list(TABLE)
Change = Callable[[Any, list[nn.Parameter]], None]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")


def stepped(name: str, backend: str, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> tuple[Any, list[Any]]:
    params = parameters(shapes=SHAPES)
    for k, p in enumerate(params):
        p.data = p.data.to(dtypes[k % len(dtypes)])
    optimizer = make(TABLE[name], params, backend=backend)
    for step in range(2):
        give_gradients(params, step)
        optimizer.step(loss=1.0)
    return optimizer, params


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_is_kept(name: str, backend: str, dtypes: tuple[torch.dtype, ...]) -> None:
    optimizer, params = stepped(name, backend, dtypes)
    plan = optimizer._plan
    assert (plan is None) == (name == "Muon" and backend == "eager")
    if plan is None:
        return
    for step in range(2, 5):
        give_gradients(params, step)
        optimizer.param_groups[0]["lr"] *= 0.999
        optimizer.param_groups[0]["weight_decay"] = 1e-6 * step
        optimizer.step(loss=0.5)
        assert optimizer._plan is plan
    assert all(not hasattr(item, "gradient") for item in plan.items), "a plan keeps no gradients alive"


def replace_data(optimizer: Any, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.clone()


def other_strides(optimizer: Any, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.mT.contiguous().mT


def replace_state(optimizer: Any, params: list[nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            state[name] = value.clone()


def replace_state_data(optimizer: Any, params: list[nn.Parameter]) -> None:
    for value in optimizer.state[params[0]].values():
        value.data = value.data.clone()


def without_a_gradient(optimizer: Any, params: list[nn.Parameter]) -> None:
    params[1].grad = None


def without_requires_grad(optimizer: Any, params: list[nn.Parameter]) -> None:
    params[2].grad = None
    params[2].requires_grad_(False)


def load(optimizer: Any, params: list[nn.Parameter]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def one_more_group(optimizer: Any, params: list[nn.Parameter]) -> None:
    (p,) = parameters(shapes=[(5, 5)])
    give_gradients([p], 7)
    params.append(p)
    optimizer.add_param_group({"params": [p]})


def other_backend(optimizer: Any, params: list[nn.Parameter]) -> None:
    optimizer.backend = "eager" if optimizer.backend == "fused" else "fused"


def other_limit(optimizer: Any, params: list[nn.Parameter]) -> None:
    option = "width_mult" if isinstance(optimizer, MuLO) else "grad_clip_val"
    if isinstance(optimizer, (MuLO, CELO2)):
        optimizer.param_groups[0][option] = 0.01
    if isinstance(optimizer, Muon):
        optimizer.param_groups[0].update(nesterov=True, ns_dtype="float32", momentum=0.5)


def a_strided_gradient(optimizer: Any, params: list[nn.Parameter]) -> None:
    assert params[0].grad is not None
    params[0].grad = params[0].grad.mT.contiguous().mT


CHANGES: tuple[Change, ...] = (
    *(replace_data, other_strides, replace_state, replace_state_data, without_a_gradient, without_requires_grad),
    *(load, one_more_group, other_backend, other_limit, a_strided_gradient),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("name", PLANNED)
def test_a_step_after_a_change_equals_one_without_a_plan(name: str, backend: str, change: Change) -> None:
    optimizer, params = stepped(name, backend)
    give_gradients(params, 3)
    change(optimizer, params)
    other, others = copy.deepcopy((optimizer, params))
    assert other._plan is None
    for p, q in zip(params, others, strict=True):  # a parameter's copy has no gradient
        q.grad = None if p.grad is None else p.grad.clone(memory_format=torch.preserve_format)
    for each, values in ((optimizer, params), (other, others)):
        for step in (4, 5):
            each.step(loss=0.5)
            give_gradients([p for p in values if p.grad is not None], step)
    assert same(params, others)
    for p, q in zip(params, others, strict=True):
        state, expected = optimizer.state.get(p, {}), other.state.get(q, {})
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
