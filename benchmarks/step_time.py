"""The tables of docs/performance.md: step times of optimizers, backends and shape sets, relative to fused AdamW.

    python benchmarks/step_time.py [--seconds 1800] [--shapes gpt,many] [--optimizers celo2,muon] [--backends fused]
    python benchmarks/step_time.py --page

Measures like ``pylo-zoo bench`` and writes every time to benchmarks/BACKEND.json, where BACKEND is eager, fused, or
torch for optimizers without a backend. A torch.json with more shape sets is kept. Then writes the page's tables from
these files. ``--page`` only writes the tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pylo_zoo.experiments.bench import BACKENDS, TORCH, BenchPlan, Report, bench, read, write
from pylo_zoo.experiments.bench.run import names_of
from pylo_zoo.experiments.bench.tables import markdown

HERE = Path(__file__).parent
FILES = [HERE / f"{name}.json" for name in (TORCH, *BACKENDS)]
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- the figures: written by benchmarks/step_time.py -->", "<!-- end of the figures -->"


def with_figures(page: str) -> str:
    """``page`` with the tables between its two markers."""
    tables = markdown(*(read(file) for file in FILES if file.exists()))
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _has_more_sets(file: Path, report: Report) -> bool:
    """Whether the file has more shape sets than ``report``. Every run measures torch's optimizers again."""
    return file.exists() and set(read(file).asked["shape_sets"]) > set(report.asked["shape_sets"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="all")
    parser.add_argument("--shapes", default="all")
    parser.add_argument("--backends", default="all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--threads", type=int, help="number of threads; torch's default if not given")
    parser.add_argument("--page", action="store_true", help="only write the tables, from the files")
    arguments = parser.parse_args()
    if not arguments.page:
        plan = BenchPlan(
            names_of(arguments.optimizers),
            names_of(arguments.shapes),
            names_of(arguments.backends),
            arguments.steps,
            arguments.seconds,
            arguments.threads,
        )
        report = bench(plan, lambda what, done, total: print(f"{done}/{total} {what}", file=sys.stderr))
        for backend, part in report.by_backend().items():
            file = HERE / f"{backend}.json"
            if not (backend == TORCH and _has_more_sets(file, part)):
                write(part, file)
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
