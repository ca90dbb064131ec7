"""Benchmark of step time and memory: every optimizer against fused AdamW, measured in the same run.

>>> from pylo_zoo.experiments.bench import BenchPlan, bench
>>> report = bench(BenchPlan(("velo-sample",), ("tiny",), seconds=1.0))  # doctest: +SKIP
"""

from pylo_zoo.experiments.bench.report import BACKENDS, TORCH, Cell, LeftOut, Machine, Report, read, write
from pylo_zoo.experiments.bench.run import BenchPlan, bench
from pylo_zoo.experiments.bench.shapes import SHAPE_SETS, Entry, ShapeSet
from pylo_zoo.experiments.bench.subjects import SUBJECTS, Subject

__all__ = [
    "BACKENDS",
    "SHAPE_SETS",
    "SUBJECTS",
    "TORCH",
    "BenchPlan",
    "Cell",
    "Entry",
    "LeftOut",
    "Machine",
    "Report",
    "ShapeSet",
    "Subject",
    "bench",
    "read",
    "write",
]
