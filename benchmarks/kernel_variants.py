"""Explores block sizes, alignment and network variants of the GPU kernels: builds, checks and times each in one run.

    python benchmarks/kernel_variants.py [--out variants.json] [--seconds 200]   # on a GPU
    TRITON_INTERPRET=1 python benchmarks/kernel_variants.py                      # the interpreter builds and checks
    python benchmarks/kernel_variants.py --compile-only                          # registers, spills, loads for sm_90

A variant changes fields of :class:`pylo_zoo.kernels.gpu.tuning.Tuning`, or the precision of matrix products. Each is
checked against the eager implementation in float64 on small parameters, then the kernel that it concerns is timed alone
over one large matrix: median of device events, and the percentage of the copy bandwidth that the same run measures.
The last line is the table's new entry: replace ``TUNING`` in ``pylo_zoo/kernels/gpu/tuning.py`` by it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as in pylo_zoo.kernels.gpu.launch

import torch
from torch import Tensor

from pylo_zoo.kernels import gpu
from pylo_zoo.kernels.base import ScratchBuffer, Task
from pylo_zoo.kernels.gpu.tuning import TUNING, Tuning
from pylo_zoo.ops.accumulators import Decays, new_accumulators
from pylo_zoo.ops.layout import axes_of
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule, adafac_rule, velo_rule
from pylo_zoo.ops.step import learned_step

RULES: dict[str, tuple[Rule, int]] = {"velo": (velo_rule(0.001), 4), "small-fc": (adafac_rule(0.001), 32)}
"""Rule, and units of each of the two hidden layers."""
KERNELS = {"sums": "matrix_sums", "moments": "advance_elements", "move": "move_elements", "network": "move_elements"}
BYTES = {"sums": 4, "moments": 40, "move": 28, "network": 28}
"""Bytes that a pass must move per float32 element: see ``MATRIX_BYTES`` in compile_kernels.py."""
SHAPES, TINY = [(200, 1096), (5, 3), (3000,)], [(9, 20), (5, 3), (7,)]
"""Checked parameters on a GPU, and in the interpreter."""
LARGE = (8192, 8192)
ERROR = 2.0**-12
"""Largest error of a step, relative to its root mean square. Products leave out up to 2.5·2^-21 of each of 32 terms, in
three layers, and float32 rounds to 2^-24; a wrong index or weight changes a step by more than 2^-8."""


@dataclass(frozen=True)
class Variant:
    """One setting of one pass."""

    name: str
    """The pass: a key of :data:`KERNELS`."""
    change: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`Tuning`."""
    precision: str = "split"
    aligned: bool = True
    """Whether addresses are multiples of 16 bytes."""

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.change.items()]
        parts += [self.precision] if self.name == "network" and self.tuning.network == "products" else []
        return " ".join([*parts, *([] if self.aligned else ["unaligned"])]) or "the table's"

    @property
    def tuning(self) -> Tuning:
        return replace(TUNING, **self.change)

    @property
    def rule(self) -> str:
        return "small-fc" if self.name == "network" else "velo"


def variants() -> list[Variant]:
    """All variants, the present table's first, then those that promise most."""
    network = [
        Variant("network", {"network_sizes": sizes}) for sizes in ((128, 1, 1, 4), (256, 2, 1, 8), (128, 2, 2, 4))
    ]
    network += [Variant("network", {"network": "registers", "network_sizes": (128, 2, tiles, 4)}) for tiles in (1, 2)]
    network += [Variant("network", {}, precision) for precision in ("bf16x6", "tf32x3", "tf32")]
    moments = [
        {"moment_stages": 2},
        {"moment_lanes": 256},
        {"moment_lanes": 256, "moment_warps": 8},
        {"moment_warps": 2, "moment_lanes": 64},
        {"moment_stages": 3},
        {"moment_tiles": 16},
        {"moment_tiles": 4},
    ]
    move = [(128, 4, 2, 4), (128, 4, 4, 4), (64, 4, 2, 2), (256, 4, 2, 8), (128, 2, 2, 4), (256, 4, 2, 4)]
    sums = [
        {"sums_blocks": 8},
        {"sums_blocks": 2},
        {"sums_warps": 8},
        {"sums_rows": 128},
        {"sums_rows": 32},
        {"sums_warps": 8, "sums_blocks": 8, "sums_rows": 128},
    ]
    ordered = [Variant(name) for name in KERNELS]
    ordered += network + [Variant("moments", change) for change in moments]
    ordered += [Variant("move", {"move_sizes": sizes}) for sizes in move] + [Variant("sums", change) for change in sums]
    return ordered + [Variant(name, aligned=False) for name in ("sums", "moments", "move")]


def make_layers(variant: Variant, device: str) -> list[Layer]:
    rule, units = RULES[variant.rule]
    generator, sizes = torch.Generator().manual_seed(0), [28 if rule.time else 30, units, units, 2]
    shapes = list(pairwise(sizes))
    weights = [torch.randn(o, i, generator=generator) / i**0.5 for i, o in shapes]
    return [(weight.to(device), 0.1 * torch.ones(len(weight), device=device)) for weight in weights]


def make_task(shape: tuple[int, ...], device: str, aligned: bool) -> Task:
    generator, shift = torch.Generator(device).manual_seed(sum(shape)), 0 if aligned else 1

    def normal(*of: int) -> Tensor:
        size = torch.Size(of).numel()
        return torch.randn(size + shift, generator=generator, device=device)[shift:].view(of)

    p, axes = normal(*shape), axes_of(shape, "torch")
    state = {name: normal(*each.shape).square_() for name, each in new_accumulators(p, axes).items()}
    of_three = torch.tensor([0.9, 0.99, 0.999], device=device)
    decays = Decays(of_three, torch.tensor([0.999], device=device), of_three.clone())
    return Task(p, normal(*shape), state, axes, decays, 1000.0, False)


def check(variant: Variant, device: str) -> float:
    """The largest error of a step against eager in float64, relative to the step's root mean square."""
    rule, _ = RULES[variant.rule]
    layers, kernels = make_layers(variant, device), gpu.GpuKernels(variant.precision, variant.tuning)
    tasks = [make_task(shape, device, variant.aligned) for shape in (TINY if device == "cpu" else SHAPES)]
    wide = [(weight.double(), bias.double()) for weight, bias in layers]
    expected = [_eager(task, rule, wide) for task in tasks]
    steps = kernels.steps(kernels.advance(tasks, rule, None, moments=True), layers, ScratchBuffer())
    errors = [
        float((step.double() - right).abs().max() / right.square().mean().sqrt())
        for step, right in zip(steps, expected, strict=True)
    ]
    return max(errors)


def _eager(task: Task, rule: Rule, layers: list[Layer]) -> Tensor:
    state = {name: each.double() for name, each in task.state.items()}
    decays = Decays(*(each.double() for each in task.decays))
    return learned_step(task.p.double(), task.g.double(), state, decays, task.axes, rule, layers)


def launches(
    variant: Variant, task: Task, layers: list[Layer]
) -> Iterator[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]]:
    """The launches of the variant's kernel in one step, without running them."""
    found: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, programs: Any, *arguments: Any, **options: Any) -> None:
        found.append((kernel, programs, arguments, options))

    original, gpu.launch = gpu.launch, record
    try:
        kernels, rule = gpu.GpuKernels(variant.precision, variant.tuning), RULES[variant.rule][0]
        kernels.move(kernels.advance([task], rule, None, moments=variant.rule == "velo"), layers, [1e-6], [0.0])
    finally:
        gpu.launch = original
    return (each for each in found if each[0].fn.__name__ == KERNELS[variant.name])


def median_time(call: Any, repeats: int = 15) -> float:
    """Seconds of ``call`` on the device: the median of single runs after two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def copy_bandwidth() -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_time(lambda: target.copy_(source))


def measure(variant: Variant, task: Task, bandwidth: float) -> dict[str, Any]:
    ((kernel, programs, arguments, options),) = launches(variant, task, make_layers(variant, "cuda"))
    seconds = median_time(lambda: gpu.launch(kernel, programs, *arguments, **options))
    moved = BYTES[variant.name] * task.p.numel()
    return {"ms": round(seconds * 1e3, 3), "copy": f"{moved / seconds / bandwidth:.0%}"}


def compile_ahead(variant: Variant) -> dict[str, Any]:
    """Registers, spills, loads and seconds of compilation for sm_90."""
    import compile_kernels

    task = make_task((64, 64) if variant.aligned else (5, 3), "cpu", variant.aligned)
    ((kernel, _, arguments, options),) = launches(variant, task, make_layers(variant, "cpu"))
    usage = compile_kernels.compile_kernel(compile_kernels.launch_of(kernel, str(variant), arguments, options), "sm_90")
    return {name: usage[name] for name in ("registers", "spills", "shared", "loads", "loads_16", "seconds")}


def explore_gpu(chosen: list[Variant], seconds: float) -> Iterator[dict[str, Any]]:
    """Build and check in processes, which fill Triton's cache, and time in this one."""
    started, task, bandwidth = time.monotonic(), make_task(LARGE, "cuda", True), copy_bandwidth()
    unaligned = make_task(LARGE, "cuda", False)
    print(f"copy: {bandwidth / 1e12:.2f} TB/s, {torch.cuda.get_device_name()}", file=sys.stderr)
    with ProcessPoolExecutor(min(8, (os.cpu_count() or 2) // 2 or 1), get_context("spawn")) as pool:
        errors: list[tuple[Variant, Future[float]]] = [(each, pool.submit(check, each, "cuda")) for each in chosen]
        for variant, error in errors:
            left = seconds - (time.monotonic() - started)
            if left <= 0:
                error.cancel()
                continue
            row = row_of(variant)
            try:
                row["error"] = error.result(timeout=left)
                row |= measure(variant, task if variant.aligned else unaligned, bandwidth)
            except Exception as failure:  # a variant that does not compile or fit is a result
                row["failure"] = f"{type(failure).__name__}: {failure}"[:200]
            yield row


def explore(chosen: list[Variant], compile_only: bool) -> Iterator[dict[str, Any]]:
    """Compile ahead of time, or check in the interpreter, which lacks the precisions of bfloat16."""
    for variant in chosen:
        if not compile_only and variant.precision.startswith("bf16"):
            continue
        row = row_of(variant)
        if compile_only:
            row |= compile_ahead(variant)
        else:
            row["error"] = check(variant, "cpu")
        yield row


def row_of(variant: Variant) -> dict[str, Any]:
    return {"pass": variant.name, "variant": str(variant)}


def winner(rows: list[dict[str, Any]]) -> Tuning:
    """The fields of each pass's fastest variant that is right, aligned and of the table's precision."""
    by_row = {(variant.name, str(variant)): variant for variant in variants()}
    best = TUNING
    for name in KERNELS:
        right = [row for row in rows if row["pass"] == name and "ms" in row and row["error"] <= ERROR]
        right = [row for row in right if by_row[name, row["variant"]].aligned]
        right = [row for row in right if by_row[name, row["variant"]].precision == "split"]
        if right:
            fastest = min(right, key=lambda row: row["ms"])
            best = replace(best, **by_row[name, fastest["variant"]].change)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--seconds", type=float, default=200, help="start no variant after this time, on a GPU")
    parser.add_argument("--first", type=int, help="only the first variants; four are the present table")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not arguments.compile_only
    rows, chosen = [], variants()[: arguments.first]
    for row in explore_gpu(chosen, arguments.seconds) if on_gpu else explore(chosen, arguments.compile_only):
        rows.append(row)
        print(json.dumps(row), flush=True)
    wrong = [row for row in rows if row.get("error", 0.0) > ERROR and not row["variant"].endswith("tf32")]
    if arguments.out:
        arguments.out.write_text(json.dumps({"tuning": asdict(TUNING), "variants": rows}, indent=1) + "\n")
    if on_gpu:
        print(f"TUNING = {winner(rows)}")
    if wrong:
        sys.exit(f"{len(wrong)} variants are wrong: {wrong}")


if __name__ == "__main__":
    main()
