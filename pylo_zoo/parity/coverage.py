"""What a run tried and what it did not, as the report says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pylo_zoo.parity.cases import CASES, LONG
from pylo_zoo.parity.plan import NOT_COVERED
from pylo_zoo.parity.quantities import order
from pylo_zoo.parity.report import Check, Coverage
from pylo_zoo.parity.steps import Found
from pylo_zoo.parity.trajectory import COURSES

PLANNED = {course.name: course.steps for course in COURSES}
LOOSE = 0.1
"""A bound above this says little."""


def coverage(checks: Sequence[Check], found: Sequence[Found], besides: Sequence[str]) -> Coverage:
    """The dimensions of the table and what each was tried on; ``besides`` is more that was not covered."""
    tried = {name for check in checks if check.level != "network" for name in check.errors}
    table = [case for case in (*CASES, *LONG) if case.name in tried]
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
            f"{n} steps" for n in sorted({1, *(check.steps for check in checks if check.level == "trajectory")})
        ],
        "quantity": _unique(what for each in found for _, what in each.walked.ledger.keys),
    }
    return Coverage(covered, [*_unique(_left_out(checks, found)), *besides, *NOT_COVERED])


def _left_out(checks: Sequence[Check], found: Sequence[Found]) -> Iterable[str]:
    for check in checks:
        none = [name for name, error in check.errors.items() if error.allowed is None]
        if none:
            run = check.name.partition(":")[0]
            yield f"{run} in {check.dtype}: {'; '.join(none)}, where the original itself gives no number"
    for each in found:
        run = each.walked.run
        if len(each.errors) < run.steps and each.dtype == "float64" and each.layout == run.layouts[0]:
            yield f"{run.name}: steps after the first {len(each.errors)}, where the original is no longer finite"
    for check in checks:
        if check.level == "trajectory" and check.steps < PLANNED.get(check.name, 0):
            yield f"whole run {check.name}: steps after the first {check.steps}, where the original is no longer finite"
    loose: dict[str, set[str]] = {}
    for each in found:
        if each.dtype == "float32" and not each.kernels:
            allowed = zip(each.walked.ledger.keys, each.allowed, strict=True)
            loose.setdefault(each.walked.run.name, set()).update(what for (_, what), bound in allowed if bound > LOOSE)
    for run, names in loose.items():
        if names:
            shown = ", ".join(sorted(names, key=order)[:4])
            more = f" and {len(names) - 4} after it" if len(names) > 4 else ""
            yield f"{run} in float32: {shown}{more}, where the original itself is rough (float64 covers them)"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
