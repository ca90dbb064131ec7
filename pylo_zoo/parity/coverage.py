"""What a proof covered and what it did not, for the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pylo_zoo.errors import count
from pylo_zoo.parity.cases import CASES, LONG
from pylo_zoo.parity.plan import NOT_COVERED
from pylo_zoo.parity.quantities import order
from pylo_zoo.parity.steps import StepComparison
from pylo_zoo.parity.trajectory import WHOLE_RUNS
from pylo_zoo.report.records import Check, Coverage

PLANNED = {planned.name: planned.steps for planned in WHOLE_RUNS}
LOOSE = 0.1
"""A bound above this is too loose to show much."""


def coverage(
    checks: Sequence[Check], comparisons: Sequence[StepComparison], also_not_covered: Sequence[str]
) -> Coverage:
    """What ``checks`` and ``comparisons`` covered, by dimension, and what they did not."""
    compared = {name for check in checks if check.level != "network" for name in check.errors}
    table = [case for case in (*CASES, *LONG) if case.name in compared]
    ranks = {len(case.shape) for case in table}
    steps = [check for check in checks if check.level == "step"]
    covered = {
        "dtype": _unique(check.dtype for check in checks),
        "backend": _unique(f"fused on {check.kernels}" if check.kernels else "eager" for check in steps),
        "layout": _unique(check.layout for check in checks if check.layout),
        "rank": [f"{rank}-d" for rank in sorted(ranks)],
        "shape": [f"{case.name} {_shape(case.shape)}" for case in table],
        "regime": _unique(check.name for check in steps if check.kind == "regime"),
        "options": _unique(check.name for check in steps if check.kind == "options"),
        "flags": _unique(check.name for check in steps if check.kind == "flags"),
        "length": [
            count(n, "step") for n in sorted({1, *(check.steps for check in checks if check.level == "trajectory")})
        ],
        "quantity": _unique(quantity for each in comparisons for _, quantity in each.reference.ledger.keys),
    }
    return Coverage(covered, [*_unique(_not_covered(checks, comparisons)), *also_not_covered, *NOT_COVERED])


def _not_covered(checks: Sequence[Check], comparisons: Sequence[StepComparison]) -> Iterable[str]:
    for check in checks:
        unbounded = [name for name, error in check.errors.items() if error.allowed is None]
        if unbounded:
            run = check.name.partition(":")[0]
            yield f"{run} in {check.dtype}: {'; '.join(unbounded)}, because the original's result is not finite"
    for each in comparisons:
        run = each.reference.run
        if len(each.errors) < run.steps and each.dtype == "float64" and each.layout == run.layouts[0]:
            yield f"{run.name}: steps after step {len(each.errors)}, because the original is no longer finite"
    for check in checks:
        if check.level == "trajectory" and check.steps < PLANNED.get(check.name, 0):
            yield f"whole run {check.name}: steps after step {check.steps}, because the original is no longer finite"
    loose: dict[str, set[str]] = {}
    for each in comparisons:
        if each.dtype == "float32" and not each.kernels:
            bounds = zip(each.reference.ledger.keys, each.allowed, strict=True)
            loose.setdefault(each.reference.run.name, set()).update(
                name for (_, name), bound in bounds if bound > LOOSE
            )
    for run, names in loose.items():
        if names:
            shown = ", ".join(sorted(names, key=order)[:4])
            more = f" and {len(names) - 4} later quantities" if len(names) > 4 else ""
            yield f"{run} in float32: {shown}{more}, because the original is imprecise there (float64 covers them)"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
