"""Muon: agreement with torch's, its fallback, its learning rates, and routing."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from margins import check, check_close
from muon_runs import DOUBLE, give_gradients, owned, parameters, same, train
from rounding import FUNCTION, gamma, simulate, size
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.orthogonalize import orthogonalize, resolve_coefficients
from pylo_zoo.optim import Muon, param_groups

ADAM = gamma(2 * (12 + 3 * FUNCTION), DOUBLE)
"""A step of AdamW in two float64 programs: a dozen operations and three divisions or roots each."""

# --- comparison with torch ---------------------------------------------------------------------------------------

needs_torchs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch version has no Muon")


@needs_torchs
@pytest.mark.parametrize("shape", [(6, 6), (40, 16), (16, 40), (64, 64)])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("arithmetic", ["bfloat16", "float64"])
def test_torchs_muon_agrees(
    shape: tuple[int, int], nesterov: bool, adjust_lr_fn: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch iterates only in bfloat16; its one cast is replaced, so both implementations are compared in float64."""
    exact = arithmetic == "float64"
    if exact:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    dtype = torch.float64 if exact else torch.float32
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    params, torch_params, start = parameters(dtype, [shape]), parameters(dtype, [shape]), parameters(dtype, [shape])
    ns_dtype = torch.float64 if exact else torch.bfloat16
    first = Muon(params, ns_coefficients="original", adjust_lr_fn=adjust_lr_fn, ns_dtype=ns_dtype, **options)
    second = torch.optim.Muon(torch_params, adjust_lr_fn=adjust_lr_fn, **options)
    train(first, params, range(10))
    train(second, torch_params, range(10))
    movement = (torch_params[0] - start[0]).norm()

    def iterated() -> list[Tensor]:
        matrix = parameters(torch.float64, [shape])[0].detach()
        return [orthogonalize(matrix, resolve_coefficients("original", 5), dtype=torch.float64)]

    # Both programs round every product of the iteration, and torch rounds its norm; a movement is a sum of such steps.
    # In float64, a wrong scale, momentum or coefficient is off by far more.
    simulation = simulate(iterated, torch.float64 if exact else torch.bfloat16)
    relative = 2 * simulation.distance(0, 2) / size(simulation.truth[0], 2)
    storage = gamma(2 * 3 * 10, dtype) * size(torch_params[0], 2)  # three roundings in each of ten steps
    check(size(params[0] - torch_params[0], 2), relative * movement.item() + storage, arithmetic)


def test_the_fallback_is_torchs_adamw() -> None:
    shapes = [(7,), (), (3, 40)]
    ours, torch_params = parameters(torch.float64, shapes), parameters(torch.float64, shapes)
    first = Muon(ours, lr=0.03, weight_decay=0.1, betas=(0.8, 0.97), fallback_lr_scale=0.5)
    second = torch.optim.AdamW(torch_params, lr=0.015, weight_decay=0.1, betas=(0.8, 0.97), eps=1e-7)
    for optimizer, params in ((first, ours), (second, torch_params)):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)
        for step in range(20):
            train(optimizer, params, range(step, step + 1))
            scheduler.step()
    for one, other in zip(ours, torch_params, strict=True):
        check_close(one, other, 20 * ADAM * (1 + other.abs()))


def test_the_nesterov_fallback_is_nadamw() -> None:
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
    check_close(params[0], p, 10 * ADAM * (1 + p.abs()))


def test_adamw_lr_is_a_ratio_to_the_constructors_lr() -> None:
    old, new, far = (parameters(shapes=[(7,), (6, 6)]) for _ in range(3))
    train(Muon([{"params": old, "lr": 0.04}], lr=0.02, adamw_lr=0.005), old, range(5))
    train(Muon(new, lr=0.04, fallback_lr_scale=0.25), new, range(5))
    assert same(old, new)
    train(Muon(far, lr=0.04, fallback_lr_scale=0.5), far, range(5))
    assert torch.equal(far[1], new[1])
    assert not torch.equal(far[0], new[0])


def test_schedulers_affect_both_routes() -> None:
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
    """A student with the teacher's shape; float32 iterations do not depend on the machine's bfloat16."""
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


def test_routing_and_its_reasons() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    optimizer = Muon(model.named_parameters(), nesterov=True)
    result = [(route.name, route.shape, route.rule, route.reason) for route in optimizer.routes()]
    assert result == [
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
        ({"use_muon": True}, "muon", "use_muon_flag"),
        ({"algorithm": "muon"}, "muon", "use_muon_flag"),
        ({"algorithm": "adamw"}, "adamw", "use_muon_flag"),
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


def test_verbose_logs_one_line_per_parameter(caplog: pytest.LogCaptureFixture) -> None:
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
    result = {route.shape: (route.layout, route.rule) for route in optimizer.routes()}
    assert result == {
        (12, 6): ("jax", "adamw"),
        (5, 6): ("torch", "muon"),
        (5,): ("torch", "adamw"),
        (3, 6, 4): ("jax", "muon"),
    }
    train(optimizer, owned(optimizer), range(2))
    assert all(torch.isfinite(p).all() for p in owned(optimizer))


def test_stacked_weights_are_separate_matrices() -> None:
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
    matrix = stack[0].grad[0]
    iterated = simulate(
        lambda: [orthogonalize(matrix, resolve_coefficients("quintic", 5), dtype=torch.float64)], DOUBLE
    )
    rounding = 2 * 0.02 * iterated.distance(0) + gamma(6, DOUBLE) * stack[0].abs()
    check_close(stack[0], torch.stack([m.detach().T for m in matrices]), rounding)


def test_a_parameter_that_changes_routes_is_an_error_before_anything_moves() -> None:
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


def test_each_matrix_of_a_stack_is_orthogonalized_separately() -> None:
    """A frequently used expert must not shrink the others' updates, however the stack is stored."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 8, 12))
            self.down = nn.Parameter(torch.randn(4, 12, 8))

    model = Experts()
    groups = param_groups(model)
    stacked = [{"params": [model.up, model.down], "layout": "torch-stacked"}]
    for each in (groups, stacked):
        optimizer = Muon(each, lr=0.02, ns_dtype=torch.float32)
        norms = []
        for factor in (1.0, 100.0):
            before = model.up.detach().clone()
            for p in (model.up, model.down):
                p.grad = torch.linspace(-1, 1, p.numel()).sin().view_as(p).mul(7).cos()
                p.grad[0] *= factor
            optimizer.state.clear()
            optimizer.step()
            norms.append((model.up - before).detach().flatten(1).norm(dim=1))
        # Scaling a matrix by 100 rounds its elements differently; the iteration amplifies that like any rounding.
        matrix = before[0].double()
        run = simulate(lambda m=matrix: [orthogonalize(m, resolve_coefficients("quintic", 5), dtype=torch.float64)])
        relative = 2 * run.distance(0, 2) / size(run.truth[0], 2)
        stored = gamma(2, torch.float32) * before.flatten(1).norm(dim=1)
        check_close(norms[0], norms[1], relative * norms[1] + stored)


def test_routes_print_as_a_table_with_their_groups() -> None:
    optimizer = Muon(
        [{"params": [torch.nn.Parameter(torch.randn(8, 8))]}, {"params": [torch.nn.Parameter(torch.randn(8))]}]
    )
    assert [route.group for route in optimizer.routes()] == [0, 1]
    assert "insufficient_dims" in str(optimizer.routes())
    assert str(optimizer.routes()).count("\n") >= 2
