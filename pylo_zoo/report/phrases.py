"""Sentences and rounded numbers of a report, shared by the terminal, HTML, Markdown and JUnit renderers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pylo_zoo.errors import count
from pylo_zoo.report.records import Check, Error, Explanation, Link, Report

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
"""The unit of each level's errors."""
LOOSE = 0.1
"""A bound above this, in the unit of its level, is too loose to show much."""


def plain(text: str) -> str:
    """``text`` without control and format characters, which are invalid in documents or reorder text on screen."""
    return "".join(
        each if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Cn") else "\ufffd"
        for each in text
    )


def clipped(text: str, most: int) -> str:
    """``text``, cut to at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float | None, digits: int = 2) -> str:
    """``value`` to ``digits`` significant digits; a dash for None."""
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
    """Format an error in units in the last place."""
    if value is None or not math.isfinite(value):
        return NONE
    return number(value) if value < 10 or value >= 1e6 else f"{value:,.0f}"


def format_pair(ours: float, theirs: float) -> tuple[str, str]:
    """Two values with enough digits to show that they differ."""

    def formatted(digits: int) -> tuple[str, str]:
        a, b = (f"{each:.{digits}g}" if math.isfinite(each) else number(each) for each in (ours, theirs))
        return a, b

    return next((pair for digits in (6, 9, 13) if len(set(pair := formatted(digits))) == 2), formatted(17))


def short_name(name: str) -> str:
    """The name of a run without the list of fields that it changes."""
    return name.partition(":")[0]


def backend(kernels: str) -> str:
    """The backend that ran the torch side; empty for the eager implementation."""
    return f"fused kernels on {kernels}" if kernels else ""


def describe_check(check: Check) -> str:
    """Level, dtype, layout, backend and name of a comparison."""
    layout, level = f"{check.layout} layout" if check.layout else "", LEVELS.get(check.level, check.level)
    return ", ".join(part for part in (level, check.dtype, layout, backend(check.kernels), check.name) if part)


def compared(check: Check) -> dict[str, Error]:
    """The errors of ``check`` that have a bound."""
    return {name: error for name, error in check.errors.items() if error.allowed is not None}


def sort_key(error: Error) -> float:
    """The error, with NaN as infinity."""
    return math.inf if math.isnan(error.error) else error.error


def loose(error: Error) -> bool:
    """Whether the original's rounding error is so large that the bound shows little."""
    return error.allowed is not None and error.allowed > LOOSE


@dataclass(frozen=True)
class Row:
    """All comparisons of one level, dtype and backend.

    Attributes:
        level, dtype: of the comparisons.
        kernels: device whose fused kernels ran the torch side; "" for the eager implementation.
        checks, failed: number of comparisons, and of those that failed.
        error: the largest error among those that exceed their bound or whose bound is not :func:`loose`, in the unit
            of its level (:data:`UNITS`); if none qualify, the largest of all.
        where: its parameter or output.
        check: its comparison.
        used: the largest ratio of an error to its bound.
        numbers, loose: number of errors, and of those with a loose bound or none.
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
    loose: int
    kernels: str = ""

    @property
    def label(self) -> str:
        """Level and backend."""
        return ", ".join(part for part in (LEVELS[self.level], backend(self.kernels)) if part)


def rows(report: Report) -> list[Row]:
    """One row per level, backend and dtype that has a bounded error."""
    table = []
    for level in LEVELS:
        for kernels in report.devices:
            for dtype in DTYPES:
                checks = [check for check in report.of_level(level, kernels) if check.dtype == dtype]
                if any(compared(check) for check in checks):
                    table.append(_row(level, dtype, checks, kernels))
    return table


def _row(level: str, dtype: str, checks: Sequence[Check], kernels: str) -> Row:
    errors = [(check, name, error) for check in checks for name, error in compared(check).items()]
    significant = [item for item in errors if not loose(item[2]) or not item[2].passed]
    check, name, error = max(significant or errors, key=lambda item: sort_key(item[2]))
    used = max(each.excess for _, _, each in errors)
    failed = sum(not each.passed for each in checks)
    numbers = sum(len(each.errors) for each in checks)
    tight = sum(not loose(each) for _, _, each in errors)
    return Row(level, dtype, len(checks), failed, error, name, check, used, numbers, numbers - tight, kernels)


def worst(report: Report, level: str = "step", dtype: str = "float64", kernels: str = "") -> Row | None:
    """The row of :func:`rows` with this level, dtype and backend; None if there is no such row."""
    key = level, dtype, kernels
    return next((row for row in rows(report) if (row.level, row.dtype, row.kernels) == key), None)


def kernel_clauses(report: Report) -> list[str]:
    """One clause per device on the comparison of its fused kernels, and one on Newton–Schulz's precision.

    Empty for a report of version 2.
    """
    clauses = []
    for each in report.kernels:
        if not each.compared:
            clauses.append(f"fused kernels on {each.device} were not compared: {each.reason}")
            continue
        eager = f" (the eager implementation updates {', '.join(each.uncovered)})" if each.uncovered else ""
        clauses.append(f"fused kernels on {each.device} were compared in float32{eager}")
    if ran := newton_schulz(report):
        clauses.append(ran)
    return clauses


def newton_schulz(report: Report) -> str:
    """Which precision Newton–Schulz ran in; empty if the report does not say."""
    by_precision: dict[str, list[str]] = {}
    for name, precision in (report.newton_schulz or {}).items():
        by_precision.setdefault(precision, []).append("eager" if name == "eager" else f"{name} kernels")
    ran = [f"{precision} ({', '.join(names)})" for precision, names in by_precision.items()]
    return f"Newton–Schulz ran in {' and '.join(ran)} in the float32 checks" if ran else ""


def applicable(report: Report) -> int:
    """Number of planted faults that apply to the checkpoint."""
    return sum(control.status != "not applicable" for control in report.controls)


def caught(report: Report) -> int:
    """Number of planted faults that a comparison caught."""
    return sum(control.status == "caught" for control in report.controls)


def equal_leaves(report: Report) -> int:
    """Number of source leaves that equal the artifact's bit for bit."""
    return report.leaves.compared - len(report.leaves.missing) - len(report.leaves.differing)


def shapes(report: Report) -> dict[str, str]:
    """Shape of each parameter in JAX layout, by name, from the report's coverage."""
    entries = report.coverage.covered.get("shape", ()) if report.coverage else ()
    return {name: shape for name, _, shape in (each.rpartition(" ") for each in entries)}


def explained_link(explanation: Explanation) -> Link | None:
    """The link of the explained quantity. If the run has a quantity of the same name, the parameter's comes last."""
    links = [link for link in explanation.chain if link.quantity == explanation.quantity]
    return links[-1 if explanation.case else 0] if links else None


def located(explanation: Explanation) -> str:
    """Quantity, parameter, step (counted from 1), run, dtype, layout and backend."""
    of = f" of {explanation.case}" if explanation.case else ""
    side = explanation.dtype, f"{explanation.layout} layout", backend(explanation.kernels)
    return (
        f"{explanation.quantity}{of}, at step {explanation.step + 1} of the run “{explanation.run}” "
        f"({', '.join(part for part in side if part)})"
    )


def measured(explanation: Explanation) -> str:
    """The error of the explained quantity, or the reason why it has none."""
    if explanation.misfit:
        return f"because {explanation.misfit}"
    link = explained_link(explanation)
    if link is None:
        return "{} instead of {}".format(*format_pair(explanation.ours, explanation.theirs))
    unit = "the update" if explanation.quantity == "parameter" else "its largest value"
    return f"off by {number(link.error)} of {unit} (allowed: {number(link.allowed)})"


def broken_leaves(report: Report) -> str:
    """Counts of missing, extra and differing leaves; empty if all leaves agree."""
    leaves = report.leaves
    parts = [
        f"{len(names)} {word}"
        for names, word in ((leaves.missing, "missing"), (leaves.extra, "extra"), (leaves.differing, "differing"))
        if names
    ]
    return f"{', '.join(parts)} (source: {count(leaves.compared, 'leaf')})" if parts else ""


def failures(report: Report) -> Iterator[str]:
    """The reasons why a report failed, one sentence each, causes first."""
    if broken := broken_leaves(report):
        yield f"Leaves: {broken}."
    elif not report.leaves.passed:
        yield "No leaf was compared."
    if contradictions := report.statements.contradictions:
        yield f"{count(len(contradictions), 'contradiction')}: {'; '.join(contradictions)}."
    if wrong := [check for check in report.checks if not check.passed]:
        levels = list(dict.fromkeys(", ".join(filter(None, (LEVELS[c.level], backend(c.kernels)))) for c in wrong))
        yield f"{len(wrong)} of {count(len(report.checks), 'comparison')} failed ({'; '.join(levels)})."
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
    """A sentence about the failed comparison with the largest error relative to its bound."""
    check = max(wrong, key=lambda each: max((error.excess for error in each.errors.values()), default=0.0))
    if not check.errors or not check.steps:
        return f"Nothing was compared: {describe_check(check)}."
    error = check.errors[check.worst]
    if error.passed or (check.broken and check.level != "step"):
        first = check.broken[0] if check.broken else check.worst
        return f"Failed: {first} ({describe_check(check)})."
    return (
        f"Worst: {check.worst} ({describe_check(check)}), off by {number(error.error)} {UNITS[check.level]} "
        f"(allowed: {number(error.allowed)})."
    )


SUSPECTS = {
    "network": "the network's weights and forward pass",
    "trajectory": "the state that one step passes to the next",
    "original": "the reference, which disagrees with the original package",
}
"""What to check if a level fails although every single step agrees."""


def where_to_look(report: Report) -> str:
    """A hint on what to do about a failed report."""
    if report.explanation and report.explanation.failed:
        return "Start at the first difference; --explain and --html show more."
    if not report.leaves.passed:
        if not report.leaves.compared:
            return "Convert the checkpoint again."
        return "Convert the checkpoint again: leaves are missing, extra or different; --html lists them."
    if not report.statements.passed:
        return "Convert the checkpoint again, and correct the contradicted fields with --set."
    levels = list(dict.fromkeys(check.level for check in report.checks if not check.passed))
    if "step" in levels:
        return "Some single steps were not compared, because the original is not finite; --html lists them."
    agree = "All single steps agree, so check" if report.of_level("step") else "Check"
    return f"{agree} {joined([SUSPECTS[level] for level in levels])}; --html shows more."


def evidence(report: Report) -> Iterator[str]:
    """The evidence of a report that passed, one clause each."""
    step, run = worst(report), worst(report, "trajectory")
    if step is not None:
        names = {name for check in report.of_level("step") for name in check.errors}
        settings = {(check.kind, check.name) for check in report.of_level("step")}
        yield (
            f"over {count(len(names), 'shape')} and {count(len(settings), 'setting')}, the largest float64 error of a "
            f"single step is {number(step.error.error)} of the update ({ulps(step.error.ulps)} ULPs)"
        )
    if run is not None:
        steps = max(check.steps for check in report.of_level("trajectory"))
        yield (
            f"over whole runs of up to {count(steps, 'step')}, the largest float64 error is "
            f"{number(run.error.error)} of a parameter's movement"
        )
    for kernels in report.devices[1:]:
        if row := worst(report, "step", "float32", kernels):
            yield (
                f"with {backend(kernels)}, the largest float32 error of a single step is {number(row.error.error)} of "
                f"the update, and errors reach at most {percent(row.used)} of their bound"
            )
    if applicable(report):
        yield f"{caught(report)} of {applicable(report)} planted faults were caught"
    yield f"{equal_leaves(report)} of {count(report.leaves.compared, 'leaf')} are equal bit for bit"


def verdict(report: Report) -> str:
    """The verdict in one or more sentences: what was compared, and how large the errors are."""
    if report.status == "passed":
        return f"The torch port of {report.name} matches its JAX original: {joined(evidence(report))}."
    if report.status == "failed":
        outcome = "was not proven to match" if report.comparisons_passed else "does not match"
        return f"The torch port of {report.name} {outcome} its JAX original. " + " ".join(failures(report))
    leaves = f"{equal_leaves(report)} of {count(report.leaves.compared, 'leaf')} are equal bit for bit"
    return f"The torch port of {report.name} was not compared with its JAX original: {report.reason}. But {leaves}."


def joined(parts: Iterator[str] | Sequence[str]) -> str:
    """Clauses joined into one sentence."""
    *before, last = parts
    return f"{'; '.join(before)}; and {last}" if before else last


def percent(share: float) -> str:
    """A share of a bound, as text."""
    if not math.isfinite(share) or share > 1:
        return f"✕ {number(share)}×"
    return "0 %" if share == 0 else f"{number(100 * share)} %"


def summary(reports: Sequence[Report]) -> str:
    """The verdict on several reports, in one or more sentences."""
    by_status = {status: [each for each in reports if each.status == status] for status in WORDS}
    sentences = [f"{len(by_status['passed'])} of {len(reports)} torch ports match their JAX originals"]
    steps = [row for each in by_status["passed"] if (row := worst(each))]
    if steps:
        row = max(steps, key=lambda row: row.error.error)
        sentences[0] += f": the largest error of a float64 step is {number(row.error.error)} of the update"
    if planted := sum(applicable(each) for each in reports):
        sentences.append(f"{sum(map(caught, reports))} of {planted} planted faults were caught")
    if by_status["failed"]:
        sentences.append(f"failed: {', '.join(each.name for each in by_status['failed'])}")
    if by_status["not_run"]:
        sentences.append(f"not compared: {', '.join(each.name for each in by_status['not_run'])}")
    return ". ".join(each[:1].upper() + each[1:] for each in sentences) + "."
