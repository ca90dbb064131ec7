"""Time of Newton–Schulz relative to its dense matrix products alone, in float32, bfloat16 and, on CUDA, TF32.

    python benchmarks/newton_schulz.py [--seconds 600] [--threads N] [--device cuda]

The products are the fifteen of five iterations, into allocated memory, without other operations. The two are measured
alternately; the largest allowed ratio is 1.2. Writes every time to benchmarks/newton-schulz.json, in the format of
``pylo-zoo bench``, and the table to docs/performance.md. ``--page`` only writes the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pylo_zoo.experiments.bench import (
    TORCH,
    BenchPlan,
    Entry,
    Report,
    ShapeSet,
    Subject,
    measuring,
    read,
    report,
    write,
)
from pylo_zoo.experiments.bench.run import measure
from pylo_zoo.experiments.bench.subjects import matmuls, newton_schulz
from pylo_zoo.experiments.bench.tables import about_machine, format_number

HERE = Path(__file__).parent
FILE = HERE / "newton-schulz.json"
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- Newton–Schulz: written by benchmarks/newton_schulz.py -->", "<!-- end of Newton–Schulz -->"
SHAPES = [
    ShapeSet(name, about, (Entry("weight", shape, count),))
    for name, about, shape, count in (
        ("64x256", "64 matrices of 256×256", (256, 256), 64),
        ("320x1280", "320×1280", (320, 1280), 1),
        ("1280x320", "1280×320", (1280, 320), 1),
        ("1024x4096", "1024×4096", (1024, 4096), 1),
        ("4096x4096", "4096×4096", (4096, 4096), 1),
    )
]
GPT2_355M = ShapeSet(
    "gpt2-355m",
    "GPT-2 355M, 96 matrices",
    tuple(Entry(f"{r}x{c}", (r, c), 24) for r, c in ((1024, 1024), (3072, 1024), (4096, 1024), (1024, 4096))),
)
"""Measured on CUDA only: the bar is 0.65 of the time of the products."""
SUBJECTS = [
    Subject(
        name,
        "five iterations against their products",
        partial(newton_schulz, dtype=dtype),
        against="the matmuls",
        reference=partial(matmuls, dtype=dtype),
        has_backends=False,
    )
    for name, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), ("tf32", "tf32"))
]


def table(results: Report) -> str:
    """The table, with one row per set of matrices and dtype."""
    about = {each.name: each.about for each in [*SHAPES, GPT2_355M]}
    lines = [
        f"Measured on: {about_machine(results.machine, 'as below')}.",
        "",
        "| matrices | dtype | ms | products' ms | ratio | quartiles | of min | pairs |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell in results.cells:
        times = [format_number(1000 * each.median) for each in (cell.time, cell.against_time)]
        ratio = cell.ratio
        row = [about[cell.shapes], cell.optimizer, *times, format_number(ratio.median)]
        row += [
            f"{format_number(ratio.lower)}–{format_number(ratio.upper)}",
            format_number(cell.least_ratio),
            str(len(cell.seconds)),
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """``page`` with the table between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(read(FILE))}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", action="store_true", help="only write the table, from the file")
    arguments = parser.parse_args()
    if not arguments.page:
        plan = BenchPlan(
            (), (), (), arguments.steps, arguments.seconds, arguments.threads, arguments.device, memory=False
        )
        load, end = report.load_average(), time.monotonic() + plan.seconds
        on_gpu = plan.device.startswith("cuda")
        sets, subjects = ([*SHAPES, GPT2_355M], SUBJECTS) if on_gpu else (SHAPES, SUBJECTS[:2])  # a CPU has no TF32
        todo = [(subject, shapes) for shapes in sets for subject in subjects]
        with measuring.threads(plan.threads) as count:
            bandwidth = tuple(map(report.short, measuring.bandwidth(plan.device)))
            cells = []
            for done, (subject, shapes) in enumerate(todo):
                print(f"{done}/{len(todo)} {subject.name}, {shapes.about}", file=sys.stderr)
                share = max(0.0, end - time.monotonic()) / (len(todo) - done)
                cells.append(measure(subject, TORCH, shapes, plan, share))
        machine = report.this_machine(plan.device, count, bandwidth, (*load, *report.load_average()))
        write(Report(machine, asdict(plan), tuple(cells)), FILE)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
