"""A report as an HTML page: its numbers, texts and charts, without external resources."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from parity_reports import HOSTILE, SHAPES, explanation, failing, hostile, not_run, passing

from pylo_zoo.report import charts, heat, html, phrases
from pylo_zoo.report.records import Check, Error, Link, Report


class Page(HTMLParser):
    """A parsed page: elements with their attributes, text, ids, and the cells of its heat maps by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.style = ""
        self.rows: list[list[str]] = []
        self._within = ""
        self._heat = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.words += " "
        self._within = tag
        self._heat = (dict(attrs).get("class") or "").startswith("heat") if tag == "table" else self._heat
        if self._heat and tag == "tr":
            self.rows.append([])
        if self._heat and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._heat = self._heat and tag != "table"

    def handle_data(self, data: str) -> None:
        if self._within == "style":
            self.style += data
            return
        self.words += data
        if self._heat and self._within in ("td", "th", "small", "span") and self.rows:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All text, with white space collapsed."""
        return " ".join(self.words.split())


# --- HTML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reports", [[passing()], [failing()], [passing(), failing(), not_run()], [hostile()] * 2])
def test_the_page_loads_nothing_and_runs_no_scripts(reports: Sequence[Report]) -> None:
    page = Page(html.render_html(reports))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for tag, attributes in page.elements:
        assert tag not in ("script", "img", "link", "iframe", "object", "embed", "base", "form", "image", "use"), tag
        assert not {"src", "srcset", "action", "data", "xlink:href"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert "href" not in attributes or (attributes["href"] or "").removeprefix("#") in ids
    assert page.style
    assert not re.search(r"url\(|@import|expression", page.style)


def test_untrusted_text_is_escaped_in_the_page() -> None:
    text = html.render_html([hostile()])
    text.encode("utf-8")
    page = Page(text)
    shown = " ".join(phrases.plain(HOSTILE).split())
    assert page.text.count(shown) > 20
    assert not set("\x00\x1b\u202e\ud800") & set(text)


def test_heat_maps_show_the_numbers_of_the_report() -> None:
    report = failing()
    page = Page(html.render_html([report]))
    result = [[text.strip("\n") for text in row] for row in page.rows if row[0].startswith(tuple(SHAPES))]
    expected = []
    for dtype in ("float64", "float32"):
        for name, shape in SHAPES.items():
            row = [name + shape]
            for setting in ("ordinary", "numbers changed: ff_mult"):
                checks = [c for c in report.of_level("step") if c.dtype == dtype and c.name == setting]
                each = [check.errors[name] for check in checks]
                largest = max(error.error for error in each)
                text = f"{math.log10(largest):.1f}".replace("-", "−") if math.isfinite(largest) else "∞"
                row.append(text if all(error.passed for error in each) else f"✕\u2009{text}")
            expected.append(row)
    assert result == expected


def test_the_verdict_has_the_key_numbers() -> None:
    page = Page(html.render_html([passing()]))
    sentence = "the largest float64 error of a single step is 2.0e-13 of the update (12 ULPs)"
    assert sentence in page.text
    assert "1 of 1 planted faults were caught" in page.text
    assert "3 of 3 leaves are equal bit for bit" in page.text
    assert "Planted faults: 1 of 1 caught" in page.text
    for fact in ("seed 7", "lr = 0.1", "torch 2.13.0", "a" * 64, "b" * 64, "2026-11-22T14:14:43+00:00"):
        assert fact in page.text


def test_a_failing_report_shows_the_first_difference() -> None:
    page = Page(html.render_html([failing()]))
    for phrase in (
        "First difference: row of square dense",
        "run “ordinary”, step 2, float64, torch layout; parameter square dense 6×6",
        "0.25 of its largest value (allowed: 4.0e-14)",
        "[4, 0] of shape (6, 1)",
        "torch has 0.5",
        "the original has 0.75",
        "✕ row differs for 1 square dense 6×6",
        "✓ agrees for 1 vector 7",
        "1 leaf missing a/b",
        "1 leaf differing mlp/w0",
        "ff_mult is 1.0 in config.gin",
        "1 planted fault missed",
    ):
        assert phrase in page.text, phrase
    assert "The port itself is wrong" in page.text  # so detecting a fault proves little
    right = Page(html.render_html([passing()])).text
    assert "First difference" not in right
    assert "The port itself is wrong" not in right


def test_several_reports_are_summarized() -> None:
    page = Page(html.render_html([passing(), failing(), not_run()]))
    assert "1 of 3 torch ports match their JAX originals" in page.text
    assert "Failed: broken. Not compared: unknown." in page.text
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == ["r1", "r2", "r3"]
    overview = next(row for row in page.rows if row[0].startswith("square dense"))
    assert [text.strip() for text in overview[1:]] == ["−12.7", "✕\u2009∞", ""]


def test_the_page_is_the_same_for_the_same_report() -> None:
    text = html.render_html([passing(), failing()])
    assert html.render_html([passing(), failing()]) == text
    later = "2027-01-01T00:00:00+00:00"
    moved = [replace(report, created=later) for report in (passing(), failing())]
    assert html.render_html(moved) == text.replace(passing().created, later)


def test_a_page_of_nine_reports_is_small() -> None:
    names = [f"a parameter of shape {n}" for n in range(25)]
    many = {name: Error(1e-14, 1e-12, 3.0) for name in names}
    checks = [
        Check("step", dtype, "torch", f"setting {n}", 3, many, "regime")
        for dtype in ("float64", "float32")
        for n in range(16)
    ]
    report = replace(passing(), checks=checks, quantities=[*passing().quantities] * 20)
    assert len(html.render_html([report] * 9).encode()) < 400_000


# --- charts ------------------------------------------------------------------------------------------------------


def test_a_logarithmic_scale_separates_zero_and_infinity() -> None:
    scale = charts.log_scale([3e-16, 0.0, math.inf, 2e-3], 100.0, 200.0)
    assert (scale.low, scale.high) == (-16, -2)
    assert scale(0.0) < scale(1e-16) == 100.0 < scale(1e-9) == 150.0 < scale(1e-2) == 200.0 < scale(math.inf)
    assert scale(math.nan) == scale(math.inf)
    assert [tick.text for tick in scale.ticks(4)] == ["−16", "−12", "−8", "−4"]


def test_the_chain_marks_quantities_beyond_their_bound() -> None:
    right, wrong = charts.explanation_chain(explanation(2e-16)), charts.explanation_chain(explanation(0.25))
    assert right is not None
    assert wrong is not None
    assert [step.off for step in right.steps] == [False] * 3
    assert [step.off for step in wrong.steps] == [step.first for step in wrong.steps] == [False, True, False]
    assert [mark.beyond.count("M") for mark in (*right.marks, *wrong.marks)] == [0, 1]
    assert [mark.zeros.count("M") for mark in wrong.marks] == [1]


def test_a_whole_run_is_drawn_step_by_step() -> None:
    report = passing()
    diverged = replace(report.of_level("trajectory")[0], by_step=[1e-15, math.inf, 1e-14, 1e-13])
    drawn = charts.runs(replace(report, checks=[diverged]))
    assert drawn is not None
    ((line,),) = [panel.series for panel in drawn.panels]
    assert len(re.findall(r"[ML]", line.path)) == 3
    assert line.beyond.count("M") == 1
    ((band,),) = [panel.bands for panel in drawn.panels]
    assert band.top == band.bottom  # both parameters have the same bound
    assert charts.runs(not_run()) is None


@pytest.mark.parametrize(
    ("error", "tone"),
    [
        (Error(0.0, 1e-12), "z"),
        (Error(1e-13, 1e-12), "d"),
        (Error(1e-12, 1e-12), "f"),
        (Error(2e-12, 1e-12), "x"),
        (Error(math.nan, 1e-12), "x"),
        (Error(math.inf, 0.0), "x"),
        (Error(0.2, 0.5), "l"),
        (Error(0.6, 0.5), "x"),
        (Error(math.inf, None), "n"),
    ],
)
def test_a_shade_shows_the_distance_to_the_bound(error: Error, tone: str) -> None:
    assert heat.tone(error) == tone


def test_a_parameters_quantity_is_explained_rather_than_the_runs() -> None:
    counter = Link("row", "a counter of the run", 0.0, 1e-14)
    result = explanation(0.25)
    both = replace(result, chain=[counter, *result.chain])
    link, drawn = phrases.explained_link(both), charts.explanation_chain(both)
    assert link is not None
    assert link.error == 0.25
    assert drawn is not None
    assert [step.name for step in drawn.steps] == ["row (run)", "momentum", "row", "step"]
    own = phrases.explained_link(replace(both, case=""))
    assert own == counter


# --- wording -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.734e-13, "1.7e-13"),
        (9.96e-3, "0.010"),
        (9.94e-3, "9.9e-3"),
        (0.0123, "0.012"),
        (0.5, "0.50"),
        (450.4, "450"),
        (3000.0, "3,000"),
        (1.6e12, "1.6e12"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
        (None, "–"),
    ],
)
def test_numbers_are_rounded_to_two_digits(value: float | None, text: str) -> None:
    assert phrases.number(value) == text


def test_two_close_values_are_distinguishable() -> None:
    assert phrases.format_pair(0.1, 0.2) == ("0.1", "0.2")
    ours, theirs = phrases.format_pair(1.0, 1.0 + 2e-16)
    assert ours != theirs
    assert phrases.format_pair(1.0, 1.0)[0] == phrases.format_pair(1.0, 1.0)[1]


def test_a_vague_error_does_not_represent_its_level() -> None:
    vague = {"zeros": Error(7.0, 450.0, 1.0), "none": Error(9.0, None), "telling": Error(1e-5, 1e-3, 2.0)}
    report = replace(passing(), checks=[Check("step", "float32", "torch", "zeros", 3, vague, "regime")])
    (row,) = phrases.rows(report)
    assert (row.where, row.numbers, row.loose) == ("telling", 3, 2)
    beyond = replace(report.checks[0], errors=vague | {"zeros": Error(500.0, 450.0)})
    assert phrases.rows(replace(report, checks=[beyond]))[0].where == "zeros"
