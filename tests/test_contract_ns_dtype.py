"""The precision of Newton–Schulz is an option of CELO2, ELO_CELO2 and Muon, and their groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract_table import Entry, give_gradients, holds, make, parameters, same, train
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import products_for
from pylo_zoo.ops.precision import PRECISIONS
from pylo_zoo.ops.product import TorchProducts

SHAPES = [(6, 6), (11, 3), (5, 5, 3, 3), (72, 300)]


def run(entry: Entry, backend: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[nn.Parameter]:
    params = parameters(dtype, SHAPES)
    train(make(entry, params, backend=backend, **options), params, range(2))
    return params


def movement(params: list[nn.Parameter]) -> Tensor:
    return torch.cat([(p - q).detach().flatten() for p, q in zip(params, parameters(shapes=SHAPES), strict=True)])


@pytest.mark.parametrize("backend", ["eager", "fused"])
@holds("ns_dtype")
def test_precisions_by_name(entry: Entry, backend: str) -> None:
    exact = run(entry, backend, ns_dtype="float32")
    assert same(exact, run(entry, backend, ns_dtype=torch.float32))
    assert same(exact, run(entry, backend, ns_dtype=None)), "the default is float32 on a CPU"
    assert same(exact, run(entry, backend, ns_dtype="tf32")), "a CPU has no TF32"
    narrow = run(entry, backend, ns_dtype="bfloat16")
    error = (movement(narrow) - movement(exact)).norm() / movement(exact).norm()
    # One rounding of bfloat16 is 2⁻⁹; iterations enlarge it to 1e-2 to 1e-1 for matrices of any spectrum.
    assert 2**-9 < error < 0.1
    assert same(narrow, run(entry, backend, ns_dtype=torch.bfloat16))


@holds("ns_dtype")
def test_groups_have_their_own_precision(entry: Entry) -> None:
    narrow, wide = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    optimizer = make(entry, [{"params": narrow, "ns_dtype": "bfloat16"}, {"params": wide, "ns_dtype": "float32"}])
    if getattr(optimizer, "clip_norm", None) is not None:
        optimizer.clip_norm = None  # it would combine the groups' gradients
    for step in range(2):
        for params in (narrow, wide):
            give_gradients(params, step)
        optimizer.step()
    none: dict[str, Any] = {"clip_norm": None} if hasattr(optimizer, "clip_norm") else {}
    assert same(narrow, run(entry, "auto", ns_dtype="bfloat16", **none))
    assert same(wide, run(entry, "auto", ns_dtype="float32", **none))


@holds("ns_dtype")
def test_float64_parameters_are_iterated_in_float64_by_default(entry: Entry) -> None:
    default, double, single = (
        run(entry, "eager", torch.float64, ns_dtype=each) for each in (None, "float64", "float32")
    )
    assert same(default, double)
    assert not same(default, single)


@holds("ns_dtype")
def test_the_option_is_saved_and_older_states_load(entry: Entry) -> None:
    params = parameters(shapes=SHAPES)
    optimizer = make(entry, params, ns_dtype="float32")
    train(optimizer, params, range(1))
    state = optimizer.state_dict()
    assert state["param_groups"][0]["ns_dtype"] == "float32"
    again = make(entry, parameters(shapes=SHAPES))
    again.load_state_dict(copy.deepcopy(state))
    assert again.param_groups[0]["ns_dtype"] == "float32"
    del state["param_groups"][0]["ns_dtype"]
    older = make(entry, parameters(shapes=SHAPES))
    older.load_state_dict(copy.deepcopy(state))
    assert older.param_groups[0]["ns_dtype"] == older.defaults["ns_dtype"]


@pytest.mark.parametrize("value", ["float8", torch.int8, 16])
@holds("ns_dtype")
def test_an_unknown_precision_is_an_error(entry: Entry, value: Any) -> None:
    with pytest.raises(ZooError, match="ns_dtype is"):
        make(entry, parameters(), ns_dtype=value)
    optimizer = make(entry, parameters())
    with pytest.raises(ZooError, match="ns_dtype is"):
        optimizer.add_param_group({"params": parameters(), "ns_dtype": value})


def test_triton_is_chosen_on_cuda_only() -> None:
    pytest.importorskip("triton")
    for name, precision in PRECISIONS.items():
        assert type(products_for(torch.device("cpu"), precision)) is TorchProducts
        on_gpu = type(products_for(torch.device("cuda"), precision)).__name__
        assert on_gpu == ("TorchProducts" if name == "float64" else "TritonProducts")
