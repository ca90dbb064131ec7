"""Matrix products with torch's two libraries agree up to rounding, and each is used for its sizes."""

from __future__ import annotations

import pytest
import torch
from margins import check, check_close
from rounding import gamma, simulate, size
from torch import Tensor

from pylo_zoo.ops import product as products
from pylo_zoo.ops.orthogonalize import COEFFICIENTS, newton_schulz
from pylo_zoo.ops.product import by_onednn, product

LIBRARIES = {"torch": False, "oneDNN": True}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if LIBRARIES[request.param] and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_is_faster", lambda: LIBRARIES[request.param])
    return request.param


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_products_are_correct(library: str) -> None:
    x, wide = normal(300, 257), normal(400, 600)
    for w in (wide[:, :257], normal(257, 400).T, wide[:, :257].contiguous()):
        assert by_onednn(x, w) == (library == "oneDNN")
        result, truth = product(x, w), x.double() @ w.double().T
        assert result.shape == (300, 400)
        assert not result.is_mkldnn
        simulation = simulate(lambda w=w: [x.double() @ w.double().T], draws=1)
        check(size(result - truth), simulation.distance(0), "product")


def test_newton_schulz_agrees_up_to_rounding(library: str) -> None:
    x, triples = normal(256, 300), COEFFICIENTS["original"] * 5
    simulation = simulate(lambda: [newton_schulz(x.double(), triples, 1e-7)], draws=1)
    result = newton_schulz(x, triples, 1e-7)
    check(size(result - simulation.truth[0]), simulation.distance(0), "orthogonalized")
    assert torch.equal(result, newton_schulz(x, triples, 1e-7))


@pytest.mark.usefixtures("library")
def test_only_large_float32_matrices_use_onednn() -> None:
    large = torch.empty(256, 256)
    assert not by_onednn(large, torch.empty(256, 255))
    assert not by_onednn(large.double())
    assert not by_onednn(large.bfloat16())
    assert not by_onednn(large.to("meta"))


@pytest.mark.usefixtures("library")
def test_a_graph_uses_torchs_product() -> None:
    """A compiler cannot trace oneDNN's tensors."""
    x = normal(256, 256)
    result = torch.compile(product, backend="eager", fullgraph=True)(x, x)
    check_close(result, x.double() @ x.double().T, gamma(256, x.dtype) * (x.abs() @ x.abs().T).double())
