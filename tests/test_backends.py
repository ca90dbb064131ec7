"""Backends compute the same run, and one place chooses between them."""

from __future__ import annotations

import copy
import functools
import logging
import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from contract_table import LEARNED, TABLE
from margins import check, check_close
from rounding import SAFETY, Simulation, gamma, simulate, size, unit
from torch import Tensor, nn

import pylo_zoo.kernels
from pylo_zoo.errors import ZooError, count
from pylo_zoo.kernels import kernels_for
from pylo_zoo.kernels.cpu import CpuPlan
from pylo_zoo.ops import step as step_module
from pylo_zoo.optim.contract import ZooOptimizer

SHAPES = ((), (5,), (300,), (24, 24), (33, 70), (8, 8, 3, 3), (6, 16, 16), (2, 3, 5, 5))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if kernels_for("auto", CPU) is None:
        pytest.skip("no C++ compiler")


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def optimizer(name: str, params: list[nn.Parameter], backend: str, **options: Any) -> ZooOptimizer:
    entry = TABLE[name]
    cls: Any = entry.cls
    groups = [{"params": [p], **({"layout": "torch"} if p.ndim == 3 else {})} for p in params]
    return cls(groups, weights=entry.weights, backend=backend, **{**entry.arguments, **options})


def gradients(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return (torch.randn(shape, generator=generator) for shape in SHAPES)


def run(opt: ZooOptimizer, params: list[nn.Parameter], first: int, last: int) -> None:
    for k in range(first, last):
        for p, g in zip(params, gradients(k), strict=True):
            p.grad = g.to(p.dtype)
        opt.step(torch.tensor(1.0 / (k + 1)))


@torch.no_grad()
def relative_distance(one: list[nn.Parameter], other: list[nn.Parameter]) -> float:
    """The largest distance of two runs, relative to the parameter's own movement."""
    moved = ((p - start).norm() for p, start in zip(other, parameters(), strict=True))
    return max(
        float((a - b).norm() / movement) for a, b, movement in zip(one, other, moved, strict=True) if movement > 0
    )


ALLOWED = 4
"""How much further than another a float32 run may drift by chance."""


@torch.no_grad()
def storage(params: list[nn.Parameter], steps: int) -> float:
    """The effect of rounding a parameter once per step with random signs, relative to its movement."""
    moved = ((p - start).norm() for p, start in zip(params, parameters(), strict=True))
    rounded = SAFETY * unit(torch.float32) * math.sqrt(steps)
    return max(float(rounded * p.norm() / each) for p, each in zip(params, moved, strict=True) if each > 0)


@functools.cache
def displaced(name: str, steps: int, **options: Any) -> Simulation:
    """Eager's run in float64 with the displacement by simulated float32 roundings."""

    def end() -> list[nn.Parameter]:
        params = parameters(torch.float64)
        run(optimizer(name, params, "eager", **options), params, 0, steps)
        return params

    return simulate(end, draws=2)


def check_runs(one: Sequence[Tensor], other: Sequence[Tensor], of: Simulation) -> None:
    """Each run is within the displacement of the exact run, in norms, which average over elements."""
    for k, (a, b) in enumerate(zip(one, other, strict=True)):
        check(size(a - b, 2), 2 * of.distance(k, 2), f"parameter {k}")


@pytest.mark.parametrize("name", LEARNED)
def test_runs_drift_no_further_than_rounding(name: str) -> None:
    """200 steps. ReLU's kinks amplify a rounding error, and so does CELO2's Newton–Schulz, which lifts small singular
    values. The bound is therefore the drift of eager float32 from float64."""
    results = {}
    for backend, dtype in (("eager", torch.float32), ("fused", torch.float32), ("eager", torch.float64)):
        params = parameters(dtype)
        run(
            optimizer(name, params, backend, **({"num_steps": 200} if "num_steps" in TABLE[name].arguments else {})),
            params,
            0,
            200,
        )
        results[backend, dtype] = [nn.Parameter(p.detach().double()) for p in params]
    truth = results["eager", torch.float64]
    fused, eager = (relative_distance(results[backend, torch.float32], truth) for backend in ("fused", "eager"))
    # ALLOWED times the drift of eager float32 on this machine; runs that hardly drift differ by roundings of p alone.
    check(fused, max(ALLOWED * eager, storage(truth, 200)), name)


@pytest.mark.parametrize("name", LEARNED)
def test_a_run_can_change_backends(name: str) -> None:
    """A state saved under one backend continues under the other, as near to float64 as eager alone."""
    whole, truth = parameters(), parameters(torch.float64)
    run(optimizer(name, whole, "eager"), whole, 0, 8)
    run(optimizer(name, truth, "eager"), truth, 0, 8)
    bound = max(ALLOWED * relative_distance(whole, truth), storage(truth, 8))
    for before, after in (("eager", "fused"), ("fused", "eager")):
        params = parameters()
        first = optimizer(name, params, before)
        run(first, params, 0, 4)
        second = optimizer(name, params, after)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        run(second, params, 4, 8)
        check(relative_distance(params, truth), bound, f"{before} then {after}")


@pytest.mark.parametrize("name", LEARNED)
def test_16_bit_parameters_master_weights_and_strides(name: str) -> None:
    """Results of the kernels' copies are written back: 16-bit parameters, master weights, channels_last."""
    for options, dtype in (({}, torch.bfloat16), ({"master_weights": True}, torch.bfloat16), ({}, torch.float32)):
        results = []
        for backend in ("eager", "fused"):
            params = parameters(dtype)
            params[5].data = params[5].data.to(memory_format=torch.channels_last)
            opt = optimizer(name, params, backend, **options)
            run(opt, params, 0, 5)
            results.append([p.detach().float() for p in params])
            assert params[5].is_contiguous(memory_format=torch.channels_last)
        # In 16 bits, the last bit may be rounded differently in each of five steps, or once from a master copy.
        last_bits = gamma(2 * 5, dtype) if dtype == torch.bfloat16 else 0.0
        of = displaced(name, 5)
        for k, (fused, eager) in enumerate(zip(results[1], results[0], strict=True)):
            check_close(fused, eager, last_bits * eager.abs() + 2 * of.distance(k), f"{options} {dtype} {k}")


@pytest.mark.parametrize("name", LEARNED)
def test_fused_steps_are_deterministic(name: str) -> None:
    runs = []
    for _ in range(2):
        params = parameters()
        run(optimizer(name, params, "fused"), params, 0, 5)
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_fused_uses_the_kernels_and_eager_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would also pass if nothing were fused."""
    calls: list[int] = []
    advance = CpuPlan.advance

    def counted(self: Any, values: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(values))
        return advance(self, values, *args, **options)

    monkeypatch.setattr(CpuPlan, "advance", counted)
    for backend, expected in (("eager", 0), ("fused", len(SHAPES)), ("auto", len(SHAPES))):
        calls.clear()
        params = parameters()
        run(optimizer("VeLO", params, backend), params, 0, 1)
        assert sum(calls) == expected
    calls.clear()
    params = parameters(torch.float64)
    run(optimizer("VeLO", params, "fused"), params, 0, 1)
    assert not calls, "float64 runs eager"


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_a_compiled_step_is_the_same_run(backend: str) -> None:
    params, eager = parameters(), parameters()
    opt = optimizer("AdafacLO", params, backend)
    stepped = torch.compile(lambda: opt.step(), backend="eager", fullgraph=False)
    plain = optimizer("AdafacLO", eager, "eager")
    for k in range(3):
        for p, q, g in zip(params, eager, gradients(k), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        stepped()
        plain.step()

    def without_loss() -> list[nn.Parameter]:
        double = parameters(torch.float64)
        opt = optimizer("AdafacLO", double, "eager")
        for k in range(3):
            for p, g in zip(double, gradients(k), strict=True):
                p.grad = g.double()
            opt.step()
        return double

    check_runs(params, eager, simulate(without_loss, draws=2))


def test_a_step_in_parts_equals_a_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager splits a large parameter; here into very small parts."""
    for name in LEARNED:
        whole, parts = parameters(), parameters()
        run(optimizer(name, whole, "eager"), whole, 0, 5)
        with monkeypatch.context() as patch:
            patch.setattr(step_module, "PART", 50)
            run(optimizer(name, parts, "eager"), parts, 0, 5)
        check_runs(parts, whole, displaced(name, 5))


@pytest.mark.parametrize("name", ["AdafacLO", "CELO2-base", "ELO"])
def test_the_default_device_does_not_matter(name: str) -> None:
    """Kernels receive raw pointers, so all memory must be on the parameter's device."""
    params, same = parameters(), parameters()
    one, other = optimizer(name, params, "fused"), optimizer(name, same, "fused")
    run(one, params, 0, 1)
    run(other, same, 0, 1)
    for p, q, g in zip(params, same, gradients(1), strict=True):
        p.grad, q.grad = g.clone(), g.clone()
    one.step()
    with torch.device("meta"):
        other.step()
    assert all(map(torch.equal, params, same))


@pytest.mark.parametrize("name", LEARNED)
def test_the_default_dtype_does_not_matter(name: str) -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        params, loss = parameters(), torch.tensor(1.0)
        for p, g in zip(params, gradients(0), strict=True):
            p.grad = g
        torch.set_default_dtype(dtype)
        try:
            optimizer(name, params, "fused", lr=1e-3 / 3).step(loss)
        finally:
            torch.set_default_dtype(torch.float32)
        results.append(params)
    check_runs(results[0], results[1], displaced(name, 1, lr=1e-3 / 3))


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("name", LEARNED)
def test_autograd_notices_the_step(name: str, backend: str) -> None:
    """A second backward through a graph that saved the old value is an error, as after a step of a torch optimizer."""
    params = parameters()
    opt = optimizer(name, params, backend)
    saved = [(p * p).sum() for p in params]
    run(opt, params, 0, 1)
    for each in saved:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            each.backward()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ZooError, match="backend is 'triton'"):
        optimizer("VeLO", parameters(), "triton")


def test_auto_logs_once_what_runs_fused(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pylo_zoo.kernels, "_reported", set())
    with caplog.at_level(logging.INFO, logger="pylo_zoo"):
        for _ in range(2):
            kernels_for("auto", CPU)
    assert [record.getMessage() for record in caplog.records] == [
        f"steps on cpu use fused kernels: C++, compiled on this machine, {count(torch.get_num_threads(), 'thread')}"
    ]


def test_without_kernels_auto_warns_once_and_fused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pylo_zoo.kernels, "_reported", set())
    monkeypatch.setattr(pylo_zoo.kernels, "_by_device", {"cpu": "No C++ compiler was found."})
    with pytest.warns(UserWarning, match='backend="eager", which is many times slower'):
        assert kernels_for("auto", CPU) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels_for("auto", CPU) is None
        params = parameters()
        run(optimizer("ELO", params, "auto"), params, 0, 1)


def test_fused_without_kernels_is_refused_when_the_optimizer_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(optimizer("ELO", parameters(), "fused"))
    monkeypatch.setattr(pylo_zoo.kernels, "_by_device", {"cpu": "No C++ compiler was found."})
    for name in LEARNED:
        with pytest.raises(ZooError, match="unavailable on cpu: No C\\+\\+ compiler was found"):
            optimizer(name, parameters(), "fused")
    optimizer("ELO", parameters(), "auto")
    optimizer("ELO", parameters(torch.float64), "fused")  # already plain torch
    optimizer("ELO", [nn.Parameter(p.to("meta")) for p in parameters()], "fused")
    assert pickle.loads(pickled).backend == "fused"


def test_the_warning_points_at_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pylo_zoo.kernels, "_by_device", {"cpu": "No C++ compiler was found."})
    params = parameters()
    opt = optimizer("ELO", params, "auto")
    for call in (lambda: run(opt, params, 0, 1), opt.prepare_kernels):  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setattr(pylo_zoo.kernels, "_reported", set())
        with pytest.warns(UserWarning, match="many times slower") as caught:
            call()
        assert [each.filename for each in caught] == [__file__]


def test_the_backend_is_pickled() -> None:
    params = parameters()
    opt = optimizer("ELO", params, "eager")
    assert pickle.loads(pickle.dumps(opt)).backend == "eager"
