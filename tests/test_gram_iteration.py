"""Iterations on the Gram matrix are as accurate as the plain ones, up to the factor that ops/iteration.py derives."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from margins import check
from rounding import simulate, size
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pylo_zoo.errors import ZooError
from pylo_zoo.ops import orthogonalize as orthogonalization
from pylo_zoo.ops import product as products_module
from pylo_zoo.ops.iteration import iterate, iterates_gram
from pylo_zoo.ops.orthogonalize import (
    COEFFICIENTS,
    newton_schulz,
    newton_schulz_all,
    orthogonalize,
    resolve_coefficients,
)
from pylo_zoo.ops.precision import PRECISIONS, Precision, check_ns_dtype, resolve_precision, round_to_tf32
from pylo_zoo.ops.product import Products, TorchProducts, fp32_precision, torch_products

DOUBLE = torch.float64
CPU = torch.device("cpu")
ROWS, COLUMNS = 48, 160
PRESETS = [("original", 5), ("quintic", 5), ("polar_express", 5), ("polar_express", 8), ("polar_express_safer", 8)]


class RoundedProducts(TorchProducts):
    """TF32 on a CPU: operands are rounded to ten bits of mantissa."""

    def __init__(self) -> None:
        super().__init__(PRECISIONS["tf32"], CPU)

    def symmetric(self, x: Tensor, y: Tensor, out: Tensor, *more: Any, **options: Any) -> Tensor:
        return super().symmetric(round_to_tf32(x), round_to_tf32(y), out, *more, **options)

    def apply(self, q: Tensor, x: Tensor, out: Tensor, beta: float) -> Tensor:
        return torch.baddbmm(x, round_to_tf32(q), round_to_tf32(x), beta=beta, out=out)


def products_of(name: str, gram: bool) -> Products:
    products = RoundedProducts() if name == "tf32" else TorchProducts(PRECISIONS[name], CPU)
    products.ratio, products.side = (1.0, 1) if gram else (math.inf, 1)
    return products


@functools.cache
def matrices() -> dict[str, Tensor]:
    """float64 ``[1, ROWS, COLUMNS]`` of Frobenius norm 1: conditioned, rank-deficient, with tiny singular values."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    u, v = torch.linalg.qr(normal(ROWS, ROWS)).Q, torch.linalg.qr(normal(COLUMNS, ROWS)).Q
    ones, few = torch.ones(ROWS, dtype=DOUBLE), torch.arange(ROWS) < ROWS // 4
    spectra = {
        "condition 10": torch.logspace(0, -1, ROWS, dtype=DOUBLE),
        "condition 1e3": torch.logspace(0, -3, ROWS, dtype=DOUBLE),
        "condition 1e6": torch.logspace(0, -6, ROWS, dtype=DOUBLE),
        "equal": ones,
        "a quarter of the rank": torch.where(few, 1.0, 0.0).to(DOUBLE),
        "many tiny": torch.where(few, 1.0, 1e-4).to(DOUBLE),
        "one large, others 2e-2": torch.where(torch.arange(ROWS) == 0, 1.0, 2e-2).to(DOUBLE),
        "one large, others 2e-3": torch.where(torch.arange(ROWS) == 0, 1.0, 2e-3).to(DOUBLE),
        "rank 1": torch.where(torch.arange(ROWS) == 0, 1.0, 0.0).to(DOUBLE),
    }
    made = {name: u @ torch.diag(s) @ v.T for name, s in spectra.items()} | {"normal": normal(ROWS, COLUMNS)}
    return {name: (x / x.norm())[None] for name, x in made.items()}


def error(x: Tensor, triples: Sequence[Any], name: str, gram: bool) -> float:
    """The error of the iteration in a precision, relative to the float64 result of the same rounded matrix."""
    stored = x.to(PRECISIONS[name].dtype)
    exact = iterate(stored.double(), triples, products_of("float64", False))
    result = iterate(stored.clone(), triples, products_of(name, gram))
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("preset", "steps"), PRESETS)
def test_the_error_is_at_most_the_derived_multiple_of_the_plain_iterations(name: str, preset: str, steps: int) -> None:
    triples = resolve_coefficients(preset, steps)
    factor = 1 + max(a for a, _, _ in triples[:-1:2])  # of the first iteration of each pair
    for kind, x in matrices().items():
        plain, gram = error(x, triples, name, False), error(x, triples, name, True)
        assert 0 < gram <= factor * plain, f"{kind}: {gram:.3g}, {plain:.3g} without the Gram matrix"


@pytest.mark.parametrize(("preset", "steps"), [*PRESETS, ("original", 1), ("quintic", 2)])
def test_in_float64_both_iterations_are_the_same_map(preset: str, steps: int) -> None:
    triples = resolve_coefficients(preset, steps)
    factor = 1 + max(a for a, _, _ in triples)
    one = torch.ones((), dtype=DOUBLE)
    for kind, x in matrices().items():
        run = simulate(lambda x=x: [iterate(x * one, triples, products_of("float64", False))], DOUBLE)
        result = iterate(x.clone(), triples, products_of("float64", True))
        check(size(result - run.truth[0], 2), 2 * factor * run.distance(0, 2), kind)


@pytest.mark.parametrize("shape", [(48, 160), (2, 48, 160), (160, 48), (2, 3, 160, 48)])
@pytest.mark.parametrize("apart", [False, True])
def test_public_functions_use_it_for_long_matrices(
    shape: tuple[int, ...], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    triples = COEFFICIENTS["quintic"]
    one = torch.ones((), dtype=DOUBLE)
    run = simulate(lambda: [newton_schulz(x * one, triples, 1e-8)], DOUBLE)
    monkeypatch.setattr(products_module, "GRAM", {"cpu": (2.0, 16)})

    def products_for(device: torch.device, precision: Precision) -> Products:
        products = torch_products(device, precision)
        products.rounds_operands = apart
        return products

    result = newton_schulz(x, triples, 1e-8, products_for=products_for)
    check(size(result - run.truth[0]), 2 * 5.1 * run.distance(0), str(shape))
    assert not torch.equal(
        result, newton_schulz(x, triples, 1e-8, products_for=lambda *_: products_of("float64", False))
    )


@pytest.mark.parametrize("shape", [(48, 160), (3, 30, 30), (160, 48)])
def test_padding_changes_no_result(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    one, triples = torch.ones((), dtype=DOUBLE), COEFFICIENTS["quintic"]
    run = simulate(lambda: [newton_schulz(x * one, triples, 1e-8)], DOUBLE)
    monkeypatch.setattr(TorchProducts, "padded", lambda self, rows, columns: (rows + 16, columns + 5))
    shapes = []
    monkeypatch.setattr(orthogonalization, "_iterate", lambda x, *more: shapes.append(x.shape) or iterate(x, *more))
    result = newton_schulz(x, triples, 1e-8)
    assert result.shape == shape
    assert shapes[0][-2:] == (min(shape[-2:]) + 16, max(shape[-2:]) + 5)
    check(size(result - run.truth[0]), 2 * run.distance(0), str(shape))


def test_only_long_matrices_of_many_rows_are_iterated_by_their_gram_matrix() -> None:
    products = TorchProducts(PRECISIONS["float32"], CPU)
    assert iterates_gram(256, 1024, products)
    assert not iterates_gram(256, 256, products)
    assert not iterates_gram(16, 1024, products)
    assert not iterates_gram(128, 1024, TorchProducts(PRECISIONS["bfloat16"], CPU))


def test_nan_and_zeros_stay() -> None:
    triples, zeros = COEFFICIENTS["quintic"], torch.zeros(64, 256)
    assert torch.equal(orthogonalize(zeros, triples, dtype="float32"), zeros)
    zeros[3, 5] = torch.nan
    assert orthogonalize(zeros, triples, dtype="float32").isnan().all()


class Launches(TorchDispatchMode):
    """Counts operations that launch a kernel on a GPU: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not (func.is_view or name in ("new_empty", "empty_like", "_unsafe_view")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "columns", "most"),
    [("float32", 512, 21), ("float32", 128, 19), ("bfloat16", 512, 22), ("bfloat16", 128, 20)],
)
def test_a_stack_takes_few_launches_on_a_gpu(
    dtype: str, columns: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five iterations: 17 products, or 15; the stack, its norm and quotient; in 16 bits the conversion of the result.

    The kernel is replaced by nothing.
    """
    pytest.importorskip("triton")
    from pylo_zoo.kernels.gpu import products

    kernels: list[Any] = []
    monkeypatch.setattr(products, "launch", lambda kernel, *_, **__: kernels.append(kernel))
    matrices = [torch.zeros(128, columns) for _ in range(2)]
    with Launches() as launches:
        newton_schulz_all(
            matrices, COEFFICIENTS["original"] * 5, 1e-8, dtype=dtype,
            products_for=lambda device, precision: products.TritonProducts(precision, device),
        )  # fmt: skip
    assert len(kernels) >= 10
    assert len(kernels) + len(launches.names) == most, sorted(launches.names)


# --- precisions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["float8", torch.int32, 32, "torch.float32", True])
def test_an_unknown_precision_is_an_error(value: Any) -> None:
    with pytest.raises(ZooError, match="ns_dtype is"):
        check_ns_dtype(value)


def test_precisions_by_name_dtype_and_default() -> None:
    for value in (None, "float32", "tf32", "bfloat16", torch.bfloat16, torch.float64, "float16"):
        check_ns_dtype(value)
    assert resolve_precision(None, torch.float32, CPU) == PRECISIONS["float32"]
    assert resolve_precision(None, torch.float64, CPU) == PRECISIONS["float64"]
    assert resolve_precision("bfloat16", torch.float32, CPU) == resolve_precision(torch.bfloat16, DOUBLE, CPU)
    assert [each.name for each in PRECISIONS.values()] == list(PRECISIONS)


def test_tf32_without_hardware_runs_as_float32_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    from pylo_zoo.ops import precision

    precision._reported.clear()
    with caplog.at_level("INFO", "pylo_zoo"):
        for _ in range(2):
            assert resolve_precision("tf32", torch.float32, CPU) == PRECISIONS["float32"]
    assert [record.getMessage() for record in caplog.records] == [
        'ns_dtype="tf32" runs as float32 on cpu, which has no TF32'
    ]


def test_rounding_to_tf32() -> None:
    x = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 2.0**-12), 0.0])
    expected = [1.0, 1 + 2.0**-10, 1.0, 1 + 2.0**-9, -1.0, 0.0]
    assert round_to_tf32(x).tolist() == expected


def fail_inside(value: str) -> None:
    with fp32_precision(value):
        raise RuntimeError(f"inside {torch.backends.cuda.matmul.fp32_precision}")


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_the_users_setting_is_restored(before: str) -> None:
    matmul: Any = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has only allow_tf32")
    start = matmul.fp32_precision
    try:
        matmul.fp32_precision = before
        for value in ("ieee", "tf32"):
            with pytest.raises(RuntimeError, match=f"inside {value}"):
                fail_inside(value)
            assert matmul.fp32_precision == before
    finally:
        matmul.fp32_precision = start


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_a_compiled_graph_contains_all_of_it(name: str) -> None:
    """Compiled graphs pad no matrices, so results differ by roundings."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (4, 6), (64, 256), (2, 3, 5)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]

    def run(*tensors: Tensor) -> list[Tensor]:
        return newton_schulz_all(tensors, COEFFICIENTS["quintic"], 1e-8, dtype=name)

    torch.compiler.reset()
    compiled: Any = torch.compile(run, backend="eager", fullgraph=True)
    for one, other in zip(compiled(*tensors), run(*tensors), strict=True):
        unit = torch.finfo(PRECISIONS[name].dtype).eps
        assert (one - other).norm() <= 32 * unit * other.norm()
