"""Reports as Markdown, for a model card or a summary of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pylo_zoo.parity import phrases
from pylo_zoo.parity.phrases import WORDS, number, percent, plain, ulps
from pylo_zoo.parity.report import Report

MARKS = {"passed": "✅", "failed": "❌", "not_run": "➖"}
LONG = 120
"""Characters of what is not covered; the report has the rest."""
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>|#~$!&])")
_LINKS = {"://": "&#58;//", "www.": "www&#46;", "@": "&#64;"}
"""What renderers make links of without being asked."""


def escaped(text: str) -> str:
    """``text`` as Markdown shows it literally, in a table too: on one line, without anything active."""
    found = " ".join(plain(text).split())
    found = _ACTIVE.sub(lambda match: {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(match[1], "\\" + match[1]), found)
    for active, harmless in _LINKS.items():
        found = re.sub(re.escape(active), harmless, found, flags=re.IGNORECASE)
    return found


def _table(head: Sequence[str], right: Sequence[int], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table, the columns ``right`` aligned right; cells are escaped here."""
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---:' if place in right else '---' for place in range(len(head)))} |"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"


def _error(row: phrases.Row | None) -> str:
    return "–" if row is None else f"{'✕ ' if row.failed else ''}{number(row.error.error)}"


def _levels(report: Report) -> Iterator[str]:
    head = "level", "dtype", "comparisons", "largest error", "allowed there", "ULPs", "where", "bound used, at most"
    rows = [
        (
            row.label,
            row.dtype,
            f"{row.checks - row.failed} of {row.checks}",
            number(row.error.error),
            number(row.error.allowed),
            ulps(row.error.ulps),
            f"{row.where} ({phrases.brief(row.check.name)})",
            percent(row.used),
        )
        for row in phrases.rows(report)
    ]
    yield from _table(head, (2, 3, 4, 5, 7), rows)


def _coverage(report: Report) -> str:
    assert report.coverage is not None
    tried = (
        phrases.count(len(each), {"dtype": "dtype", "options": "option", "flags": "changed behaviour"}.get(what, what))
        for what, each in report.coverage.covered.items()
        if each
    )
    return f"Tried: {', '.join(tried)}. Not: {'; '.join(_not_covered(report.coverage.not_covered)) or 'nothing named'}."


def _not_covered(said: Sequence[str]) -> Iterator[str]:
    """``said``, where several differ in the case alone, their number and the reason, and nothing at length."""
    cases: dict[str, list[str]] = {}
    for each in dict.fromkeys(said):
        cases.setdefault(each.rpartition(": ")[2], []).append(each)
    for reason, each in cases.items():
        yield f"{len(each)} cases: {reason}" if len(each) > 1 else phrases.clipped(each[0], LONG)


def render_markdown(report: Report) -> str:
    """``report`` as a section without a heading: the verdict, a table of levels, the faults, coverage and versions."""
    parts = [f"{MARKS[report.status]} **{WORDS[report.status]}.** {escaped(phrases.verdict(report))}"]
    if report.checks:
        parts.append("\n".join(_levels(report)))
        parts.append(
            "Errors of a network are relative to its largest output, of a single step to the update, of a whole run to "
            "the movement of the parameter; the largest is of those with a bound under a tenth. ULPs are units in the "
            "last place of the parameter."
        )
    if said := phrases.of_kernels(report):
        parts.append(escaped(". ".join(each[:1].upper() + each[1:] for each in said) + "."))
    if report.controls:
        missed = f"; missed: {', '.join(each.name for each in report.missed)}" if report.missed else ""
        names = ", ".join(each.name for each in report.controls if each.status == "caught")
        said = f"{phrases.caught(report)} of {phrases.applicable(report)} caught ({names}){missed}."
        parts.append(f"Planted faults: {escaped(said)}")
    if report.coverage:
        parts.append(escaped(_coverage(report)))
    made = [f"{name} {version}" for name, version in report.environment.items()]
    made += [f"seed {report.settings.seed}"] if report.settings else []
    made += [f"source sha256 {report.source.get('sha256', 'unknown')}", f"fingerprint {report.fingerprint}"]
    made += [report.created] if report.created else []
    parts.append(f"<sub>{escaped(', '.join(made))}</sub>")
    return "\n\n".join(parts) + "\n"


def render_many(reports: Sequence[Report]) -> str:
    """A sentence about all ``reports``, and a line of a table for each."""
    head = (
        "optimizer",
        "verdict",
        "leaves equal",
        "single step, float64",
        "ULPs",
        "single step, float32",
        "whole run, float64",
        "faults caught",
    )
    rows = []
    for report in reports:
        step = phrases.worst(report)
        rows.append(
            (
                report.name if report.name == report.family else f"{report.name} ({report.family})",
                f"{MARKS[report.status]} {WORDS[report.status]}",
                f"{phrases.equal_leaves(report)} of {report.leaves.compared}",
                _error(step),
                ulps(step.error.ulps) if step else "–",
                _error(phrases.worst(report, "step", "float32")),
                _error(phrases.worst(report, "trajectory")),
                f"{phrases.caught(report)} of {phrases.applicable(report)}" if report.controls else "–",
            )
        )
    return f"{escaped(phrases.summary(reports))}\n\n" + "\n".join(_table(head, range(2, 8), rows)) + "\n"
