"""Checks of the GPU's matrix products against torch, in a separate process: ``python gpu_products.py DEVICE``.

With ``TRITON_INTERPRET=1`` and DEVICE cpu, Triton's interpreter runs the kernels; with DEVICE cuda, a GPU does. The
process prints a JSON object: for each check its error text or null.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_checks
import torch
from gpu_boundaries import _refused
from gpu_checks import round_as_hardware
from margins import check_close
from rounding import gamma, unit
from torch import Tensor

from pylo_zoo.kernels.gpu import products, symmetric
from pylo_zoo.kernels.gpu.products import TritonProducts, dense_product, symmetric_product
from pylo_zoo.ops.iteration import iterate
from pylo_zoo.ops.orthogonalize import COEFFICIENTS, newton_schulz
from pylo_zoo.ops.precision import PRECISIONS, Precision
from pylo_zoo.ops.product import TorchProducts

SHAPES = [(1, 1), (1, 70), (5, 3), (64, 32), (65, 33), (2, 70, 40), (513, 8)]
PRECISION = ["ieee", "tf32", "tf32x3"]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(gpu_checks.DEVICE, dtype)


def operand_error(dtype: torch.dtype, precision: str) -> float:
    """Relative error of an operand. The interpreter multiplies float32 exactly; a GPU may cut TF32 off."""
    if dtype != torch.float32:
        return 0.0
    return {"ieee": 0.0, "tf32": 2 * 2.0**-10, "tf32x3": 4 * 2.0**-20}[precision]


def check_symmetric(dtype: torch.dtype, precision: str) -> None:
    """``alpha·x·xᵀ + terms + identity`` for odd sizes; the result is symmetric bit for bit."""
    for shape in SHAPES:
        x = normal(*shape, dtype=dtype)
        square = (*shape[:-1], shape[-2])
        term = normal(*square, dtype=dtype)
        term = term + term.mT
        for terms, factors, identity in (([], [], 0.0), ([term], [0.5], 2.0), ([term, 2 * term], [-0.5, 0.125], -1.5)):
            out = torch.full(square, torch.nan, dtype=dtype, device=x.device)
            symmetric_product(x, x, out, 0.75, factors, terms, identity, precision)
            eye = torch.eye(shape[-2], dtype=torch.float64, device=x.device)
            added = [factor * each.double() for factor, each in zip(factors, terms, strict=True)]
            expected = 0.75 * x.double() @ x.double().mT + sum(added) + identity * eye
            sizes = 0.75 * x.double().abs() @ x.double().abs().mT + sum(each.abs() for each in added) + eye.abs() * 2
            error = gamma(shape[-1] + 8, torch.float32) + operand_error(dtype, precision)
            check_close(out, expected, error * sizes + unit(dtype) * 2 * expected.abs(), f"{shape} {dtype}")
            assert torch.equal(out, out.mT), f"{shape} {dtype}: not symmetric"


def check_dense(precision: str) -> None:
    for shape in SHAPES:
        x, q = normal(*shape), normal(*shape[:-1], shape[-2], seed=1)
        for beta in (0.0, 3.5):
            out = torch.full_like(x, torch.nan)
            dense_product(q, x, out, beta, precision)
            expected = q.double() @ x.double() + beta * x.double()
            sizes = q.double().abs() @ x.double().abs() + beta * x.double().abs()
            error = gamma(shape[-2] + 4, torch.float32) + operand_error(torch.float32, precision)
            check_close(out, expected, error * sizes, f"{shape}, beta {beta}")


def check_tiles() -> None:
    """Every tile of the lower triangle occurs once, also where the root is rounded."""
    import triton
    import triton.language as tl

    if gpu_checks.DEVICE != "cpu":
        return

    @triton.jit
    def tiles(start, out, BLOCK: tl.constexpr):
        index = start + tl.arange(0, BLOCK)
        row, column = symmetric.tile_of(index)
        tl.store(out + 2 * tl.arange(0, BLOCK), row)
        tl.store(out + 2 * tl.arange(0, BLOCK) + 1, column)

    for row in (0, 1, 2, 63, 500, 1023, 2047):
        start = max(row * (row + 1) // 2 - 4, 0)
        out = torch.zeros(16, 2, dtype=torch.int32)
        kernel: Any = tiles
        kernel[(1,)](start, out, BLOCK=16)
        for index, (i, j) in enumerate(out.tolist(), start):
            assert (i * (i + 1) // 2 + j, 0 <= j <= i) == (index, True), f"tile {index} is ({i}, {j})"


def check_iteration(name: str, apart: bool) -> None:
    """A stack iterated by the kernels and by torch, with and without the Gram matrix."""
    precision = PRECISIONS[name]
    device, triples = torch.device(gpu_checks.DEVICE), COEFFICIENTS["quintic"][:3]
    x = normal(66, 100).double()
    x = (x / x.norm(dim=(-2, -1), keepdim=True)).to(precision.dtype)
    exact = iterate(x.double(), triples, TorchProducts(PRECISIONS["float64"], torch.device("cpu")))
    narrow, products.NARROW_SIDE = products.NARROW_SIDE, 1
    launch, launched = products.launch, []
    products.launch = lambda *a, **o: launched.append(a) or launch(*a, **o)
    try:
        for ratio in (1.0, 1e9):
            kernels, torchs = TritonProducts(precision, device), TorchProducts(precision, device)
            for each in (kernels, torchs):
                each.ratio, each.side, each.rounds_operands = ratio, 1, apart
            results = [iterate(x.clone(), triples, each) for each in (kernels, torchs)]
            errors = [(result.double() - exact).norm().item() for result in results]
            assert len(launched) >= 6, "the kernel runs"
            launched.clear()
            assert errors[0] < 2 * errors[1], f"{name}: {errors}"
    finally:
        products.NARROW_SIDE, products.launch = narrow, launch


def check_compiled() -> None:
    """Operators stay whole in a compiled graph, and write the same memory."""
    device = torch.device(gpu_checks.DEVICE)

    def choose(_: torch.device, precision: Precision) -> TritonProducts:
        return TritonProducts(precision, device)

    def run(x: Tensor) -> Tensor:
        return newton_schulz(x, COEFFICIENTS["quintic"], 1e-8, dtype="float32", products_for=choose)

    for shape in ((20, 20), (2, 30, 70)):
        x = normal(*shape)
        compiled: Any = torch.compile(run, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), run(x)), str(shape)


def check_guard() -> None:
    """Operands of other shapes, dtypes, strides or memory are errors before a kernel runs."""
    x, square = normal(6, 4), normal(6, 6)

    def call(x: Tensor, y: Tensor, out: Tensor, terms: list[Tensor]) -> None:
        symmetric_product(x, y, out, 1.0, [1.0] * len(terms), terms, 0.0, "ieee")

    before = square.clone()
    for what, arguments in {
        "a smaller operand": (x, x[:5], square, []),
        "a transposed operand": (x, normal(4, 6).T, square, []),
        "a larger result": (x, x, normal(6, 7), []),
        "a smaller term": (x, x, square, [square[:, :5].contiguous()]),
        "another dtype": (x, x.double(), square, []),
        "an unsupported dtype": (x.double(), x.double(), square.double(), []),
        "three terms": (x, x, square, [normal(6, 6, seed=k) for k in range(3)]),
        "a result over its operand": (square, square, square, []),
        "a result over its term": (x, x, square, [square]),
        "four axes": (x[None, None], x[None, None], square[None, None], []),
    }.items():
        _refused(what, partial(call, *arguments))
        assert torch.equal(square, before), what
    _refused("a short dense operand", lambda: dense_product(square, x[:5], torch.empty_like(x), 0.0, "ieee"))


def check_corrupted() -> None:
    """The checks fail if the kernel mirrors nothing."""
    launch = products.launch
    products.launch = lambda kernel, programs, *a, **o: launch(kernel, programs - 1, *a, **o)
    try:
        try:
            check_symmetric(torch.float32, "ieee")
        except AssertionError:
            return
        raise ValueError("a missing tile was not noticed")
    finally:
        products.launch = launch


CHECKS: dict[str, Callable[[], None]] = {
    **{f"symmetric float32 {name}": partial(check_symmetric, torch.float32, name) for name in PRECISION},
    **{f"symmetric {dtype}": partial(check_symmetric, dtype, "ieee") for dtype in (torch.bfloat16, torch.float16)},
    **{f"dense {name}": partial(check_dense, name) for name in PRECISION},
    "tiles": check_tiles,
    **{f"iteration {name}": partial(check_iteration, name, False) for name in ("float32", "bfloat16")},
    "iteration apart": partial(check_iteration, "float32", True),
    "compiled": check_compiled,
    "guard": check_guard,
    "corrupted": check_corrupted,
}


def multiply_bfloat16() -> None:
    """The interpreter would multiply the bits of bfloat16 numbers as integers."""
    import triton.language as tl
    from triton.runtime import interpreter

    builders: Any = interpreter.InterpreterBuilder
    create_dot = builders.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = torch.from_numpy(handle.data.view("int16").copy()).view(torch.bfloat16)
        return interpreter.TensorHandle(bits.float().numpy(), tl.float32)

    def dot(builder: Any, x: Any, y: Any, *more: Any) -> Any:
        return create_dot(builder, widened(x), widened(y), *more)

    builders.create_dot = dot


def main() -> None:
    gpu_checks.DEVICE = sys.argv[1]
    torch.set_num_threads(1)
    if gpu_checks.DEVICE == "cpu":
        round_as_hardware()
        multiply_bfloat16()
    results: dict[str, str | None] = {}
    for name, run in CHECKS.items():
        if gpu_checks.DEVICE == "cpu" and name.endswith(("ieee", "tf32x3")):
            continue  # the interpreter multiplies float32 in one way
        try:
            started = time.perf_counter()
            run()
            print(name, f"{time.perf_counter() - started:.2f} s", file=sys.stderr)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
