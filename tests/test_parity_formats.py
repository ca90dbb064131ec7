"""A report as Markdown, as JUnit XML, and as JSON that follows its schema."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from parity_reports import HOSTILE, failing, hostile, not_run, passing

from pylo_zoo.report import html, junit, markdown, phrases
from pylo_zoo.report.records import Report

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "parity.schema.json").read_text(encoding="utf-8"))


def table_rows(text: str) -> list[list[Token]]:
    """The cells of the tables in ``text`` by row, as a Markdown parser reads them."""
    rows: list[list[Token]] = []
    for token, content in zip(tokens(text), tokens(text)[1:], strict=False):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            rows[-1].append(content)
    return rows


def tokens(text: str) -> list[Token]:
    """``text`` as read by a Markdown parser that allows HTML."""
    return MarkdownIt("commonmark").enable("table").parse(text)


# --- Markdown ----------------------------------------------------------------------------------------------------


def test_the_card_has_verdict_levels_faults_and_versions() -> None:
    text = markdown.render_markdown(passing())
    assert text.startswith("✅ **Passed.** The torch port of velo matches its JAX original")
    assert "| single step | float64 | 4 of 4 | 2.0e-13 | 5.0e-13 | 12 | square dense (ordinary) | 40 % |" in text
    assert "| whole run | float32 | 1 of 1 | 8.0e-13 | 1.0e-12 | 12 | square dense (long) | 80 % |" in text
    assert "Planted faults: 1 of 1 caught (one bit)." in text
    assert "torch 2.13.0, jax 0.10.2, seed 7" in text
    broken = markdown.render_markdown(failing())
    assert broken.startswith("❌ **Failed.**")
    assert "The first quantity that differs: row of square dense, at step 2" in broken
    assert markdown.render_markdown(not_run()).startswith("➖ **Not proven.**")


@pytest.mark.parametrize("make", [markdown.render_markdown, lambda report: markdown.render_many([report, passing()])])
def test_untrusted_text_is_escaped_in_markdown(make: Callable[[Report], str]) -> None:
    text = make(hostile())
    for token in [part for each in tokens(text) for part in (each, *(each.children or []))]:
        assert token.type not in ("html_block", "image", "link_open", "em_open", "code_inline", "fence"), token
        assert token.type != "html_inline" or token.content in ("<sub>", "</sub>")
    assert "http://" not in text
    assert "@" not in text
    widths = {len(row) for row in table_rows(text)}
    assert widths == {8}
    shown = "".join(each.content for token in tokens(text) for each in token.children or [])
    assert " ".join(phrases.plain(HOSTILE).split()) in shown


def test_the_summary_has_one_line_per_report() -> None:
    rows = table_rows(markdown.render_many([passing(), failing(), not_run()]))
    assert [row[0].content for row in rows[1:]] == ["velo", "broken (velo)", "unknown (velo)"]
    assert [row[3].content for row in rows[1:]] == ["2.0e-13", "✕ ∞", "–"]


# --- JUnit -------------------------------------------------------------------------------------------------------


def test_junit_has_a_case_per_check_and_correct_counts() -> None:
    text = junit.render_junit([passing(), failing(), not_run()], {"celo": "no file"}, {"elo": "damaged"})
    root = ET.fromstring(text)
    suites = {suite.get("name"): suite for suite in root.findall("testsuite")}
    assert list(suites) == ["velo", "broken", "unknown", "unavailable", "could not be checked"]
    counts = {
        name: tuple(int(suite.get(key, "")) for key in ("tests", "failures", "errors", "skipped"))
        for name, suite in suites.items()
    }
    assert counts == {
        "velo": (2 + 13 + 2 + 2, 0, 0, 2),
        "broken": (2 + 13 + 2 + 3, 1 + 1 + 2 + 1, 0, 2),
        "unknown": (3, 0, 1, 0),
        "unavailable": (1, 0, 0, 1),
        "could not be checked": (1, 0, 1, 0),
    }
    for key, place in (("tests", 0), ("failures", 1), ("errors", 2), ("skipped", 3)):
        assert root.get(key) == str(sum(count[place] for count in counts.values()))
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(set(names)) == len(names)
    assert all(case.get("time") == "0" for case in root.iter("testcase"))


def test_a_failure_in_junit_has_a_place_and_an_error() -> None:
    root = ET.fromstring(junit.render_junit([failing()]))
    (failure,) = root.findall(".//testcase[@name='single step, float64, torch layout, ordinary']/failure")
    assert failure.get("message") == "square dense: off by 1.2 of the update (allowed: 1.0e-12)"
    assert "beyond its bound: row of square dense" in (failure.text or "")
    assert "First difference: row of square dense" in (failure.text or "")
    (leaves,) = root.findall(".//testcase[@name='3 leaves equal bit for bit']/failure")
    assert (leaves.text or "").split("\n") == ["missing: a/b", "differing: mlp/w0"]


def test_untrusted_text_is_escaped_in_junit() -> None:
    text = junit.render_junit([hostile()], {HOSTILE: HOSTILE})
    text.encode("utf-8")
    root = ET.fromstring(text)
    expected = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert [suite.get("name") for suite in root.findall("testsuite")] == [expected, "unavailable"]
    assert {element.tag for element in root.iter()} == {
        *("testsuites", "testsuite", "properties", "property", "testcase", "failure", "skipped")
    }


# --- JSON --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def with_precision() -> Report:
    return replace(passing(), newton_schulz={"eager": "float32", "cuda": "tf32"})


@pytest.mark.parametrize("make", [passing, failing, not_run, with_precision])
def test_reports_follow_the_schema(make: Callable[[], Report], validator: Any) -> None:
    validator.validate(json.loads(json.dumps(make().to_dict(), allow_nan=False)))


MUTILATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda report: report.update(schema_version=1),
    "an unknown status": lambda report: report.update(status="fine"),
    "an additional field": lambda report: report.update(comment="all good"),
    "a missing field": lambda report: report.pop("fingerprint"),
    "passed with a missed fault": lambda report: report["controls"][0].update(status="missed"),
    "passed with a failed check": lambda report: report["checks"][0].update(passed=False),
    "passed without checks": lambda report: report.update(checks=[]),
    "passed with other leaves": lambda report: report["leaves"].update(passed=False),
    "an error as text": lambda report: report["quantities"][0].update(error="small"),
    "a negative error": lambda report: report["quantities"][0].update(error=-1e-3),
    "an error that is not finite, left out": lambda report: report["checks"][0]["errors"]["mlp"].pop("error"),
    "a check of an unknown level": lambda report: report["checks"][1].update(level="epoch"),
    "a network with a layout": lambda report: report["checks"][0].update(layout="jax"),
    "a step of an unknown kind": lambda report: report["checks"][1].update(kind=""),
    "a short hash": lambda report: report["source"].update(sha256="abc"),
    "another date": lambda report: report.update(created="yesterday"),
    "not run, with checks": lambda report: report.update(status="not_run", reason="no jax"),
}


@pytest.mark.parametrize("name", MUTILATIONS)
def test_an_incomplete_report_does_not_follow_the_schema(name: str, validator: Any) -> None:
    report = passing().to_dict()
    MUTILATIONS[name](report)
    assert report != passing().to_dict()
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(report)


def test_the_schema_describes_every_field() -> None:
    objects = {"the report": SCHEMA, **SCHEMA["$defs"]}
    fields = {(owner, name): each for owner, of in objects.items() for name, each in of["properties"].items()}
    assert [name for name, each in fields.items() if "description" not in each and "$ref" not in each] == []
    assert not [owner for owner, of in objects.items() if of["additionalProperties"] is not False]


def test_a_real_report_follows_the_schema_and_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validator: Any
) -> None:
    """A report made by verify, with two regimes and one short run, and the same for a broken port."""
    pytest.importorskip("jax")
    from trees import write_theta

    from pylo_zoo import parity
    from pylo_zoo.convert import convert
    from pylo_zoo.parity import completeness, plan, trajectory
    from pylo_zoo.parity.cases import REDUCED

    whole = plan.plan
    chosen = ("ordinary", "zeros", "zero parameters", plan.LONG_RUN, plan.BELOW)

    def planned(*inputs: Any) -> list[Any]:
        runs = [run for run in whole(*inputs) if run.name in chosen]
        return [run if run.name == plan.LONG_RUN else replace(run, cases=REDUCED) for run in runs]

    monkeypatch.setattr(plan, "plan", planned)
    monkeypatch.setattr(completeness, "check", lambda *arguments: None)
    monkeypatch.setattr(trajectory, "WHOLE_RUNS", (trajectory.WholeRun("short", "ordinary", 3, REDUCED, ("torch",)),))
    source = write_theta(tmp_path, "adafac-mlp", scale=0.1)
    converted = convert("adafac-mlp", source=source)
    name, weight = next((name, tensor) for name, tensor in converted.tensors.items() if tensor.ndim > 1)
    broken = replace(converted, tensors={**converted.tensors, name: weight * 1.001})
    for artifact, status in ((converted, "passed"), (broken, "failed")):
        report = parity.verify(artifact, source)
        assert report.status == status
        validator.validate(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
        assert phrases.verdict(report).split(".")[0] in html.render_html([report])
        assert "short" in markdown.render_markdown(report)
        failures = ET.fromstring(junit.render_junit([report])).get("failures")
        assert (failures == "0") == (status == "passed")
