"""Reports as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pylo_zoo.parity import charts, heat, phrases
from pylo_zoo.parity.report import Check, Link, Report

TEMPLATE = "report.html.j2"
MARKS = {"passed": "✓", "failed": "✕", "not_run": "○"}
MOST = 8
"""So many failed comparisons are listed; the heat map has the others."""


TITLED = 3
"""Of more reports, the cells of the heat maps have no text to point at, which would double the page."""


@dataclass(frozen=True)
class Page:
    """One report as the template reads it: the records themselves, and what is worked out of them."""

    report: Report
    rows: Sequence[phrases.Row]
    heats: Sequence[heat.HeatMap]
    runs: charts.Runs | None
    chain: charts.Chain | None
    not_covered: Sequence[str]

    @property
    def mark(self) -> str:
        """The status as a sign, for readers who see no colours."""
        return MARKS[self.report.status]

    @property
    def word(self) -> str:
        """The status in a word."""
        return phrases.WORDS[self.report.status]

    @property
    def verdict(self) -> str:
        """The judgement in a sentence."""
        return phrases.verdict(self.report)

    @property
    def equal(self) -> int:
        """Leaves that are equal bit for bit."""
        return phrases.equal_leaves(self.report)

    @property
    def caught(self) -> int:
        """Planted faults that showed."""
        return phrases.caught(self.report)

    @property
    def applicable(self) -> int:
        """Faults that could be planted."""
        return phrases.applicable(self.report)

    def _row(self, level: str, dtype: str) -> phrases.Row | None:
        wanted = level, dtype, ""
        return next((row for row in self.rows if (row.level, row.dtype, row.kernels) == wanted), None)

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
    def wrong(self) -> list[Check]:
        """The comparisons that failed."""
        return [check for check in self.report.checks if not check.passed]

    @property
    def long(self) -> list[tuple[str, str]]:
        """Short and remaining name of the settings that list what they set."""
        columns = [column for each in self.heats for column in each.columns]
        names = dict.fromkeys(column.full for column in columns if column.full != column.text)
        return [(phrases.brief(name), name[len(phrases.brief(name)) :]) for name in names]

    @property
    def shapes(self) -> dict[str, str]:
        """Shapes of the parameters, by name, in JAX layout."""
        return phrases.shapes(self.report)

    @property
    def link(self) -> Link | None:
        """The link of the chain that the explanation is about."""
        return phrases.link_of(self.report.explanation) if self.report.explanation else None

    @property
    def values(self) -> tuple[str, str]:
        """The two values of the explanation: torch's and the original's."""
        explanation = self.report.explanation
        return phrases.apart(explanation.ours, explanation.theirs) if explanation else ("", "")

    @property
    def sides(self) -> Any:
        """For which parameters the explained quantity is off, and for which right."""
        explanation = self.report.explanation
        return charts.affected(self.report, explanation) if explanation else {}

    @property
    def explained(self) -> charts.Chain | None:
        """The chain of the explanation."""
        return charts.explained(self.report.explanation) if self.report.explanation else None

    @property
    def made(self) -> list[tuple[str, str]]:
        """How the report was made: name and value."""
        return [(name, value) for name, value in _made(self.report) if value]


def page(report: Report) -> Page:
    """``report``, laid out."""
    not_covered = list(dict.fromkeys(report.coverage.not_covered)) if report.coverage else []
    rows, heats = phrases.rows(report), heat.heat_maps(report)
    return Page(report, rows, heats, charts.runs(report), charts.chain(report), not_covered)


def _made(report: Report) -> Iterator[tuple[str, str]]:
    yield "created", report.created
    yield "versions", " · ".join(f"{name} {version}" for name, version in report.environment.items())
    if report.settings:
        yield "seed", str(report.settings.seed)
        yield "optimizer's arguments", _listed(report.settings.hyper)
        yield "behaviour", _listed(report.settings.behavior)
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
    made = Environment(
        loader=PackageLoader("pylo_zoo.parity", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    words = {"number": phrases.number, "ulps": phrases.ulps, "count": phrases.count, "brief": phrases.brief}
    more = {"located": phrases.located, "measured": phrases.measured, "levels": phrases.LEVELS}
    more |= {"backend": phrases.backend, "of_kernels": phrases.of_kernels}
    made.globals.update({**words, **more, "percent": phrases.percent, "most": MOST})
    return made


def render_html(reports: Sequence[Report]) -> str:
    """One page about ``reports``: the verdict first, then where, how far and why; the same for the same reports.

    Args:
        reports: one, or several in the order in which they are to stand.
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
