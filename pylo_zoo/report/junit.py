"""Renders reports as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from pylo_zoo.errors import count
from pylo_zoo.report import phrases
from pylo_zoo.report.phrases import UNITS, number
from pylo_zoo.report.records import Check, Control, Explanation, Report

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MAX_LISTED = 12
"""Number of intermediate quantities listed per comparison."""
OUTCOMES = ("failure", "error", "skipped")


def legal(text: str) -> str:
    """``text`` without the characters that XML 1.0 cannot represent."""
    return _FORBIDDEN.sub("\ufffd", text)


def _suite(name: str, **attributes: str) -> ET.Element:
    return ET.Element("testsuite", {"name": legal(name), **{key: legal(value) for key, value in attributes.items()}})


def _case(suite: ET.Element, group: str, name: str, outcome: str = "", message: str = "", text: str = "") -> None:
    """Add a case to ``suite``: ``outcome`` is one of :data:`OUTCOMES`, or empty for a pass."""
    classname = f"parity.{suite.get('name')}.{group}"
    case = ET.SubElement(suite, "testcase", {"classname": legal(classname), "name": legal(name), "time": "0"})
    if outcome:
        attributes = {"message": legal(message)} | ({"type": group} if outcome != "skipped" else {})
        ET.SubElement(case, outcome, attributes).text = legal(text) or None


def _with_counts(element: ET.Element) -> ET.Element:
    """``element``, with its test counts as attributes."""
    element.set("tests", str(len(element.findall(".//testcase"))))
    for attribute, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(len(element.findall(f".//testcase/{outcome}"))))
    element.set("time", "0")
    return element


def _check(suite: ET.Element, check: Check, report: Report) -> None:
    name = phrases.describe_check(check)
    if check.passed:
        return _case(suite, check.level, name)
    if not check.errors:
        return _case(suite, check.level, name, "failure", "nothing was compared")
    error, unit = check.errors[check.worst], UNITS.get(check.level, "")
    message = f"{check.worst}: off by {number(error.error)} {unit} (allowed: {number(error.allowed)})"
    if error.passed and check.broken:
        message = f"{count(len(check.broken), 'intermediate quantity')} outside the bounds, first {check.broken[0]}"
    elif error.passed:
        message = f"{count(check.steps, 'step')} compared"
    lines = [f"{name}, {count(check.steps, 'step')}"]
    for parameter, each in check.errors.items():
        if not each.passed:
            lines.append(f"{parameter}: {number(each.error)} {unit} (allowed: {number(each.allowed)})")
    lines += [f"beyond its bound: {quantity}" for quantity in check.broken[:MAX_LISTED]]
    if len(check.broken) > MAX_LISTED:
        lines.append(f"and {len(check.broken) - MAX_LISTED} more")
    explanation = report.explanation
    if explanation and explanation.failed and _explains(explanation, check):
        lines.append(f"First difference: {phrases.located(explanation)}, {phrases.measured(explanation)}.")
    return _case(suite, check.level, name, "failure", message, "\n".join(lines))


def _explains(explanation: Explanation, check: Check) -> bool:
    explained = "step", explanation.run, explanation.dtype, explanation.kernels
    return explained == (check.level, check.name, check.dtype, check.kernels)


def _control(suite: ET.Element, control: Control) -> None:
    name = f"{control.name}: {control.fault}"
    if control.status == "not applicable":
        return _case(suite, "planted faults", name, "skipped", f"does not apply: {control.by}")
    if control.status == "missed":
        return _case(suite, "planted faults", name, "failure", "missed: a port with this fault would have passed")
    return _case(suite, "planted faults", name)


def _report(report: Report) -> ET.Element:
    suite = _suite(report.name, **({"timestamp": report.created} if report.created else {}))
    properties = ET.SubElement(suite, "properties")
    values = {
        "family": report.family,
        "source": str(report.source.get("uri", "")),
        "source sha256": str(report.source.get("sha256", "")),
        "fingerprint": report.fingerprint,
        **report.environment,
    }
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": legal(name), "value": legal(value)})
    leaves = report.leaves
    lines = [
        f"{word}: {name}"
        for word, names in (("missing", leaves.missing), ("extra", leaves.extra), ("differing", leaves.differing))
        for name in names
    ]
    name = f"{count(leaves.compared, 'leaf')} equal bit for bit"
    broken = phrases.broken_leaves(report) or "no leaf was compared"
    _case(suite, "leaves", name, *(() if leaves.passed else ("failure", broken, "\n".join(lines))))
    statements = report.statements
    message = count(len(statements.contradictions), "contradiction")
    failure = "failure", message, "\n".join(statements.contradictions)
    _case(suite, "statements", "fields that the source states", *(() if statements.passed else failure))
    for check in report.checks:
        _check(suite, check, report)
    for each in report.kernels:
        _case(suite, "kernels", f"fused kernels on {each.device}", *(() if each.compared else ("skipped", each.reason)))
    for control in report.controls:
        _control(suite, control)
    if not report.checks:
        _case(suite, "numbers", "compared with the JAX original", "error", report.reason or "not run")
    return _with_counts(suite)


def _without_report(names: Mapping[str, str], title: str, outcome: str) -> ET.Element:
    suite = _suite(title)
    for name, reason in names.items():
        _case(suite, "sources", name, outcome, reason)
    return _with_counts(suite)


def render_junit(
    reports: Sequence[Report], missing: Mapping[str, str] | None = None, broken: Mapping[str, str] | None = None
) -> str:
    """One suite per report, with a case for leaves, statements, every comparison and every planted fault.

    Args:
        reports: the reports.
        missing: entries whose source is unavailable, with the reason; rendered as skipped.
        broken: entries that could not be checked, with the error message; rendered as errors.
    """
    root = ET.Element("testsuites", {"name": "pylo-zoo verify"})
    root.extend(_report(report) for report in reports)
    for names, title, outcome in ((missing, "unavailable", "skipped"), (broken, "could not be checked", "error")):
        if names:
            root.append(_without_report(names, title, outcome))
    ET.indent(_with_counts(root))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
