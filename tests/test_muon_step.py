"""Muon's functional step against the formulas of SPEC §7 and a float64 SVD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from margins import check_close
from muon_runs import DOUBLE, normal
from rounding import gamma, simulate
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.muon import lr_scale
from pylo_zoo.ops.orthogonalize import orthogonalize, resolve_coefficients
from pylo_zoo.optim import muon

HYPER: dict[str, Any] = {
    "lr": 0.1,
    "weight_decay": 0.2,
    "momentum": 0.9,
    "nesterov": False,
    "ns_steps": 10,
    "ns_coefficients": "polar_express",
    "eps": 1e-7,
    "safety_factor": 1.0,
    "adjust_lr_fn": None,
    "conv_mode": "flatten",
    "normalize_spatial": True,
    "ns_dtype": DOUBLE,
}


ADDED = gamma(2 * 8, DOUBLE)
"""Momentum, decay and the step: about eight roundings in each of two programs."""


def rounding(matrices: Tensor, scale: float) -> float:
    """The effect of float64 roundings on the polar factor, once the input is rounded; the same bound for the SVD."""
    triples = resolve_coefficients("polar_express", 10)
    one = torch.ones((), dtype=DOUBLE)
    return 2 * scale * simulate(lambda: [orthogonalize(matrices * one, triples, dtype=DOUBLE)], DOUBLE).distance(0)


def polar(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def stepped(p: Tensor, g: Tensor, buffer: Tensor, **more: Any) -> Tensor:
    p = p.clone()
    muon([p], [g], [buffer], **{**HYPER, **more})
    return p


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_follows_the_formulas(nesterov: bool) -> None:
    p, g, buffer = normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2)
    average = 0.9 * buffer + 0.1 * g
    u = 0.1 * g + 0.9 * average if nesterov else average
    expected = p * (1 - 0.1 * 0.2) - 0.1 * 0.2 * math.sqrt(6) * polar(u)
    gradient = g.clone()
    result = stepped(p, g, buffer, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
    check_close(result, expected, rounding(u, 0.1 * 0.2 * math.sqrt(6)) + ADDED * p.abs())
    check_close(buffer, average, ADDED * (buffer.abs() + g.abs()))
    assert torch.equal(g, gradient)


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw", "rms_to_rms", None])
@pytest.mark.parametrize("normalize_spatial", [True, False])
def test_convolutions_flattened_and_by_position(adjust_lr_fn: str | None, normalize_spatial: bool) -> None:
    p, g, zeros = normal(8, 3, 2, 3), normal(8, 3, 2, 3, seed=1), torch.zeros(8, 3, 2, 3, dtype=DOUBLE)
    more: dict[str, Any] = {"adjust_lr_fn": adjust_lr_fn, "normalize_spatial": normalize_spatial, "weight_decay": 0.0}
    flat = polar(g.reshape(8, 18)).reshape(8, 3, 2, 3) * lr_scale(8, 18, adjust_lr_fn)
    scale = 0.1 * lr_scale(8, 18, adjust_lr_fn)
    bound = rounding(g.reshape(8, 18), scale) + ADDED * p.abs().max()
    check_close(stepped(p, g, zeros.clone(), **more), p - 0.1 * flat, bound)

    batched = torch.zeros_like(p)
    for i in range(2):
        for j in range(3):
            batched[:, :, i, j] = polar(g[:, :, i, j]) * lr_scale(8, 3, adjust_lr_fn)
    batched *= 6**-0.5 if normalize_spatial else 1
    result = stepped(p, g, zeros.clone(), conv_mode="batched", **more)
    scale = 0.1 * lr_scale(8, 3, adjust_lr_fn)
    check_close(result, p - 0.1 * batched, rounding(g.permute(2, 3, 0, 1), scale) + ADDED * p.abs())


@pytest.mark.parametrize("conv_mode", ["flatten", "batched"])
@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 3), (7, 4, 2, 3)])
def test_jax_layout_matches_torch_layout(shape: tuple[int, ...], conv_mode: str) -> None:
    def to_jax(t: Tensor) -> Tensor:
        return t.permute(*range(2, t.ndim), 1, 0).contiguous()

    p, g, zeros = normal(*shape), normal(*shape, seed=1), torch.zeros(shape, dtype=DOUBLE)
    more: dict[str, Any] = {"conv_mode": conv_mode, "adjust_lr_fn": "rms_to_rms"}
    result = stepped(to_jax(p), to_jax(g), to_jax(zeros), layout="jax", **more)
    matrices = g.reshape(7, -1) if conv_mode == "flatten" else g.reshape(7, 4, -1).permute(2, 0, 1)
    bound = 2 * rounding(matrices, 0.1 * math.sqrt(7)) + ADDED * p.abs().max()
    check_close(result, to_jax(stepped(p, g, zeros, **more)), bound)


def test_a_bfloat16_parameter_is_rounded_once() -> None:
    p, g = normal(6, 4, dtype=torch.bfloat16), normal(6, 4, seed=1, dtype=torch.bfloat16)
    buffer, more = torch.zeros(6, 4), {"ns_dtype": torch.float32}
    wide = stepped(p.float(), g.float(), buffer.clone(), **more)
    assert torch.equal(stepped(p, g, buffer, **more), wide.to(torch.bfloat16))


def test_a_tensor_lr_acts_like_a_number() -> None:
    p, g, zeros = normal(6, 4), normal(6, 4, seed=1), torch.zeros(6, 4, dtype=DOUBLE)
    expected = stepped(p, g, zeros.clone(), lr=0.125)
    for lr in (torch.tensor(0.125), torch.tensor([0.125])):
        assert torch.equal(stepped(p, g, zeros.clone(), lr=lr), expected)


def test_a_tensor_lr_causes_no_recompilation_and_no_graph_break() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(muon, backend=backend, fullgraph=True)
    p, g, buffer = normal(6, 4), normal(6, 4, seed=1), torch.zeros(6, 4, dtype=DOUBLE)
    eager, eager_buffer = p.clone(), buffer.clone()
    for lr in (0.1, 0.05, 0.02):
        compiled([p], [g], [buffer], **{**HYPER, "lr": torch.tensor(lr)})
        muon([eager], [g], [eager_buffer], **{**HYPER, "lr": torch.tensor(lr)})
    assert len(graphs) == 1
    assert torch.equal(p, eager)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"grads": []}, "2 parameters with 0 gradients and 2 momentum buffers"),
        ({"grads": [torch.zeros(6, 4), torch.zeros(4, 6)]}, "have shapes"),
        ({"momentum_bufs": [torch.zeros(6, 4), torch.zeros(4)]}, "have shapes"),
        ({key: [torch.zeros(6, 4), torch.zeros(4)] for key in ("params", "grads", "momentum_bufs")}, "is not a matrix"),
        ({"grads": [torch.zeros(6, 4), torch.zeros(6, 4).to_sparse()]}, "sparse"),
        ({"params": [torch.zeros(6, 4), torch.zeros(6, 4, dtype=torch.complex64)]}, "complex64"),
        ({"ns_coefficients": "none"}, "preset"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn"),
        ({"conv_mode": "none"}, "conv_mode"),
        ({"layout": "none"}, "layout"),
        ({"ns_dtype": torch.int32}, "ns_dtype"),
        ({"eps": 0.0}, "eps"),
        ({"safety_factor": -1.0}, "safety_factor"),
        ({"normalize_spatial": 1}, "normalize_spatial"),
    ],
)
def test_invalid_input_is_an_error_before_anything_moves(change: dict[str, Any], complaint: str) -> None:
    p, buffer = torch.ones(6, 4), torch.zeros(6, 4)
    arguments: dict[str, Any] = {
        "params": [p, torch.ones(6, 4)],
        "grads": [torch.ones(6, 4), torch.ones(6, 4)],
        "momentum_bufs": [buffer, torch.zeros(6, 4)],
        **HYPER,
    }
    with pytest.raises(ZooError, match=complaint):
        muon(**{**arguments, **change})
    assert torch.equal(p, torch.ones(6, 4))
    assert torch.equal(buffer, torch.zeros(6, 4))
    muon(**arguments)
    assert not torch.equal(p, torch.ones(6, 4))
