"""The contract: warnings about settings that train badly without an error, and the table of routes."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from contract_table import TABLE, Entry, give_gradients, holds, loss_at, make, parameters, train
from models import GPT
from torch import nn
from torch.optim import lr_scheduler

from pylo_zoo.optim import Muon, param_groups
from pylo_zoo.optim.advice import SHRINKING, Candidate, embedding_evidence

# --- weight decay ------------------------------------------------------------------------------------------------


@holds("decay_warning")
def test_a_decay_that_cancels_the_steps_warns_once(entry: Entry) -> None:
    groups = [{"params": parameters()}, {"params": parameters(), "weight_decay": 0.2}]
    complaint = r"weight_decay=0\.1 with lr=1 shrinks every parameter by 0\.1 .*weight_decay=0\.001 or less"
    with pytest.warns(UserWarning, match=complaint) as caught:
        optimizer = make(entry, groups, lr=1.0, weight_decay=0.1)
    assert [each.filename for each in caught] == [make.__code__.co_filename]  # the line of the caller
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(entry, parameters(), lr=1.0, weight_decay=0.99 * SHRINKING)
        make(entry, parameters(), lr=0.01, weight_decay=0.1)  # PyLO's recipe
        make(entry, parameters(), lr=torch.tensor(1e-3), weight_decay=0.1)
        pickle.loads(pickle.dumps(optimizer)).load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if "decay" in optimizer.defaults:
            make(entry, parameters(), lr=1.0, weight_decay=0.1, decay="l2")  # part of the gradient: no such factor
    with pytest.warns(UserWarning, match=f"weight_decay={SHRINKING:g} "):
        make(entry, [{"params": parameters(), "weight_decay": SHRINKING}], lr=torch.tensor(1.0))


# --- schedules ---------------------------------------------------------------------------------------------------

FALLING = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 100),
    "linear": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 - step / 100),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=12, cycle_momentum=False),
}
NOT_FALLING = {
    "constant": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
    "warmup": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 5),
}


def run(entry: Entry, scheduler: Any, steps: int = 12, **more: Any) -> Any:
    params = parameters(shapes=[(6, 6), (7,)])
    optimizer = make(entry, params, lr=1.0, **more)
    scheduler = scheduler(optimizer)
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step(loss=loss_at(step))
        scheduler.step()
    return optimizer


@holds("schedule_warning")
@pytest.mark.parametrize("kind", FALLING)
def test_a_falling_lr_warns_once(entry: Entry, kind: str) -> None:
    with pytest.warns(UserWarning, match=r"lr has fallen from .* to .*num_steps.*keep lr constant") as caught:
        optimizer = run(entry, FALLING[kind])
    assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():  # a resumed run warned in its first part if it uses the same optimizer
        warnings.simplefilter("error")
        copied = copy.deepcopy(optimizer)
        copied.param_groups[0]["lr"] = 0.1
        train(copied, copied.param_groups[0]["params"], range(12, 14))


@holds("schedule_warning")
@pytest.mark.parametrize("kind", NOT_FALLING)
def test_an_lr_that_rises_or_stays_does_not_warn(entry: Entry, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(entry, NOT_FALLING[kind], accumulate=2)


@holds("schedule_warning")
def test_without_a_scheduler_only_a_halved_lr_warns(entry: Entry) -> None:
    params = parameters(shapes=[(6, 6)])
    optimizer = make(entry, params, lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lr in (1.0, 0.9, 0.6, 0.0, 1.0):  # tuned slightly by hand; frozen; unfrozen
            optimizer.param_groups[0]["lr"] = lr
            train(optimizer, params, range(1))
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.warns(UserWarning, match=r"from 1 to 0\.5"):
        train(optimizer, params, range(1))


@holds("schedule_warning")
def test_a_resumed_run_with_a_scheduler_warns(entry: Entry) -> None:
    params = parameters(shapes=[(6, 6)])
    optimizer = make(entry, params, lr=1.0)
    optimizer.param_groups[0].update(initial_lr=1.0, lr=0.3)  # as checkpoints from the middle of a schedule set them
    train(optimizer, params, range(1))
    optimizer.param_groups[0]["lr"] = 0.29
    with pytest.warns(UserWarning, match=r"from 0\.3 to 0\.29"):
        train(optimizer, params, range(1))


# --- embeddings --------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A bag of tokens: a batch reads only a few rows of a large vocabulary."""

    def __init__(self, vocabulary: int = 256, dim: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, dim)
        self.inner = nn.Linear(dim, dim)

    def forward(self) -> torch.Tensor:
        return self.inner(self.table(torch.arange(12))).square().sum()


def step_once(optimizer: Any, model: nn.Module) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()


@holds("embedding_warning")
def test_an_embedding_without_a_rule_warns_once(entry: Entry) -> None:
    torch.manual_seed(0)
    model = Tokens()
    optimizer = make(entry, model.parameters())
    complaint = r"shape \(256, 8\) looks like an embedding.*\(244 of the 256 rows.*param_groups\(model\)"
    with pytest.warns(UserWarning, match=complaint) as caught:
        step_once(optimizer, model)
    assert [each.filename for each in caught] == [__file__]
    quiet: list[Any] = [
        param_groups(model),
        [{"params": model.table.parameters(), "rule": "adamw"}, {"params": model.inner.parameters()}],
        [{"params": model.table.parameters(), "rule": "learned"}, {"params": model.inner.parameters()}],
        model.inner.parameters(),
    ]
    if entry.weights is None:
        quiet += [[{"params": [model.table.weight], "use_muon": flag}] for flag in (True, False)]
    for groups in quiet:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step_once(make(entry, groups), model)


@holds("embedding_warning")
def test_names_identify_an_embedding_if_gradients_do_not(entry: Entry) -> None:
    model = GPT(tied=False)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    with pytest.warns(UserWarning, match="its name is wte.weight"):
        make(entry, model.named_parameters()).step()


def candidate(*shape: int, zero: float = 0.0, name: str | None = None) -> Candidate:
    gradient = torch.ones(shape, dtype=torch.bfloat16)
    gradient[: round(zero * shape[0])] = 0
    return Candidate(torch.empty(shape, device="meta"), gradient, name)


@pytest.mark.parametrize(
    ("each", "is_one"),
    [
        (candidate(256, 64), False),
        (candidate(256, 64, zero=0.8), True),
        (candidate(256, 64, zero=0.6), False),  # units switched off by a ReLU
        (candidate(256, 64, zero=1.0), False),  # behind a layer that starts at 0
        (candidate(32, 64, zero=0.9), False),  # too few rows to decide
        (candidate(8192, 256), True),  # tall
        (candidate(8192, 16), False),  # a LoRA factor
        (candidate(11008, 4096), False),  # a feed-forward layer
        (candidate(100, 8, 3, 3, zero=0.9), False),
        *(
            (candidate(65, 64, name=name), True)
            for name in ("wte.weight", "model.embed_tokens.weight", "lm_head.weight")
        ),
        *(
            (candidate(65, 64, name=name), True)
            for name in ("tok_embeddings.weight", "x.position_embeddings", "emb.weight")
        ),
        *(
            (candidate(65, 64, name=name), False)
            for name in (
                "patch_embed.proj.weight",
                "time_embed.0.weight",
                "time_embedding.linear_1.weight",
                "head.weight",
            )
        ),
    ],
)
def test_what_looks_like_an_embedding(each: Candidate, is_one: bool) -> None:
    assert (embedding_evidence([candidate(4, 4), each]) is not None) == is_one


# --- routes ------------------------------------------------------------------------------------------------------


@holds("routes")
def test_routes_show_every_parameters_rule_and_totals(entry: Entry) -> None:
    model = GPT(tied=False)
    model.h[0].requires_grad_(False)
    optimizer = make(entry, param_groups(model))
    optimizer.add_param_group({"params": [("late", nn.Parameter(torch.ones(5, 5)))]})
    for p in [p for group in optimizer.param_groups for p in group["params"]]:
        p.grad = torch.randn_like(p)
    optimizer.step()
    routes = optimizer.routes()
    named = {name: p for g in optimizer.param_groups for name, p in zip(g["param_names"], g["params"], strict=True)}
    assert {route.name: route.shape for route in routes} == {name: tuple(p.shape) for name, p in named.items()}
    for route in routes:
        of_adamw = "step" in optimizer.state[named[route.name]]
        assert (route.rule in ("adamw", "nadamw")) == of_adamw, route
        assert route.rule in ("learned", "muon", "adamw", "nadamw")
        assert route.reason
    *_, summary = str(routes).splitlines()
    total = sum(p.numel() for p in named.values())
    parts = dict(re.findall(r"(\w+) ([\d.]+k?)(?:,|$)", summary.partition(": ")[2]))
    numbers = {rule: float(text.removesuffix("k")) * (1000 if "k" in text else 1) for rule, text in parts.items()}
    by_rule = {rule: sum(math.prod(route.shape) for route in routes if route.rule == rule) for rule in numbers}
    assert set(numbers) == {route.rule for route in routes}
    assert sum(by_rule.values()) == total
    assert all(abs(numbers[rule] - by_rule[rule]) <= 0.005 * by_rule[rule] for rule in numbers)  # three digits


def test_routes_list_frozen_parameters() -> None:
    frozen = nn.Parameter(torch.ones(6, 6, dtype=torch.uint8), requires_grad=False)
    for optimizer in (Muon([nn.Parameter(torch.ones(6, 6)), frozen]), make(TABLE["CELO2"], [*parameters(), frozen])):
        assert len(optimizer.routes().frozen) == 1
        assert "frozen (requires_grad=False): 1" in str(optimizer.routes())
