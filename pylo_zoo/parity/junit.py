"""Reports as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from pylo_zoo.parity import phrases
from pylo_zoo.parity.phrases import UNITS, number
from pylo_zoo.parity.report import Check, Control, Explanation, Report

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MOST = 12
"""So many intermediate quantities are listed for a comparison."""
OUTCOMES = ("failure", "error", "skipped")


def legal(text: str) -> str:
    """``text`` without the characters that XML 1.0 has no way to write."""
    return _FORBIDDEN.sub("\ufffd", text)


def _suite(name: str, **attributes: str) -> ET.Element:
    return ET.Element("testsuite", {"name": legal(name), **{key: legal(value) for key, value in attributes.items()}})


def _case(suite: ET.Element, group: str, name: str, outcome: str = "", message: str = "", text: str = "") -> None:
    """Add a case to ``suite``: ``outcome`` is one of :data:`OUTCOMES`, or empty for a pass."""
    classname = f"parity.{suite.get('name')}.{group}"
    case = ET.SubElement(suite, "testcase", {"classname": legal(classname), "name": legal(name), "time": "0"})
    if outcome:
        said = {"message": legal(message)} | ({"type": group} if outcome != "skipped" else {})
        ET.SubElement(case, outcome, said).text = legal(text) or None


def _counted(element: ET.Element) -> ET.Element:
    """``element`` with the numbers of its cases."""
    element.set("tests", str(len(element.findall(".//testcase"))))
    for attribute, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(len(element.findall(f".//testcase/{outcome}"))))
    element.set("time", "0")
    return element


def _check(suite: ET.Element, check: Check, report: Report) -> None:
    name = phrases.place(check)
    if check.passed:
        return _case(suite, check.level, name)
    if not check.errors:
        return _case(suite, check.level, name, "failure", "nothing was compared")
    error, unit = check.errors[check.worst], UNITS.get(check.level, "")
    message = f"{check.worst}: off by {number(error.error)} {unit}, {number(error.allowed)} is allowed"
    if error.passed and check.broken:
        message = f"{phrases.count(len(check.broken), 'intermediate quantity')} off, first {check.broken[0]}"
    elif error.passed:
        message = f"{phrases.count(check.steps, 'step')} compared"
    lines = [f"{name}, {phrases.count(check.steps, 'step')}"]
    for parameter, each in check.errors.items():
        if not each.passed:
            lines.append(f"{parameter}: {number(each.error)} {unit}, allowed {number(each.allowed)}")
    lines += [f"beyond its bound: {quantity}" for quantity in check.broken[:MOST]]
    if len(check.broken) > MOST:
        lines.append(f"and {len(check.broken) - MOST} more")
    explanation = report.explanation
    here = check.level, check.name, check.dtype, check.kernels
    if explanation and explanation.failed and ("step", *_where(explanation)) == here:
        lines.append(f"It begins with {phrases.located(explanation)}, {phrases.measured(explanation)}.")
    return _case(suite, check.level, name, "failure", message, "\n".join(lines))


def _where(explanation: Explanation) -> tuple[str, str, str]:
    return explanation.run, explanation.dtype, explanation.kernels


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
    said = {
        "family": report.family,
        "source": str(report.source.get("uri", "")),
        "source sha256": str(report.source.get("sha256", "")),
        "fingerprint": report.fingerprint,
        **report.environment,
    }
    for name, value in said.items():
        ET.SubElement(properties, "property", {"name": legal(name), "value": legal(value)})
    leaves = report.leaves
    lines = [
        f"{word}: {name}"
        for word, names in (("missing", leaves.missing), ("extra", leaves.extra), ("differing", leaves.differing))
        for name in names
    ]
    name = f"{phrases.count(leaves.compared, 'leaf')} bit for bit"
    broken = phrases.broken_leaves(report) or "no leaf was compared"
    _case(suite, "leaves", name, *(() if leaves.passed else ("failure", broken, "\n".join(lines))))
    said_no = "\n".join(report.statements.contradictions)
    what = "the source's own statements"
    _case(suite, "statements", what, *(() if report.statements.passed else ("failure", "contradicted", said_no)))
    for check in report.checks:
        _check(suite, check, report)
    for each in report.kernels:
        _case(suite, "kernels", f"fused kernels on {each.device}", *(() if each.compared else ("skipped", each.reason)))
    for control in report.controls:
        _control(suite, control)
    if not report.checks:
        _case(suite, "numbers", "against the JAX original", "error", report.reason or "not run")
    return _counted(suite)


def _absent(names: Mapping[str, str], title: str, outcome: str) -> ET.Element:
    suite = _suite(title)
    for name, reason in names.items():
        _case(suite, "sources", name, outcome, reason)
    return _counted(suite)


def render_junit(
    reports: Sequence[Report], missing: Mapping[str, str] | None = None, broken: Mapping[str, str] | None = None
) -> str:
    """A suite for each report, with a case for its leaves, its statements, every comparison and every planted fault.

    Args:
        reports: what was judged.
        missing: names of what could not be judged because its source is not at hand, with the reason: skipped.
        broken: names of what could not be judged because of an error, with the message: errors.
    """
    root = ET.Element("testsuites", {"name": "pylo-zoo verify"})
    root.extend(_report(report) for report in reports)
    for names, title, outcome in ((missing, "not at hand", "skipped"), (broken, "could not be run", "error")):
        if names:
            root.append(_absent(names, title, outcome))
    ET.indent(_counted(root))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
