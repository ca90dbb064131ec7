"""The texts of a failed report, for a failure at each level: only true statements, and where to look."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest
from parity_reports import errors, explanation, passing
from rich.console import Console

from pylo_zoo.cli import verify_cmd
from pylo_zoo.errors import ZooError
from pylo_zoo.parity.targets import VerifyResults
from pylo_zoo.report import html, junit, markdown, phrases, tables
from pylo_zoo.report.records import Check, Control, Error, Leaves, Report, Statements


def leaves(report: Report) -> Report:
    return replace(report, leaves=Leaves(3, differing=["mlp/w0"]))


def statements(report: Report) -> Report:
    return replace(report, statements=Statements(["ff_mult is 1.0 in config.gin"]))


def network(report: Report) -> Report:
    wrong = replace(report.checks[0], errors={"mlp": Error(0.25, 5e-14)})
    return replace(report, checks=[wrong, *report.checks[1:]])


def step(report: Report) -> Report:
    checks = [
        replace(c, errors=errors(0.25), broken=["row of square dense"]) if _is(c, "step", "float64", "") else c
        for c in report.checks
    ]
    return replace(report, checks=checks, explanation=explanation(0.25))


def fused_step(report: Report) -> Report:
    checks = [replace(c, errors=errors(0.25, 2e-4)) if _is(c, "step", "float32", "cpu") else c for c in report.checks]
    kept = report.explanation
    assert kept is not None
    result = kept if kept.failed else replace(explanation(0.25), dtype="float32", kernels="cpu")
    return replace(report, checks=checks, explanation=result)


def unstarted(report: Report) -> Report:
    """The original is not finite at the first step, so no step is compared."""
    checks = [
        replace(c, steps=0, errors=errors(0.0), by_step=[]) if _is(c, "step", "float64", "") else c
        for c in report.checks
    ]
    return replace(report, checks=checks)


def whole_run(report: Report) -> Report:
    checks = [
        replace(c, errors=errors(math.inf, 0.0)) if _is(c, "trajectory", "float64", "") else c for c in report.checks
    ]
    return replace(report, checks=checks)


def fused_run(report: Report) -> Report:
    checks = [
        replace(c, errors=errors(0.25, 2e-4)) if _is(c, "trajectory", "float32", "cpu") else c for c in report.checks
    ]
    return replace(report, checks=checks)


def original(report: Report) -> Report:
    wrong = Check("original", "float32", "", "celo 1", 5, {"vector": Error(0.5, 1e-4)})
    return replace(report, checks=[*report.checks, wrong])


def missed(report: Report) -> Report:
    return replace(report, controls=[*report.controls, Control("decays", "permuted", "missed", "nothing")])


def untried(report: Report) -> Report:
    return replace(report, controls=[])


def _is(check: Check, level: str, dtype: str, kernels: str) -> bool:
    return (check.level, check.dtype, check.kernels) == (level, dtype, kernels)


FAILURES: dict[str, tuple[Callable[[Report], Report], str]] = {
    "leaves": (leaves, "1 differing"),
    "statements": (statements, "ff_mult is 1.0 in config.gin"),
    "network": (network, "(network"),
    "step": (step, "single step"),
    "fused step": (fused_step, "single step, fused kernels on cpu"),
    "no step": (unstarted, "single step"),
    "whole run": (whole_run, "whole run"),
    "fused run": (fused_run, "whole run, fused kernels on cpu"),
    "original": (original, "reference against the original"),
    "missed fault": (missed, "1 planted fault missed: decays"),
    "no fault": (untried, "No planted fault could be tried"),
}
"""A failure, and the verdict's sentence about it."""
CLASHING = ({"step", "no step"}, {"missed fault", "no fault"})
COMBINATIONS = [
    names
    for n in (1, 2)
    for names in itertools.combinations(FAILURES, n)
    if not any(clash <= set(names) for clash in CLASHING)
]


def failed(names: tuple[str, ...]) -> Report:
    report = passing()
    for name in names:
        report = FAILURES[name][0](report)
    return report


def terminal(report: Report, *, explained: bool) -> str:
    console = Console(width=240, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    tables.print_report(report, console, explained=explained)
    console.file.close()
    return " ".join(console.export_text().split())


def hint(report: Report) -> str:
    with pytest.raises(ZooError) as caught:
        verify_cmd._raise_failures(VerifyResults([report]), False)
    return caught.value.hint or ""


@pytest.mark.parametrize("names", COMBINATIONS, ids=" + ".join)
def test_a_failed_report_states_only_what_failed(names: tuple[str, ...]) -> None:
    report = failed(names)
    assert report.status == "failed"
    differs = bool({"step", "fused step"} & set(names))
    verdict, rest = phrases.verdict(report), hint(report)
    pages = [terminal(report, explained=False), terminal(report, explained=True)]
    for text in (verdict, *pages, rest, markdown.render_markdown(report)):
        assert "nothing is off" not in text
        assert differs or "irst difference" not in text
    assert ("The first quantity that differs" in verdict) == differs
    for text in pages:
        assert ("First difference" in text) == differs
        assert ("Every quantity of every single step is within its bound" in text) <= (
            not {"step", "fused step", "no step"} & set(names)
        )
    assert ("First difference" in html.render_html([report])) == differs
    for name in names:
        sentence = FAILURES[name][1]
        if name == "no fault" and len(names) > 1:
            continue  # faults are not planted if the unmodified check fails
        assert sentence in verdict, name
    root = ET.fromstring(junit.render_junit([report]))
    assert (root.get("failures") != "0") == (names != ("no fault",))
    begun = [each for each in root.iter("failure") if "First difference" in (each.text or "")]
    assert bool(begun) == differs


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (("network",), "check the network's weights"),
        (("whole run",), "check the state that one step passes to the next"),
        (("fused run",), "check the state that one step passes to the next"),
        (("original",), "check the reference"),
        (("leaves",), "Convert the checkpoint again"),
        (("statements",), "correct the contradicted fields with --set"),
        (("statements", "network"), "correct the contradicted fields with --set"),
        (("no step",), "because the original is not finite"),
        (("step",), "Start at the first difference"),
        (("fused step",), "Start at the first difference"),
        (("network", "whole run"), "check the network's weights and forward pass; and the state that one step"),
    ],
)
def test_the_hint_points_to_existing_options(names: tuple[str, ...], phrase: str) -> None:
    assert phrase in hint(failed(names))


def test_a_missed_fault_does_not_blame_the_port() -> None:
    """The port may be correct: the failed run proves nothing."""
    for names in (("missed fault",), ("no fault",)):
        assert "was not proven to match its JAX original" in phrases.verdict(failed(names))
    assert "does not match its JAX original" in phrases.verdict(failed(("network",)))


# --- kernels in every form of the report -------------------------------------------------------------------------


def test_every_format_states_which_kernels_were_compared_or_why_not() -> None:
    report = passing()
    forms = {
        "terminal": terminal(report, explained=False),
        "html": html.render_html([report]),
        "markdown": markdown.render_markdown(report).replace("\\", ""),
    }
    for form, text in forms.items():
        assert "this machine has no CUDA device" in text, form
        assert "kernels" in text, form
    assert "cpu kernels single steps, 1 run" in forms["terminal"]
    assert "cuda kernels not compared" in forms["terminal"]
    assert (
        "Fused kernels on cpu were compared in float32 (the eager implementation updates vector)." in forms["markdown"]
    )
    assert "single step, fused kernels on cpu" in forms["html"]
    cases = {case.get("name"): case for case in ET.fromstring(junit.render_junit([report])).iter("testcase")}
    skipped = cases["fused kernels on cuda"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "this machine has no CUDA device"
    assert cases["fused kernels on cpu"].find("skipped") is None
    assert [each["device"] for each in report.to_dict()["kernels"]] == ["cpu", "cuda"]
