"""Renders reports as one self-contained HTML page without scripts, fonts or images from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pylo_zoo.report import charts, heat, phrases
from pylo_zoo.report.records import Check, Link, Report

TEMPLATE = "report.html.j2"
MARKS = {"passed": "✓", "failed": "✕", "not_run": "○"}
MAX_LISTED = 8
"""Number of failed comparisons listed; the heat maps show the others."""
TITLED = 3
"""Pages with more reports have no tooltips in their heat maps, because these would double the file size."""


@dataclass(frozen=True)
class Page:
    """One report and the values derived from it, as the template reads them."""

    report: Report
    rows: Sequence[phrases.Row]
    heats: Sequence[heat.HeatMap]
    runs: charts.Runs | None
    chain: charts.Chain | None
    not_covered: Sequence[str]

    @property
    def mark(self) -> str:
        """The status as a symbol, for readers who cannot distinguish the colors."""
        return MARKS[self.report.status]

    @property
    def word(self) -> str:
        """The status as a word."""
        return phrases.WORDS[self.report.status]

    @property
    def verdict(self) -> str:
        """The verdict as text."""
        return phrases.verdict(self.report)

    @property
    def equal(self) -> int:
        """Number of leaves that are equal bit for bit."""
        return phrases.equal_leaves(self.report)

    @property
    def caught(self) -> int:
        """Number of planted faults that were caught."""
        return phrases.caught(self.report)

    @property
    def applicable(self) -> int:
        """Number of planted faults that apply."""
        return phrases.applicable(self.report)

    def _row(self, level: str, dtype: str) -> phrases.Row | None:
        key = level, dtype, ""
        return next((row for row in self.rows if (row.level, row.dtype, row.kernels) == key), None)

    @property
    def step64(self) -> phrases.Row | None:
        """Single steps in float64."""
        return self._row("step", "float64")

    @property
    def step32(self) -> phrases.Row | None:
        """Single steps in float32."""
        return self._row("step", "float32")

    @property
    def run64(self) -> phrases.Row | None:
        """Whole runs in float64."""
        return self._row("trajectory", "float64")

    @property
    def failed_checks(self) -> list[Check]:
        """The comparisons that failed."""
        return [check for check in self.report.checks if not check.passed]

    @property
    def long_names(self) -> list[tuple[str, str]]:
        """The short name and the rest, for settings whose name lists the fields that they change."""
        columns = [column for each in self.heats for column in each.columns]
        names = dict.fromkeys(column.full for column in columns if column.full != column.text)
        return [(phrases.short_name(name), name[len(phrases.short_name(name)) :]) for name in names]

    @property
    def shapes(self) -> dict[str, str]:
        """Shapes of the parameters in JAX layout, by name."""
        return phrases.shapes(self.report)

    @property
    def link(self) -> Link | None:
        """The link of the explained quantity."""
        return phrases.explained_link(self.report.explanation) if self.report.explanation else None

    @property
    def values(self) -> tuple[str, str]:
        """The explained quantity's value in torch and in the original."""
        explanation = self.report.explanation
        return phrases.format_pair(explanation.ours, explanation.theirs) if explanation else ("", "")

    @property
    def sides(self) -> Any:
        """The parameters for which the explained quantity is off, and those for which it is right."""
        explanation = self.report.explanation
        return charts.affected(self.report, explanation) if explanation else {}

    @property
    def explained(self) -> charts.Chain | None:
        """The chain of the explanation."""
        return charts.explanation_chain(self.report.explanation) if self.report.explanation else None

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values of the settings, versions and hashes."""
        return [(name, value) for name, value in _facts(self.report) if value]


def page(report: Report) -> Page:
    """The :class:`Page` of ``report``."""
    not_covered = list(dict.fromkeys(report.coverage.not_covered)) if report.coverage else []
    rows, heats = phrases.rows(report), heat.heat_maps(report)
    return Page(report, rows, heats, charts.runs(report), charts.chain(report), not_covered)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "created", report.created
    yield "versions", " · ".join(f"{name} {version}" for name, version in report.environment.items())
    if report.settings:
        yield "seed", str(report.settings.seed)
        yield "optimizer arguments", _listed(report.settings.hyper)
        yield "behavior", _listed(report.settings.behavior)
    yield "source", " · ".join(f"{key} {value}" for key, value in report.source.items() if key != "sha256")
    yield "source sha256", str(report.source.get("sha256", ""))
    yield "fingerprint", report.fingerprint
    yield "vectors sha256", report.vectors_sha256 or ""
    yield "not compared because", report.reason or ""


def _listed(values: Any) -> str:
    return " · ".join(f"{key} = {value}" for key, value in values.items())


def _clean(value: Any) -> Any:
    return phrases.plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pylo_zoo.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    functions = ("number", "ulps", "count", "short_name", "located", "measured", "backend", "kernel_clauses", "percent")
    environment.globals.update({name: getattr(phrases, name) for name in functions})
    environment.globals.update({"levels": phrases.LEVELS, "most": MAX_LISTED})
    return environment


def render_html(reports: Sequence[Report]) -> str:
    """One page about ``reports``; equal reports produce an equal page.

    Args:
        reports: one or more reports, in the order of their sections.
    """
    title = f"Parity of {reports[0].name}" if len(reports) == 1 else f"Parity of {len(reports)} learned optimizers"
    content = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            pages=[page(report) for report in reports],
            overview=heat.overview(reports),
            summary=phrases.summary(reports),
            status=next(
                (status for status in ("failed", "not_run") if any(r.status == status for r in reports)), "passed"
            ),
            titled=len(reports) <= TITLED,
        )
    )
    return content + "\n"
