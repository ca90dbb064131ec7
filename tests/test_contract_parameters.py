"""The contract: parameters of every shape, memory layout and dtype."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract_table import Entry, give_gradients, holds, loss_at, make, owned, parameters, same, train
from displaced_runs import check_same_run, displaced
from margins import check_close
from torch import Tensor, nn

from pylo_zoo.errors import ZooError

WHOLE: dict[str, Any] = {"ns_dtype": torch.float32}
"""Options for Muon iterations in float32: in bfloat16 the order of a sum matters."""


def exact(entry: Entry) -> dict[str, Any]:
    return WHOLE if entry.weights is None else {}


@holds("shapes")
def test_scalars_empty_and_size_one_parameters(entry: Entry) -> None:
    shapes = [(), (1,), (1, 1), (1, 5), (5, 1), (1, 1, 1, 1), (4, 1, 3, 1), (0,), (0, 3), (3, 0), (2, 0, 3, 3)]
    params = parameters(shapes=shapes)
    optimizer = make(entry, params)
    train(optimizer, params, range(3))
    for p, start in zip(params, parameters(shapes=shapes), strict=True):
        assert p.shape == start.shape
        assert torch.isfinite(p).all()
        assert (p in optimizer.state) == (p.numel() > 0)
        assert p.numel() == 0 or not torch.equal(p, start)
    empty = parameters(shapes=[(0, 3)])
    nothing = make(entry, empty)
    train(nothing, empty, range(2))
    assert not nothing.state


def strided(values: Tensor, how: str) -> Tensor:
    """``values`` with other strides: transposed, channels_last, or every other element of a larger storage."""
    if how == "channels_last":
        return values.to(memory_format=torch.channels_last) if values.ndim == 4 else values
    if how == "transposed":
        return values.mT.contiguous().mT if values.ndim > 1 else values
    return torch.stack([values, torch.full_like(values, 7.0)], dim=-1)[..., 0]


@holds("strides")
@pytest.mark.parametrize("how", ["transposed", "channels_last", "sliced"])
def test_strides_do_not_matter(entry: Entry, how: str) -> None:
    shapes = [(6, 6), (7,), (5, 4, 3, 3)]
    plain = parameters(shapes=shapes)
    others = [nn.Parameter(strided(p.detach().clone(), how)) for p in plain]
    strides = [p.stride() for p in others]
    assert any(not p.is_contiguous() for p in others)
    first, second = make(entry, plain, **exact(entry)), make(entry, others, **exact(entry))
    for step in range(3):
        give_gradients(plain, step)
        for k, (p, other) in enumerate(zip(plain, others, strict=True)):
            assert p.grad is not None
            other.grad = strided(p.grad, how if k != 2 else "sliced")
        first.step(loss=loss_at(step))
        second.step(loss=loss_at(step))
    assert [p.stride() for p in others] == strides
    check_same_run(others, plain, displaced(entry, 3, shapes), how)
    for p, other, start in zip(plain, others, parameters(shapes=shapes), strict=True):
        assert not torch.equal(p, start)
        if how == "sliced":
            gaps = other.detach().as_strided((other.numel(),), (2,), 1)
            assert bool((gaps == 7.0).all())


@holds("tied")
def test_tied_parameters_step_once_and_expanded_ones_are_an_error(entry: Entry) -> None:
    model = nn.ModuleList([nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)])
    model[1].weight = model[0].weight
    alone = nn.Parameter(model[0].weight.detach().clone())  # pyright: ignore[reportCallIssue, reportArgumentType]
    optimizer, other = make(entry, model.parameters()), make(entry, [alone])
    assert len(owned(optimizer)) == 1
    train(optimizer, owned(optimizer), range(2))
    train(other, [alone], range(2))
    assert torch.equal(model[1].weight, alone)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ZooError, match=r"expanded.*contiguous"):
        make(entry, [nn.Parameter(torch.ones(1, 4).expand(3, 4))])
    make(entry, [nn.Parameter(torch.ones(1, 4).expand(1, 4))])


@holds("half")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_rounded_once(entry: Entry, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    wide = [nn.Parameter(p.detach().float()) for p in params]
    optimizer, other = make(entry, params), make(entry, wide)
    give_gradients(params, 0)
    for p, w in zip(params, wide, strict=True):
        assert p.grad is not None
        assert p.grad.dtype == dtype
        w.grad = p.grad.float()
    optimizer.step(loss=loss_at(0))
    other.step(loss=loss_at(0))
    assert not same(wide, [p.float() for p in parameters(dtype)])
    assert same(params, [w.detach().to(dtype) for w in wide])
    train(optimizer, params, range(1, 4))
    assert all(torch.isfinite(p).all() and p.dtype == dtype for p in params)


@holds("master")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_master_weights_reproduce_the_float32_run(entry: Entry, dtype: torch.dtype) -> None:
    """The same gradients in float32, in 16 bits, and with master weights, which alone preserve small steps."""
    lr = 1e-3 if entry.arguments.get("num_steps") is None else 1.0
    wide = [nn.Parameter(p.detach().float()) for p in parameters(dtype)]
    narrow, mastered = parameters(dtype), parameters(dtype)
    runs = [make(entry, wide, lr=lr), make(entry, narrow, lr=lr), make(entry, mastered, lr=lr, master_weights=True)]
    for step in range(20):
        give_gradients(narrow, step)
        for p, w, m in zip(narrow, wide, mastered, strict=True):
            assert p.grad is not None
            w.grad, m.grad = p.grad.float(), p.grad.clone()
        for optimizer in runs:
            optimizer.step(loss=loss_at(step))
    masters = [runs[2].state[p]["master"] for p in mastered]
    assert same(masters, wide)
    assert same(mastered, [w.detach().to(dtype) for w in wide])
    assert not same(narrow, mastered)
    assert "master" not in runs[0].state[wide[0]]
    assert "master" not in runs[1].state[narrow[0]]


@holds("master")
def test_a_parameter_written_from_outside_updates_its_master_copy(entry: Entry) -> None:
    params = parameters(torch.bfloat16)
    optimizer = make(entry, params, master_weights=True)
    train(optimizer, params, range(2))
    with torch.no_grad():
        params[3][0] = 5.0
    kept = optimizer.state[params[3]]["master"][1:].clone()
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, range(2, 3))
    master = optimizer.state[params[3]]["master"]
    assert bool((master[0] == 5.0).all())
    assert torch.equal(master[1:], kept)


@holds("master")
def test_master_weights_follow_the_option(entry: Entry) -> None:
    params = parameters(torch.bfloat16)
    optimizer = make(entry, params)
    for step, expected in enumerate((False, True, True, False)):
        optimizer.param_groups[0]["master_weights"] = expected
        train(optimizer, params, range(step, step + 1))
        assert all(("master" in optimizer.state[p]) == expected for p in params)
        make(entry, params).load_state_dict(optimizer.state_dict())


@holds("float64")
def test_float64_parameters_are_updated_in_float64(entry: Entry) -> None:
    double, single = parameters(torch.float64), parameters()
    for each in (double, single):
        train(make(entry, each, **({"ns_dtype": torch.float64} if entry.weights is None else {})), each, range(1))
    moved = [p.detach() - start.double() for p, start in zip(double, parameters(torch.float64), strict=True)]
    assert all(p.dtype == torch.float64 for p in double)
    simulation = displaced(entry, 1)
    for k, (p, half) in enumerate(zip(double, single, strict=True)):
        check_close(half, p, simulation.distance(k), f"parameter {k}")
    assert all(step.any() for step in moved)
    assert any((p.detach() != half.detach().double()).any() for p, half in zip(double, single, strict=True))


@holds("refused")
def test_complex_integer_and_sparse_parameters_are_errors_before_anything_moves(entry: Entry) -> None:
    for dtype in (torch.complex64, torch.complex128):
        with pytest.raises(ZooError, match=str(dtype)):
            make(entry, [nn.Parameter(torch.ones(5, 5, dtype=dtype))])
    with pytest.raises(ZooError, match="sparse"):
        make(entry, [nn.Parameter(torch.eye(4).to_sparse())])
    matrix, embedding = nn.Parameter(torch.ones(6, 6)), nn.Embedding(5, 4, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    matrix.grad = torch.ones(6, 6)
    optimizer = make(entry, [matrix, embedding.weight])
    with pytest.raises(ZooError, match=r"sparse.*sparse=False"):
        optimizer.step(loss=loss_at(0))
    assert torch.equal(matrix, torch.ones(6, 6))
    assert not optimizer.state


@holds("meta")
def test_the_meta_device(entry: Entry) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        optimizer = make(entry, model.parameters(), lr=torch.tensor(0.1, device="cpu"))
    params = owned(optimizer)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step(loss=1.0)
    assert all(value.is_meta for p in params for value in optimizer.state[p].values())
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    real = [nn.Parameter(torch.ones(p.shape)) for p in params]
    second = make(entry, real)
    train(second, real, range(1))
    for p, r in zip(params, real, strict=True):
        shapes = {name: value.shape for name, value in optimizer.state[p].items()}
        assert shapes == {name: value.shape for name, value in second.state[r].items()}
