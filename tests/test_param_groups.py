"""How a model's parameters are sorted into groups."""

from __future__ import annotations

import pytest
import torch
from golden_data import artifact
from torch import nn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, VeLO, param_groups, routes


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.LayerNorm(6)
        self.experts = nn.Parameter(torch.randn(2, 6, 4))
        self.gate = nn.Linear(6, 2, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_routes_know_layout_rule_and_reason() -> None:
    found = {route.name: (route.layout, route.rule) for route in routes(Model())}
    assert found == {
        "experts": ("jax", "learned"),
        "embed.weight": ("jax", "adamw"),
        "conv.weight": ("torch", "learned"),
        "conv.bias": ("torch", None),
        "norm.weight": ("torch", None),
        "norm.bias": ("torch", None),
        "gate.weight": ("torch", "learned"),
    }
    assert all(route.reason for route in routes(Model()))


def test_groups_hold_each_parameter_once_with_the_users_options() -> None:
    model = Model()
    groups = param_groups(model, weight_decay=0.1)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == 7
    assert all(group["weight_decay"] == 0.1 for group in groups)
    assert not any(p is model.frozen.weight for p in grouped)


def test_names_and_patterns_overrule() -> None:
    found = {route.name: route for route in routes(Model(), adamw=["gate.*"], learned=["embed.weight"])}
    assert (found["gate.weight"].rule, found["embed.weight"].rule) == ("adamw", "learned")
    assert "gate.*" in found["gate.weight"].reason
    with pytest.raises(ZooError, match="'gates'"):
        routes(Model(), adamw=["gates"])


@pytest.mark.parametrize(("cls", "case", "more"), [(CELO2, "celo2", {}), (VeLO, "velo_small", {"num_steps": 5})])
def test_every_optimizer_takes_the_groups(cls: type, case: str, more: dict[str, int]) -> None:
    model = Model()
    optimizer = cls(param_groups(model), weights=artifact(case), **more)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(loss=1.0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
