"""Compiles every GPU kernel without a GPU, and reports registers, spills, shared memory and a roofline.

    python benchmarks/compile_kernels.py [--targets sm_80,sm_90,gfx942] [--out benchmarks/kernels.json]

It records the launches of :class:`~pylo_zoo.kernels.gpu.GpuKernels` for a small model with every kind of parameter, and
compiles their kernels. Fails if a kernel spills registers to memory. The roofline is computed from bytes and
operations, not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as in pylo_zoo.kernels.gpu.launch

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pylo_zoo.kernels import gpu
from pylo_zoo.kernels.base import Adam, AdamInputs, AdamPlan, Normalized, ScratchBuffer, Task
from pylo_zoo.kernels.gpu import adam_plan, normalized, products
from pylo_zoo.ops.accumulators import Decays, new_accumulators
from pylo_zoo.ops.layout import axes_of
from pylo_zoo.ops.rule import Rule, adafac_rule, celo2_rule, velo_rule

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FAMILIES: dict[str, tuple[Rule, int, int]] = {
    "velo": (velo_rule(0.001), 4, 2),
    "celo2": (celo2_rule("relu", 0.0, False), 8, 2),
    "celo2-tanh": (celo2_rule("tanh", 0.0, False), 8, 3),
    "adafac-4": (adafac_rule(0.001), 4, 2),
    "small-fc": (adafac_rule(0.001), 32, 2),
}
"""Rule, units per hidden layer, and hidden layers."""
MODEL = {
    "matrix": (64, 64),
    "odd matrix": (5, 3),
    "convolution": (16, 16, 3, 3),
    "stack": (4, 16, 16),
    "vector": (64,),
    "odd vector": (7,),
}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}


class Launch(NamedTuple):
    """One specialization of a kernel."""

    kernel: Any
    what: str
    """Family, parameter and dtype of the first launch."""
    types: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]
    aligned: tuple[int, ...] = ()
    """Positions of sizes that are multiples of 16, which Triton compiles for separately."""


def record_launches(precision: str) -> list[Launch]:
    """The launches of one step of every family, each specialization once."""
    launches: dict[tuple[Any, ...], Launch] = {}
    what = ""

    def record(kernel: Any, programs: Any, *arguments: Any, **options: Any) -> None:
        launch = launch_of(kernel, what, arguments, options)
        launches.setdefault((kernel.fn.__name__, launch.types, str(launch.constants)), launch)

    modules: tuple[Any, ...] = gpu, adam_plan, normalized, products
    original = gpu.launch
    for module in modules:
        module.launch = record
    try:
        for what, step in chain(_steps(gpu.GpuKernels(precision)), _product_steps(precision)):  # noqa: B007
            step()
    finally:
        for module in modules:
            module.launch = original
    return list(launches.values())


def launch_of(kernel: Any, what: str, arguments: Sequence[Any], options: dict[str, Any]) -> Launch:
    """The specialization of a kernel for these arguments."""
    options = dict(options)
    warps = options.pop("num_warps", 4)
    absent = {name: None for name, each in zip(kernel.arg_names, arguments, strict=False) if each is None}
    types = tuple(
        TYPES[each.dtype] if isinstance(each, Tensor) else _scalar(each) for each in arguments if each is not None
    )
    multiplies = kernel.fn.__name__ == "multiply"
    aligned = [k for k, each in enumerate(arguments) if multiplies and isinstance(each, int) and each % 16 == 0]
    constants = tuple({**absent, **options}.items())
    return Launch(kernel, what, types, constants, (("num_warps", warps),), tuple(aligned))


def _scalar(value: float) -> str:
    return "i32" if isinstance(value, int) else "fp32"


def _steps(kernels: gpu.GpuKernels) -> Iterator[tuple[str, Any]]:
    decays = Decays(torch.ones(3), torch.ones(1), torch.ones(3))
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for family, (rule, units, hidden) in FAMILIES.items():
            sizes = [28 if rule.time else 30, *[units] * hidden, 3]
            layers = [(torch.zeros(o, i), torch.zeros(o)) for i, o in pairwise(sizes)]
            for name, shape in MODEL.items() if dtype == torch.float32 else [("matrix", MODEL["matrix"])]:
                p, axes = torch.zeros(shape, dtype=dtype), axes_of(shape, "jax" if name == "stack" else "torch")
                state = new_accumulators(p.float(), axes)
                task = Task(p, p.clone(), state, axes, decays, 1000.0, False)

                def step(
                    task: Task = task, rule: Rule = rule, layers: Any = layers, moments: bool = family == "velo"
                ) -> None:
                    advanced = kernels.advance([task], rule, None, moments)
                    if rule.per_matrix:  # these steps are orthogonalized before they are applied
                        (delta,) = kernels.steps(advanced, layers, ScratchBuffer())
                        kernels.move_normalized([Normalized(task.p, delta, task.axes.matrix, 1e-9)], [0.1], [0.0])
                    kernels.move(advanced, layers, [0.1], [0.0])

                yield f"{family}, {name}, {kind}", step
        for name in ("vector", "odd vector"):
            p = torch.zeros(MODEL[name], dtype=dtype)
            moments = torch.zeros(1, *p.shape), torch.zeros(1, *p.shape)
            plan, one = kernels.plan_adam([Adam(p, p.clone(), *moments, False)]), torch.ones(1)

            def adam_step(plan: AdamPlan = plan, p: torch.Tensor = p, one: torch.Tensor = one) -> None:
                numbers = torch.tensor([[0.9, 0.95, 1e-8, 0.0, torch.inf]], dtype=torch.float64)
                plan.step(AdamInputs([p], [p.clone()], numbers, one.long(), one, one, None))

            yield f"adam, {name}, {kind}", adam_step


def _product_steps(precision: str) -> Iterator[tuple[str, Any]]:
    """Newton–Schulz's products of small and large tiles, with the terms that iterations add."""
    fp32 = ["ieee"] if precision == "ieee" else ["ieee", "tf32", "tf32x3"]
    for name, dtype in [*((each, torch.float32) for each in fp32), ("bfloat16", torch.bfloat16)]:
        for side in (128, 512):
            x, out = torch.zeros(2, side, 2 * side, dtype=dtype), torch.zeros(2, side, side, dtype=dtype)
            terms, of_product = [torch.zeros_like(out) for _ in range(2)], name if dtype == torch.float32 else "ieee"
            for count, identity in ((0, 0.0), (1, 0.0), (1, 1.0), (2, 0.0)):
                factors, added = [1.0] * count, terms[:count]

                def symmetric(
                    x: Any = x, out: Any = out, of: str = of_product, factors: Any = factors, added: Any = added,
                    identity: float = identity,
                ) -> None:  # fmt: skip
                    products.symmetric_product(x, x, out, 1.0, factors, added, identity, of)

                yield f"symmetric, {side} rows, {count} terms, {name}", symmetric
            if dtype == torch.float32:
                for beta in (0.0, 1.0):

                    def dense(x: Any = x, q: Any = out, beta: float = beta, of: str = of_product) -> None:
                        products.dense_product(q, x, torch.zeros_like(x), beta, of)

                    yield f"dense, {side} rows, {name}", dense


def compile_kernel(launch: Launch, target: str) -> dict[str, Any]:
    """Compile one kernel for one target, and return its resource usage and the processor's ``seconds``."""
    constants = dict(launch.constants)
    names = [name for name in launch.kernel.arg_names if name not in constants]
    signature = dict(zip(names, launch.types, strict=True)) | dict.fromkeys(constants, "constexpr")
    aligned = {
        (k,): [["tt.divisibility", 16]]
        for k, name in enumerate(launch.kernel.arg_names)
        if signature[name].startswith("*") or k in launch.aligned  # torch's allocator aligns to 16 bytes
    }
    source = ASTSource(launch.kernel, signature, constants, aligned)
    options = {**dict(launch.options), "enable_fp_fusion": True}
    started = os.times()
    result = triton.compile(source, target=TARGETS[target], options=options)
    seconds, asm = sum(os.times()[:4]) - sum(started[:4]), result.asm
    usage = _nvidia(asm["ptx"], asm["cubin"]) if "ptx" in asm else _amd(asm["amdgcn"])
    name = {"target": target, "kernel": launch.kernel.fn.__name__, "for": launch.what}
    warps = dict(launch.options)["num_warps"]
    return {
        **name,
        **usage,
        "shared": result.metadata.shared,
        "threads": warps * TARGETS[target].warp_size,
        "seconds": round(seconds, 1),
    }


def _nvidia(ptx: str, binary: bytes) -> dict[str, int]:
    """Resource usage from the NVIDIA tools that Triton includes. Spilled registers are on the stack.

    ``operations`` is the number of float32 operations per thread.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (registers,), (stack,), (local,) = (re.findall(rf" {name}:(\d+)", output) for name in ("REG", "STACK", "LOCAL"))
    operations = re.findall(r"^\s*(?:@\S+ )?(?:fma|add|sub|mul|div|rsqrt|sqrt|ex2|setp|min|max)\.\S*f32", ptx, re.M)
    return {
        "registers": int(registers),
        "spills": int(stack) + int(local),
        "operations": len(operations),
        "loads": len(re.findall(r"ld\.global", ptx)),
        "loads_16": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
    }


def _amd(assembly: str) -> dict[str, int]:
    """Resource usage from AMD's assembly. Scalar registers spill to vector registers, not to memory."""

    def field(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[0])

    spills = field("vgpr_spill_count") + field("private_segment_fixed_size")
    return {"registers": field("vgpr_count"), "spills": spills, "scalar_spills": field("sgpr_spill_count")}


class Device(NamedTuple):
    """Peak rates from the vendors' data sheets, in 1e12 per second."""

    bandwidth: float
    fp32: float
    tf32: float


DEVICES = {
    "A100 40 GB": Device(1.555, 19.5, 156),
    "A100 80 GB": Device(2.039, 19.5, 156),
    "H100 SXM": Device(3.35, 67, 495),
}
MATRIX_BYTES = {"factors": 4, "moments": 40, "move": 28}
"""Bytes per float32 element. Factors: read g. Moments: read p, g, m, v; write m, v. Move: read p, g, m, v; write p."""
ADAMW_BYTES = 28


def roofline(kernels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computed picoseconds per parameter of each pass: the longer of the times for bytes and for operations.

    A matrix product counts as three TF32 products. Everything else is float32.
    """
    rows = []
    operations = {
        (kernel["kernel"], kernel["for"]): kernel["operations"] * kernel["threads"]
        for kernel in kernels
        if kernel["target"] == "sm_80"
    }
    blocks = {
        "moments": ("advance_elements", 4 * gpu.TUNING.moment_lanes),
        "move": ("move_elements", math.prod(gpu.TUNING.move_sizes[:2])),
    }
    for family, (_, units, _) in FAMILIES.items():
        for device, (bandwidth, fp32, tf32) in DEVICES.items():
            passes = {"factors": MATRIX_BYTES["factors"] / bandwidth}
            wide = units > gpu.IN_REGISTERS
            for name, (kernel, block) in blocks.items():
                same = {"celo2-tanh": "celo2", "small-fc": "adafac-4"}.get(family, family)
                same = same if name == "moments" else family
                of_block = math.prod(gpu.TUNING.network_sizes[:2]) if wide and name == "move" else block
                arithmetic = operations[kernel, f"{same}, matrix, float32"] / of_block / (fp32 / 2)
                if wide and name == "move":
                    arithmetic += 3 * 2 * (32 * units + units * units) / tf32
                passes[name] = max(MATRIX_BYTES[name] / bandwidth, arithmetic)
            total, adamw = sum(passes.values()), ADAMW_BYTES / bandwidth
            times = {name: round(value, 1) for name, value in passes.items()}
            rows.append(
                {
                    "family": family,
                    "device": device,
                    **times,
                    "adamw": round(adamw, 1),
                    "times": round(total / adamw, 1),
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("kernels.json"))
    arguments = parser.parse_args()
    kernels = []
    for target in arguments.targets.split(","):
        for launch in record_launches("ieee" if TARGETS[target].backend == "hip" else "split"):
            kernels.append(compile_kernel(launch, target))
            print(json.dumps(kernels[-1]), file=sys.stderr, flush=True)
    report = {"triton": triton.__version__, "kernels": kernels}
    print(table(kernels))
    if "sm_80" in arguments.targets:
        report["roofline, picoseconds a parameter of a matrix, computed and not measured"] = rows = roofline(kernels)
        print(f"\nRoofline in picoseconds per parameter of a matrix, computed and not measured:\n\n{table(rows)}")
    lines = [f'  "{name}": {_lines(value)}' for name, value in report.items()]
    arguments.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    spilling = [kernel for kernel in kernels if kernel["spills"]]
    if spilling:
        sys.exit(f"{len(spilling)} kernels spill registers:\n{table(spilling)}")


def _lines(value: Any) -> str:
    """JSON with one line per row."""
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in value) + "\n  ]"


if __name__ == "__main__":
    main()
