"""Renders reports as Markdown, for model cards and CI job summaries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pylo_zoo.errors import count
from pylo_zoo.report import phrases
from pylo_zoo.report.phrases import WORDS, number, percent, plain, ulps
from pylo_zoo.report.records import Report

MARKS = {"passed": "✅", "failed": "❌", "not_run": "➖"}
LONG = 120
"""Number of characters shown per entry of what is not covered; the report has the full text."""
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>|#~$!&])")
_LINKS = {"://": "&#58;//", "www.": "www&#46;", "@": "&#64;"}
"""Text that renderers turn into links."""


def escaped(text: str) -> str:
    """``text`` on one line, with every active character escaped, so Markdown shows it literally even in a table."""
    line = " ".join(plain(text).split())
    line = _ACTIVE.sub(lambda match: {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(match[1], "\\" + match[1]), line)
    for active, harmless in _LINKS.items():
        line = re.sub(re.escape(active), harmless, line, flags=re.IGNORECASE)
    return line


def _table(head: Sequence[str], right: Sequence[int], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table with the columns ``right`` right-aligned; cells are escaped here."""
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---:' if place in right else '---' for place in range(len(head)))} |"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"


def _error(row: phrases.Row | None) -> str:
    return "–" if row is None else f"{'✕ ' if row.failed else ''}{number(row.error.error)}"


def _levels(report: Report) -> Iterator[str]:
    head = "level", "dtype", "comparisons", "largest error", "allowed", "ULPs", "where", "bound used, at most"
    rows = [
        (
            row.label,
            row.dtype,
            f"{row.checks - row.failed} of {row.checks}",
            number(row.error.error),
            number(row.error.allowed),
            ulps(row.error.ulps),
            f"{row.where} ({phrases.short_name(row.check.name)})",
            percent(row.used),
        )
        for row in phrases.rows(report)
    ]
    yield from _table(head, (2, 3, 4, 5, 7), rows)


def _coverage(report: Report) -> str:
    assert report.coverage is not None
    covered = (
        count(len(values), {"options": "option", "flags": "changed behavior"}.get(dimension, dimension))
        for dimension, values in report.coverage.covered.items()
        if values
    )
    not_covered = "; ".join(_shortened(report.coverage.not_covered)) or "nothing recorded"
    return f"Covered: {', '.join(covered)}. Not covered: {not_covered}."


def _shortened(entries: Sequence[str]) -> Iterator[str]:
    """``entries``, with those that have the same reason counted instead of listed, and long ones cut."""
    by_reason: dict[str, list[str]] = {}
    for entry in dict.fromkeys(entries):
        by_reason.setdefault(entry.rpartition(": ")[2], []).append(entry)
    for reason, group in by_reason.items():
        yield f"{len(group)} cases: {reason}" if len(group) > 1 else phrases.clipped(group[0], LONG)


def render_markdown(report: Report) -> str:
    """A section about ``report`` without a heading: verdict, table of levels, planted faults, coverage, versions."""
    parts = [f"{MARKS[report.status]} **{WORDS[report.status]}.** {escaped(phrases.verdict(report))}"]
    if report.checks:
        parts.append("\n".join(_levels(report)))
        parts.append(
            "Errors are relative to the largest output of the network, to the update of a single step, or to a "
            "parameter's movement in a whole run. The largest error leaves out bounds over a tenth of that unit. ULPs "
            "are units in the last place of the parameter."
        )
    if clauses := phrases.kernel_clauses(report):
        parts.append(escaped(". ".join(each[:1].upper() + each[1:] for each in clauses) + "."))
    if report.controls:
        missed = f"; missed: {', '.join(each.name for each in report.missed)}" if report.missed else ""
        names = ", ".join(each.name for each in report.controls if each.status == "caught")
        faults = f"{phrases.caught(report)} of {phrases.applicable(report)} caught ({names}){missed}."
        parts.append(f"Planted faults: {escaped(faults)}")
    if report.coverage:
        parts.append(escaped(_coverage(report)))
    facts = [f"{name} {version}" for name, version in report.environment.items()]
    facts += [f"seed {report.settings.seed}"] if report.settings else []
    facts += [f"source sha256 {report.source.get('sha256', 'unknown')}", f"fingerprint {report.fingerprint}"]
    facts += [report.created] if report.created else []
    parts.append(f"<sub>{escaped(', '.join(facts))}</sub>")
    return "\n\n".join(parts) + "\n"


def render_many(reports: Sequence[Report]) -> str:
    """A summary of all ``reports``, and a table with one row per report."""
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
