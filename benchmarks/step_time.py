"""The figures of docs/performance.md: every optimizer on every shape set, against fused AdamW in the same run.

    python benchmarks/step_time.py [--seconds 1800] [--shapes gpt,many] [--optimizers celo2,muon]
    python benchmarks/step_time.py --from benchmarks/eager.json

Measures as ``pylo-zoo bench`` does, writes every time to benchmarks/eager.json, and puts the tables into the page.
``--from`` makes the page again from such a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pylo_zoo.bench import Plan, bench, read, write
from pylo_zoo.bench.run import names_of
from pylo_zoo.bench.tables import markdown

HERE = Path(__file__).parent
FIGURES = HERE / "eager.json"
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- the figures: written by benchmarks/step_time.py -->", "<!-- end of the figures -->"


def with_figures(page: str, tables: str) -> str:
    """``page`` with ``tables`` between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="all")
    parser.add_argument("--shapes", default="all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--from", dest="saved", type=Path, help="make the page from this file, measuring nothing")
    arguments = parser.parse_args()
    if arguments.saved:
        report = read(arguments.saved)
    else:
        plan = Plan(names_of(arguments.optimizers), names_of(arguments.shapes), arguments.steps, arguments.seconds)
        report = bench(plan, lambda what, done, total: print(f"{done}/{total} {what}", file=sys.stderr))
        write(report, FIGURES)
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), markdown(report)), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
