"""The figures of docs/performance.md: optimizers, backends and shape sets, against fused AdamW in the same run.

    python benchmarks/step_time.py [--seconds 1800] [--shapes gpt,many] [--optimizers celo2,muon] [--backends fused]
    python benchmarks/step_time.py --page

Measures as ``pylo-zoo bench`` does, writes every time to benchmarks/BACKEND.json (eager, fused, and torch for what has
no such choice, unless the file there is of more sets), and makes the page's tables from those files. ``--page`` does
only that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pylo_zoo.bench import BACKENDS, TORCH, BenchPlan, Report, bench, read, write
from pylo_zoo.bench.run import names_of
from pylo_zoo.bench.tables import markdown

HERE = Path(__file__).parent
FILES = [HERE / f"{name}.json" for name in (TORCH, *BACKENDS)]
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- the figures: written by benchmarks/step_time.py -->", "<!-- end of the figures -->"


def with_figures(page: str) -> str:
    """``page`` with the tables of the files between its two marks."""
    tables = markdown(*(read(file) for file in FILES if file.exists()))
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _says_more(file: Path, report: Report) -> bool:
    """Whether the file is of more sets of shapes: torch's own rows come along with every run."""
    return file.exists() and set(read(file).asked["shape_sets"]) > set(report.asked["shape_sets"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="all")
    parser.add_argument("--shapes", default="all")
    parser.add_argument("--backends", default="all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--threads", type=int, help="torch's, where it is not given")
    parser.add_argument("--page", action="store_true", help="make the page from the files, measuring nothing")
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
        for backend, its in report.by_backend().items():
            file = HERE / f"{backend}.json"
            if not (backend == TORCH and _says_more(file, its)):
                write(its, file)
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
