"""Muon's backends, one parameter at a time or all together, give the same run and the same state."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from margins import check_close
from muon_runs import DOUBLE, SHAPES, give_gradients, normal, parameters, train
from rounding import FUNCTION, gamma, simulate
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.ops import apply
from pylo_zoo.ops.orthogonalize import orthogonalize, resolve_coefficients
from pylo_zoo.optim import Muon, muon

MANY = [*SHAPES, *SHAPES, (5, 11), (3, 5, 7), (7, 3, 5)]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": True},
    {"conv_mode": "batched"},
    {"layout": "jax"},
    {"layout": "torch-stacked"},
    {"adjust_lr_fn": "rms_to_rms"},
    {"lr": torch.tensor([0.02])},
    {"weight_decay": 0.0},
    {"fallback_lr_scale": 0.3},
    {"use_fallback": True, "nesterov": True},
]


def run_to_end(
    backend: str, dtype: torch.dtype, options: dict[str, Any], **more: Any
) -> tuple[Muon, list[nn.Parameter]]:
    params = parameters(dtype, MANY)
    groups = [{"params": params[0::2], **options}, {"params": params[1::2], **options, "lr": 0.01}]
    optimizer = Muon(groups, weight_decay=0.1, ns_dtype=DOUBLE, backend=backend, **more)
    late = params[:3]
    for step in range(5):
        give_gradients(params, step)
        for p in late if step < 2 else ():  # they count fewer steps
            p.grad = None
        optimizer.step()
    return optimizer, params


STEPS = 5
STATE = STEPS * gamma(6, DOUBLE)
"""Bound of averages: a product and a sum per step, in two runs."""


@functools.cache
def iteration_error() -> float:
    """The largest effect of float64 roundings on an element of an orthogonalized gradient, over these runs' shapes."""
    triples = resolve_coefficients("quintic", 5)
    matrices = [normal(*shape, seed=k) for k, shape in enumerate([(6, 6), (11, 5), (6, 45), (5, 11), (8, 3)])]
    runs = [simulate(lambda m=m: [orthogonalize(m, triples, dtype=DOUBLE)], DOUBLE) for m in matrices]
    return max(run.distance(0) for run in runs)


def bound(p: Tensor) -> Tensor:
    """Bound of two float64 runs of five steps: the iteration's roundings, times rates of at most 1, and AdamW's."""
    return 2 * STEPS * iteration_error() + STEPS * gamma(2 * (12 + 3 * FUNCTION), DOUBLE) * (
        1 + p.detach().double().abs()
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("together", [1 << 18, 40])
def test_both_backends_give_the_same_run(
    options: dict[str, Any], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(apply.TOGETHER, "cpu", together)
    (one, expected), (other, result) = (run_to_end(backend, DOUBLE, options) for backend in ("eager", "fused"))
    for p, q in zip(expected, result, strict=True):
        check_close(q, p, bound(p))
        assert one.state[p].keys() == other.state[q].keys()
        for name, value in one.state[p].items():
            assert value.dtype == other.state[q][name].dtype
            check_close(other.state[q][name], value, STATE * (1 + value.double().abs()))
    assert Muon(parameters()).backend == "auto"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("master", [False, True])
def test_both_backends_give_the_same_run_in_narrow_dtypes(dtype: torch.dtype, master: bool) -> None:
    (one, expected), (other, result) = (
        run_to_end(backend, dtype, {}, master_weights=master) for backend in ("eager", "fused")
    )
    last = gamma(4, dtype)  # decay and step, in two runs, each rounded differently
    for p, q in zip(expected, result, strict=True):
        moved = STEPS * 0.02  # a step is at most as large as its rate
        check_close(q, p, STEPS * (last * p.double().abs() + gamma(8, torch.float32) * moved) + bound(p))
        assert ("master" in one.state[p]) == ("master" in other.state[q]) == (master and dtype != torch.float32)
        for name, value in one.state[p].items():
            rounding = STEPS * gamma(6, torch.float32)
            check_close(other.state[q][name], value, rounding * (1 + value.double().abs()))


def test_a_state_transfers_between_backends() -> None:
    ends = []
    for first, second in (("eager", "eager"), ("fused", "eager"), ("eager", "fused")):
        params = parameters(DOUBLE, MANY)
        start = Muon(params, ns_dtype=DOUBLE, backend=first)
        train(start, params, range(2))
        then = Muon(params, ns_dtype=DOUBLE, backend=second)
        then.load_state_dict(copy.deepcopy(start.state_dict()))
        train(then, params, range(2, 4))
        ends.append(params)
    for other in ends[1:]:
        for p, q in zip(ends[0], other, strict=True):
            check_close(q, p, bound(p))


def test_the_function_has_both_backends() -> None:
    options: dict[str, Any] = {
        "lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": True, "ns_steps": 5, "ns_coefficients": "quintic",
        "eps": 1e-7, "safety_factor": 1.0, "adjust_lr_fn": "original", "conv_mode": "flatten",
        "normalize_spatial": True, "ns_dtype": DOUBLE,
    }  # fmt: skip
    shapes = [(6, 4), (4, 6), (6, 4), (0, 4)]
    ends = []
    for backend in ("eager", "fused", "auto"):
        p, g, buffers = ([normal(*shape, seed=10 * k + j) for j, shape in enumerate(shapes)] for k in range(3))
        muon(p, g, buffers, **options, backend=backend)
        ends.append((*p, *buffers))
    for result in ends[1:]:
        for a, b in zip(result, ends[0], strict=True):
            check_close(a, b, bound(b))
    with pytest.raises(ZooError, match="backend is 'triton'"):
        muon([], [], [], **options, backend="triton")


def test_a_step_uses_little_memory() -> None:
    tensors = [torch.empty(shape) for shape in ((1 << 17,), (8,), (1 << 17,), (1 << 19,), (8,), (0,), (2, 4))]
    parts = apply.together([*tensors, torch.empty(8, dtype=DOUBLE)])
    assert sorted(k for part in parts for k in part) == [0, 1, 2, 3, 4, 6, 7]
    assert parts == [[0, 2], [1, 4], [3], [6], [7]]


def test_the_compiled_eager_step_matches() -> None:
    def step(backend: str, compiled: bool) -> list[nn.Parameter]:
        params = parameters(DOUBLE)
        optimizer = Muon(params, lr=torch.tensor(0.1), ns_dtype=DOUBLE, backend=backend)
        give_gradients(params, 0)
        torch.compiler.reset()
        (torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step)()
        return params

    expected = step("eager", False)
    for p, q in zip(expected, step("eager", True), strict=True):
        check_close(q, p, bound(p))


def test_the_backend_is_an_optimizer_option_and_is_kept() -> None:
    with pytest.raises(ZooError, match=r"backend is 'triton'.*auto, eager, fused"):
        Muon(parameters(), backend="triton")
    with pytest.raises(ZooError, match="A parameter group sets backend"):
        Muon([{"params": parameters(), "backend": "eager"}])
    optimizer = Muon(parameters(), backend="eager")
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again.backend == "eager"
    assert "backend" not in optimizer.state_dict()["param_groups"][0]
