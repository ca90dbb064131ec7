"""What a report says, in words and rounded numbers: the same in HTML, Markdown and JUnit."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pylo_zoo.parity.report import Check, Error, Explanation, Link, Report

NONE = "–"
WORDS = {"passed": "Passed", "failed": "Failed", "not_run": "Not proven"}
LEVELS = {
    "network": "network",
    "step": "single step",
    "trajectory": "whole run",
    "original": "reference against the original",
}
DTYPES = ("float64", "float32")
UNITS = {
    "network": "of the largest output",
    "step": "of the update",
    "trajectory": "of the movement over the run",
    "original": "of the movement over the run",
}
"""What the errors of each level are relative to."""
LOOSE = 0.1
"""A bound above this, in the unit of its level, is so loose that keeping to it says little."""


def plain(text: str) -> str:
    """``text`` without what no document may hold or what reorders it on the screen: control and format characters."""
    return "".join(
        each if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Cn") else "\ufffd"
        for each in text
    )


def clipped(text: str, most: int) -> str:
    """``text``, cut where it has more than ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float | None, digits: int = 2) -> str:
    """``value`` to ``digits`` significant digits; a dash where there is none."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if not value:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if not -2 <= int(exponent) < max(digits, 4):
        return f"{mantissa}e{int(exponent)}"
    return f"{float(f'{value:.{digits - 1}e}'):,.{max(0, digits - 1 - int(exponent))}f}"


def ulps(value: float | None) -> str:
    """A count of units in the last place."""
    if value is None or not math.isfinite(value):
        return NONE
    return number(value) if value < 10 or value >= 1e6 else f"{value:,.0f}"


def apart(ours: float, theirs: float) -> tuple[str, str]:
    """Two values, to as many digits as show that they differ."""

    def told(digits: int) -> tuple[str, str]:
        a, b = (f"{each:.{digits}g}" if math.isfinite(each) else number(each) for each in (ours, theirs))
        return a, b

    return next((found for digits in (6, 9, 13) if len(set(found := told(digits))) == 2), told(17))


def count(n: int, what: str) -> str:
    """``1 leaf``, ``2 leaves``."""
    plural = {"leaf": "leaves", "quantity": "quantities", "family": "families"}.get(what, what + "s")
    return f"{n:,} {what if n == 1 else plural}"


def brief(name: str) -> str:
    """The name of a run without the list of what it sets."""
    return name.partition(":")[0]


def backend(kernels: str) -> str:
    """The implementation that stepped the torch side; empty for the eager one."""
    return f"fused kernels on {kernels}" if kernels else ""


def place(check: Check) -> str:
    """Which comparison: level, dtype, layout of the torch side, kernels, name."""
    layout, level = f"{check.layout} layout" if check.layout else "", LEVELS.get(check.level, check.level)
    return ", ".join(part for part in (level, check.dtype, layout, backend(check.kernels), check.name) if part)


def compared(check: Check) -> dict[str, Error]:
    """The errors of ``check`` that are held against a bound."""
    return {name: error for name, error in check.errors.items() if error.allowed is not None}


def size(error: Error) -> float:
    """The error for sorting: not a number is beyond everything."""
    return math.inf if math.isnan(error.error) else error.error


def loose(error: Error) -> bool:
    """Whether the original's own rounding is so large there that the bound says little."""
    return error.allowed is not None and error.allowed > LOOSE


@dataclass(frozen=True)
class Row:
    """All comparisons of one level, dtype and implementation.

    Attributes:
        level, dtype: of the comparisons.
        kernels: device whose fused kernels stepped the torch side; "" for the eager implementation.
        checks, failed: how many there are, and how many went beyond a bound.
        error: the largest that is held against a bound that is not :func:`loose` (or is beyond it), in the unit of its
            level (:data:`UNITS`); where all are, the largest.
        where: its parameter or output; ``check`` has it.
        used: the largest share of a bound that any error takes up.
        numbers, vague: how many errors there are, and how many of them have a loose bound or none.
    """

    level: str
    dtype: str
    checks: int
    failed: int
    error: Error
    where: str
    check: Check
    used: float
    numbers: int
    vague: int
    kernels: str = ""

    @property
    def label(self) -> str:
        """Level and implementation, in words."""
        return ", ".join(part for part in (LEVELS[self.level], backend(self.kernels)) if part)


def rows(report: Report) -> list[Row]:
    """The comparisons by level, implementation and dtype, of which something is held against a bound."""
    found = []
    for level in LEVELS:
        for kernels in report.devices:
            for dtype in DTYPES:
                checks = [check for check in report.of_level(level, kernels) if check.dtype == dtype]
                if any(compared(check) for check in checks):
                    found.append(_row(level, dtype, checks, kernels))
    return found


def _row(level: str, dtype: str, checks: Sequence[Check], kernels: str) -> Row:
    errors = [(check, name, error) for check in checks for name, error in compared(check).items()]
    telling = [item for item in errors if not loose(item[2]) or not item[2].passed]
    check, name, error = max(telling or errors, key=lambda item: size(item[2]))
    used = max(each.excess for _, _, each in errors)
    failed = sum(not each.passed for each in checks)
    numbers = sum(len(each.errors) for each in checks)
    vague = numbers - sum(not loose(each) for _, _, each in errors)
    return Row(level, dtype, len(checks), failed, error, name, check, used, numbers, vague, kernels)


def worst(report: Report, level: str = "step", dtype: str = "float64", kernels: str = "") -> Row | None:
    """One row of :func:`rows`; None without."""
    wanted = level, dtype, kernels
    return next((row for row in rows(report) if (row.level, row.dtype, row.kernels) == wanted), None)


def of_kernels(report: Report) -> list[str]:
    """What the report says of the fused kernels of each device, a clause each; nothing if it is older than they are."""
    found = []
    for each in report.kernels:
        if not each.compared:
            found.append(f"fused kernels on {each.device} were not compared: {each.reason}")
            continue
        eager = f" (eager steps {', '.join(each.uncovered)})" if each.uncovered else ""
        found.append(f"fused kernels on {each.device} were compared in float32{eager}")
    return found


def applicable(report: Report) -> int:
    """How many faults could be planted."""
    return sum(control.status != "not applicable" for control in report.controls)


def caught(report: Report) -> int:
    """How many planted faults showed."""
    return sum(control.status == "caught" for control in report.controls)


def equal_leaves(report: Report) -> int:
    """Leaves of the source that the artifact has, bit for bit."""
    return report.leaves.compared - len(report.leaves.missing) - len(report.leaves.differing)


def shapes(report: Report) -> dict[str, str]:
    """The shape of each parameter, by name, in JAX layout, as the coverage has it; without coverage, nothing."""
    said = report.coverage.covered.get("shape", ()) if report.coverage else ()
    return {name: shape for name, _, shape in (each.rpartition(" ") for each in said)}


def link_of(explanation: Explanation) -> Link | None:
    """The link of the chain that is explained: of the parameter, where the run has one of the same name too."""
    found = [link for link in explanation.chain if link.quantity == explanation.quantity]
    return found[-1 if explanation.case else 0] if found else None


def located(explanation: Explanation) -> str:
    """Quantity, parameter, step (from 1), run, dtype, layout and implementation."""
    of = f" of {explanation.case}" if explanation.case else ""
    side = explanation.dtype, f"{explanation.layout} layout", backend(explanation.kernels)
    return (
        f"{explanation.quantity}{of}, at step {explanation.step + 1} of the run “{explanation.run}” "
        f"({', '.join(part for part in side if part)})"
    )


def measured(explanation: Explanation) -> str:
    """How far off it is."""
    if explanation.misfit:
        return f"is off before any number: {explanation.misfit}"
    link = link_of(explanation)
    if link is None:
        return "{} instead of {}".format(*apart(explanation.ours, explanation.theirs))
    unit = "the update" if explanation.quantity == "parameter" else "its largest value"
    return f"off by {number(link.error)} of {unit}, where {number(link.allowed)} is allowed"


def broken_leaves(report: Report) -> str:
    """What is wrong with the leaves, in words; empty where nothing is."""
    leaves = report.leaves
    parts = [
        f"{len(names)} {word}"
        for names, word in ((leaves.missing, "missing"), (leaves.extra, "extra"), (leaves.differing, "differing"))
        if names
    ]
    return f"{', '.join(parts)} (source: {count(leaves.compared, 'leaf')})" if parts else ""


def failures(report: Report) -> Iterator[str]:
    """Every reason for which a report fails, the first cause before the rest, a sentence each."""
    if broken := broken_leaves(report):
        yield f"Leaves: {broken}."
    elif not report.leaves.passed:
        yield "No leaf was compared."
    if said := report.statements.contradictions:
        yield f"{count(len(said), 'statement')} of the source contradicted: {'; '.join(said)}."
    if wrong := [check for check in report.checks if not check.passed]:
        levels = list(dict.fromkeys(", ".join(filter(None, (LEVELS[c.level], backend(c.kernels)))) for c in wrong))
        yield (
            f"{len(wrong)} of {count(len(report.checks), 'comparison')} are beyond their bounds ({'; '.join(levels)})."
        )
        if report.explanation and report.explanation.failed:
            yield f"The first quantity that differs: {located(report.explanation)}, {measured(report.explanation)}."
        else:
            yield _worst_of(wrong)
            if report.of_level("step") and all(check.passed for check in report.checks if check.level == "step"):
                yield "Every quantity of every single step is within its bound."
    if missed := report.missed:
        yield f"{count(len(missed), 'planted fault')} missed: {', '.join(each.name for each in missed)}."
    if report.untried:
        yield "No planted fault could be tried."


def _worst_of(wrong: Sequence[Check]) -> str:
    """The failed comparison that is furthest beyond its bounds."""
    check = max(wrong, key=lambda each: max((error.excess for error in each.errors.values()), default=0.0))
    if not check.errors or not check.steps:
        return f"Nothing was compared: {place(check)}."
    error = check.errors[check.worst]
    if error.passed or (check.broken and check.level != "step"):
        return f"Off: {check.broken[0]} ({place(check)})." if check.broken else f"Failed: {place(check)}."
    return (
        f"Worst: {check.worst} ({place(check)}), off by {number(error.error)} {UNITS[check.level]}, "
        f"where {number(error.allowed)} is allowed."
    )


LOOK = {
    "network": "the network's weights and its forward pass",
    "trajectory": "what single steps do not use: the state that one step leaves to the next",
    "original": "the reference: it disagrees with the original package",
}
"""Where to look when a level fails and every single step agrees."""


def where_to_look(report: Report) -> str:
    """What to do about a report that failed, in a sentence."""
    if report.explanation and report.explanation.failed:
        return "The first difference says where to look; --explain and --html show more."
    if levels := list(dict.fromkeys(check.level for check in report.checks if not check.passed)):
        if "step" in levels:
            return "Some single steps were not compared: the original is not finite there; --html shows which."
        return f"Single steps agree: look at {joined([LOOK[level] for level in levels])}; --html shows more."
    if not report.leaves.passed:
        return "Convert the checkpoint again: leaves are missing, extra or different; --html lists them."
    return "Correct the behaviour with --set when you convert: the report lists what the source contradicts."


def evidence(report: Report) -> Iterator[str]:
    """What speaks for a report that passed, a clause each."""
    step, run = worst(report), worst(report, "trajectory")
    if step is not None:
        names = {name for check in report.of_level("step") for name in check.errors}
        settings = {(check.kind, check.name) for check in report.of_level("step")}
        yield (
            f"over {count(len(names), 'shape')} and {count(len(settings), 'setting')}, the worst float64 error of a "
            f"single step is {number(step.error.error)} of the update ({ulps(step.error.ulps)} ULPs)"
        )
    if run is not None:
        steps = max(check.steps for check in report.of_level("trajectory"))
        yield (
            f"over whole runs of up to {count(steps, 'step')} the float64 parameters stay within "
            f"{number(run.error.error)} of their movement"
        )
    for kernels in report.devices[1:]:
        if row := worst(report, "step", "float32", kernels):
            yield (
                f"the {backend(kernels)} stay within {number(row.error.error)} of the update in single float32 steps, "
                f"at most {percent(row.used)} of a bound"
            )
    if applicable(report):
        yield f"{caught(report)} of {applicable(report)} planted faults were caught"
    yield f"{equal_leaves(report)} of {report.leaves.compared} leaves are equal bit for bit"


def verdict(report: Report) -> str:
    """The judgement in one sentence or a few, that says what was compared and how far apart it was."""
    if report.status == "passed":
        return f"The torch port of {report.name} computes what its JAX original computes: {joined(evidence(report))}."
    if report.status == "failed":
        right = all(each.passed for each in (report.leaves, report.statements, *report.checks))
        said = "was not proven to be its JAX original" if right else "is not its JAX original"
        return f"The torch port of {report.name} {said}. " + " ".join(failures(report))
    leaves = f"{equal_leaves(report)} of {report.leaves.compared} leaves are equal bit for bit"
    return f"Whether the torch port of {report.name} computes the same was not tested: {report.reason}. Yet {leaves}."


def joined(parts: Iterator[str] | Sequence[str]) -> str:
    """Clauses as one sentence."""
    *before, last = parts
    return f"{'; '.join(before)}; and {last}" if before else last


def percent(share: float) -> str:
    """A share of a bound, in words."""
    if not math.isfinite(share) or share > 1:
        return f"✕ {number(share)}-fold"
    return "0 %" if share == 0 else f"{number(100 * share)} %"


def summary(reports: Sequence[Report]) -> str:
    """The judgement on several reports, in a sentence or a few."""
    by = {status: [each for each in reports if each.status == status] for status in WORDS}
    found = [f"{len(by['passed'])} of {len(reports)} torch ports compute what their JAX originals compute"]
    steps = [row for each in by["passed"] if (row := worst(each))]
    if steps:
        row = max(steps, key=lambda row: row.error.error)
        found[0] += f": no float64 step of theirs is off by more than {number(row.error.error)} of the update"
    if planted := sum(applicable(each) for each in reports):
        found.append(f"{sum(map(caught, reports))} of {planted} planted faults were caught")
    if by["failed"]:
        found.append(f"failed: {', '.join(each.name for each in by['failed'])}")
    if by["not_run"]:
        found.append(f"not tested: {', '.join(each.name for each in by['not_run'])}")
    return ". ".join(each[:1].upper() + each[1:] for each in found) + "."
