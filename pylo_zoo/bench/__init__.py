"""Benchmark of step time and memory: every optimizer against fused AdamW, measured in the same run.

>>> from pylo_zoo.bench import BenchPlan, bench
>>> report = bench(BenchPlan(("velo-sample",), ("tiny",), seconds=1.0))  # doctest: +SKIP
"""

from pylo_zoo.bench.report import BACKENDS, TORCH, Cell, LeftOut, Machine, Report, read, write
from pylo_zoo.bench.run import BenchPlan, bench
from pylo_zoo.bench.shapes import SHAPE_SETS, Entry, ShapeSet
from pylo_zoo.bench.subjects import SUBJECTS, Subject

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
