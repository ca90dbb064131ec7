"""What Newton–Schulz's parts cost: computed operations on a GPU, and times and errors measured here.

    python benchmarks/newton_schulz_parts.py computed      # operations for GPT-2 355M, from shapes
    python benchmarks/newton_schulz_parts.py ratios        # time with the Gram matrix / without, by aspect ratio
    python benchmarks/newton_schulz_parts.py errors        # errors of each precision, TF32 emulated
    python benchmarks/newton_schulz_parts.py blocks        # time of half a symmetric product in blocks / all of it
    python benchmarks/newton_schulz_parts.py padding       # time of one padded stack / stacks of equal shapes

Times are medians of ratios of alternating runs: processor time on a CPU, which other programs disturb less. On CUDA,
they are those of torch's products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.ops import stacks
from pylo_zoo.ops.iteration import iterate
from pylo_zoo.ops.orthogonalize import COEFFICIENTS, newton_schulz_all, resolve_coefficients
from pylo_zoo.ops.precision import PRECISIONS
from pylo_zoo.ops.product import TorchProducts

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # matrices and emulated TF32 of the accuracy tests

GPT2_355M = {(1024, 1024): 24, (3072, 1024): 24, (4096, 1024): 24, (1024, 4096): 24}
"""The matrices of the model that are orthogonalized, with their number. Embeddings take AdamW."""
STEPS = 5
TILE = 128


class Operations(NamedTuple):
    """Multiplications and additions of an iterated matrix, in n³ of its shorter side."""

    products: float
    """Of the bare dense products, three per iteration."""
    halves: float
    """With half of each symmetric product."""
    both: float
    """With the Gram matrix as well, where it takes fewer."""


def count(rows: int, columns: int, steps: int = STEPS, tile: int = TILE) -> Operations:
    """Operations of one matrix, computed from its shape. Symmetric products include the whole tiles of the diagonal."""
    n, m = sorted((rows, columns))
    ratio, tiles = m / n, -(-n // tile)
    half = (tiles + 1) / (2 * tiles) * 2  # of the 2 n³ of a square product
    products = steps * (4 * ratio + 2)
    halves = steps * (half * ratio + half + 2 * ratio)
    pairs, single = divmod(steps, 2)
    gram = pairs * (half * ratio + 5 * half + 2 * ratio) + single * (half * ratio + half + 2 * ratio)
    return Operations(products, halves, min(gram, halves))


def totals(shapes: dict[tuple[int, int], int], steps: int = STEPS) -> Operations:
    """Operations of all matrices."""
    sums = [0.0, 0.0, 0.0]
    for (rows, columns), number in shapes.items():
        cube = min(rows, columns) ** 3
        for k, each in enumerate(count(rows, columns, steps)):
            sums[k] += number * cube * each
    return Operations(*sums)


def computed() -> Iterator[str]:
    """The table of computed operations for GPT-2 355M."""
    yield "| matrices of GPT-2 355M | bare products, TFLOP | half symmetric products | and the Gram matrix |"
    yield "| --- | ---: | ---: | ---: |"
    rows = [(f"{number} of {r}×{c}", {(r, c): number}) for (r, c), number in GPT2_355M.items()]
    for name, shapes in [*rows, ("all", GPT2_355M)]:
        total = totals(shapes)
        shares = [total.halves / total.products, total.both / total.products]
        yield f"| {name} | {total.products / 1e12:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |"


def median_ratio(first: Callable[[], object], second: Callable[[], object], runs: int = 9) -> float:
    """Median time of ``second`` relative to ``first``, measured in alternation."""
    ratios, on_gpu = [], torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    for run in range(runs + 2):
        times = []
        for each in (first, second):
            start = clock()
            each()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(clock() - start)
        if run > 1:
            ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def ratios(device: torch.device) -> Iterator[str]:
    """Time of five iterations with the Gram matrix, relative to the plain iteration."""
    aspects = (1.5, 2, 3, 4, 8)
    yield f"| dtype | rows | {' | '.join(f'{each}:1' for each in aspects)} |"
    yield f"| --- | ---: |{' ---: |' * len(aspects)}"
    for name in ("float32", "bfloat16"):
        for n in (64, 128, 256, 512):
            cells = []
            for aspect in aspects:
                m = int(n * aspect)
                x = torch.randn(max(1, (1 << 17) // (n * m)), n, m, device=device)
                x = (x / x.norm(dim=(-2, -1), keepdim=True)).to(PRECISIONS[name].dtype)
                plain, gram = (TorchProducts(PRECISIONS[name], device) for _ in range(2))
                plain.side, gram.side, gram.ratio = sys.maxsize, 0, 0.0
                runs = [lambda x=x, of=of: iterate(x.clone(), COEFFICIENTS["original"] * 5, of) for of in (plain, gram)]
                cells.append(f"{median_ratio(runs[0], runs[1]):.2f}")
            yield f"| {name} | {n} | {' | '.join(cells)} |"


def errors() -> Iterator[str]:
    """Errors relative to float64 over the matrices of the accuracy tests: the median and the largest."""
    import test_gram_iteration as accuracy  # pyright: ignore[reportMissingImports]

    yield "| precision | preset | plain: median | largest | Gram: median | largest |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for name in ("float32", "tf32", "bfloat16"):
        for preset, steps in (("original", 5), ("quintic", 5), ("polar_express", 8)):
            triples = resolve_coefficients(preset, steps)
            cells = []
            for gram in (False, True):
                found = [accuracy.error(x, triples, name, gram) for x in accuracy.matrices().values()]
                cells += [f"{statistics.median(found):.1e}", f"{max(found):.1e}"]
            yield f"| {name} | {preset}, {steps} | {' | '.join(cells)} |"


def blocks(device: torch.device) -> Iterator[str]:
    """Time of X·Xᵀ computed in the lower block rows and mirrored, relative to one product."""
    yield "| dtype | rows × columns | 2 block rows | 4 |"
    yield "| --- | --- | ---: | ---: |"
    for dtype in (torch.float32, torch.bfloat16):
        for n, k in ((256, 256), (512, 512), (512, 2048), (1024, 1024), (1024, 4096)):
            x, out = torch.randn(n, k, device=device).to(dtype), torch.empty(n, n, dtype=dtype, device=device)
            whole = partial(torch.mm, x, x.T, out=out)
            cells = [f"{median_ratio(whole, partial(in_blocks, x, out, parts)):.2f}" for parts in (2, 4)]
            yield f"| {str(dtype)[6:]} | {n} × {k} | {' | '.join(cells)} |"


def in_blocks(x: Tensor, out: Tensor, parts: int) -> None:
    """``out = x·xᵀ`` from the blocks on and below the diagonal."""
    height = len(x) // parts
    for i in range(parts):
        end = (i + 1) * height
        torch.mm(x[i * height : end], x[:end].T, out=out[i * height : end, :end])
        out[: i * height, i * height : end] = out[i * height : end, : i * height].T


def padding(device: torch.device) -> Iterator[str]:
    """Time of eight shapes padded to one stack, relative to one stack per shape."""
    yield "| rows × columns, 8 shapes | padded / by shape |"
    yield "| --- | ---: |"
    stacks.PADDED["cpu"] = 0
    for n, m, step in ((16, 32, 2), (32, 64, 4), (64, 128, 8), (64, 128, 1), (128, 256, 2)):
        shapes = [(n - k * step // 2, m - k * step) for k in range(8)]
        matrices = [torch.randn(shape, device=device) for shape in shapes]
        padded = [torch.nn.functional.pad(x, (0, m - x.shape[1], 0, n - x.shape[0])) for x in matrices]
        runs = [partial(newton_schulz_all, x, COEFFICIENTS["original"] * 5, 1e-8) for x in (matrices, padded)]
        yield f"| {shapes[-1][0]} × {shapes[-1][1]} to {n} × {m} | {median_ratio(runs[0], runs[1]):.2f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("computed", "ratios", "errors", "blocks", "padding"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default="cpu")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    measured = {"ratios": ratios, "blocks": blocks, "padding": padding}
    alone = {"computed": computed, "errors": errors}
    for line in measured[chosen.part](chosen.device) if chosen.part in measured else alone[chosen.part]():
        print(line, flush=True)


if __name__ == "__main__":
    main()
