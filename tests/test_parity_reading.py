"""Reading parity.json: the same report, or one clear error for anything else."""

from __future__ import annotations

import copy
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity_reports import failing, hostile, not_run, passing
from rich.console import Console
from trees import synthetic_artifact

from pylo_zoo.errors import ZooError
from pylo_zoo.parity import devices
from pylo_zoo.report import html, markdown, tables
from pylo_zoo.report.reading import read_report
from pylo_zoo.report.records import Check, Error, Report


def stranger() -> Report:
    """A valid report in which every text is hostile."""
    return replace(hostile(), created="")


def original() -> Report:
    """A report that includes the group's own package."""
    report = passing()
    return replace(
        report, checks=[*report.checks, Check("original", "float32", "", "celo 1", 5, {"a": Error(0.0, 1e-4)})]
    )


REPORTS: dict[str, Callable[[], Report]] = {
    "passed": passing,
    "failed": failing,
    "not run": not_run,
    "hostile": stranger,
    "with an original": original,
}


def through_json(report: Report) -> Any:
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def use(report: Report) -> None:
    """Every rendering of a report."""
    html.render_html([report])
    markdown.render_markdown(report)
    markdown.render_many([report])
    console = Console(file=open("/dev/null", "w", encoding="utf-8", errors="replace"), width=80)  # noqa: SIM115
    tables.print_report(report, console, explained=True)
    console.file.close()


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_round_trips(name: str) -> None:
    report = REPORTS[name]()
    values = through_json(report)
    read = read_report(values)
    assert json.dumps(read.to_dict()) == json.dumps(values)
    assert (read.status, read.vectors) == (report.status, None)
    assert read.vectors_sha256 == report.vectors_sha256
    use(read)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_version_2_is_still_read(name: str) -> None:
    """It lacks the statements about kernels."""
    values = through_json(older(REPORTS[name]()))
    values["schema_version"] = 2
    del values["kernels"]
    for each in [*values["checks"], *([values["explanation"]] if values["explanation"] else [])]:
        del each["kernels"]
    read = read_report(values)
    assert (read.status, read.kernels) == (values["status"], [])
    assert not any(check.kernels for check in read.checks)
    use(read)
    values["kernels"] = "all"
    with pytest.raises(ZooError, match=r"parity\.json"):
        read_report(values)


def older(report: Report) -> Report:
    """``report`` without the comparisons of kernels."""
    return replace(report, checks=[check for check in report.checks if not check.kernels], kernels=[])


def test_full_precision_is_kept() -> None:
    """An error just beyond its bound, and the larger of two that look alike."""
    errors = {"a": Error(1.00001e-12, 1e-12), "b": Error(1.00002e-12, 1e-12), "c": Error(math.nan, 1e-12)}
    for names in (("a",), ("a", "b"), ("a", "b", "c")):
        check = Check("step", "float64", "jax", "ordinary", 1, {name: errors[name] for name in names}, "regime")
        report = replace(passing(), checks=[check], controls=[])
        values = through_json(report)
        assert values["status"] == "failed"
        assert values["checks"][0]["worst"] == names[-1]
        assert read_report(values).to_dict() == values


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda report: report.update(schema_version=1),
    "no version": lambda report: report.pop("schema_version"),
    "passed instead of failed": lambda report: report.update(status="passed"),
    "not run instead of run": lambda report: report.update(status="not_run", reason="no jax"),
    "a failed check marked as passed": lambda report: next(
        each for each in report["checks"] if not each["passed"]
    ).update(passed=True),
    "an additional field": lambda report: report.update(comment="all good"),
    "a missing field": lambda report: report.pop("fingerprint"),
    "failed leaves marked as passed": lambda report: report["leaves"].update(passed=True),
    "more wrong leaves than leaves": lambda report: report["leaves"].update(compared=1),
    "another worst": lambda report: report["checks"][1].update(worst="vector"),
    "an unknown worst parameter": lambda report: report["checks"][1].update(worst="unknown"),
    "true instead of a number": lambda report: report["checks"][0].update(steps=True),
    "an infinite error": lambda report: report["quantities"][0].update(error=math.inf),
    "a number with a thousand digits": lambda report: report["quantities"][0].update(error=10**1000),
    "an impossible number of steps": lambda report: report["checks"][0].update(steps=10**12),
    "a million checks": lambda report: report.update(checks=[report["checks"][0]] * 10**6),
    "too many settings": lambda report: report.update(
        checks=[report["checks"][0] | {"name": str(each)} for each in range(1000)]
    ),
    "a very long text": lambda report: report.update(name="x" * 10**6),
    "kernels of an unknown device": lambda report: report["kernels"][0].update(device="abacus"),
    "compared kernels with a reason against it": lambda report: report["kernels"][1].update(compared=True),
    "a network by kernels": lambda report: report["checks"][0].update(kernels="cpu"),
    "deeply nested settings": lambda report: report["settings"].update(hyper=nested(500)),
}


def nested(depth: int) -> Any:
    results: Any = {}
    for _ in range(depth):
        results = {"a": [results]}
    return results


@pytest.mark.parametrize("name", LIES)
def test_contradicting_reports_are_refused(name: str) -> None:
    values = through_json(failing())
    LIES[name](values)
    with pytest.raises(ZooError, match=r"parity\.json") as caught:
        read_report(values)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("values", [None, [], "passed", 3, {}, {"schema_version": 2}, {"schema_version": {}}])
def test_other_content_is_refused(values: Any) -> None:
    with pytest.raises(ZooError, match=r"parity\.json"):
        read_report(values)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside ``value``."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for path in [path] if path] + [each for key, item in inside for each in places(item, (*path, key))]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["passed", "failed", "step", "original", "caught", 10**400, 1e-320, 0, -1]),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner)),
    max_leaves=5,
)
ORIGINALS = [through_json(make()) for make in REPORTS.values()]


@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.sampled_from(ORIGINALS), st.integers(0, 2**32), st.lists(st.tuples(JUNK, st.booleans()), min_size=1, max_size=3)
)
def test_a_mutated_report_is_read_or_refused(whole: Any, seed: int, changes: list[tuple[Any, bool]]) -> None:
    """The result is a report that every renderer accepts and that round-trips, or a ZooError."""
    values, chance = copy.deepcopy(whole), random.Random(seed)
    for junk, removed in changes:
        *path, last = chance.choice(places(values))
        owner = values
        for key in path:
            owner = owner[key]
        if removed:
            del owner[last]
        else:
            owner[last] = junk
    try:
        report = read_report(values)
    except ZooError:
        return
    again = through_json(report)
    assert read_report(again).to_dict() == again
    assert report.status == values["status"]
    use(report)


@pytest.mark.parametrize(("allowed", "has_reason"), [(0.6, True), (0.05, False)])
def test_a_large_error_that_passes_has_a_reason(allowed: float, has_reason: bool) -> None:
    errors = {"a": Error(min(0.19, allowed), allowed, 9.0), "b": Error(1e-7, 1e-5, 1.0)}
    checks = [Check("step", "float32", "jax", "zeros", 3, errors, kind="regime")]
    checks += [Check("step", "float64", "jax", "zeros", 3, {"a": Error(1e-16, 1e-10, 1.0)}, kind="regime")]
    result = tables.wide_bounds(checks)
    assert bool(result) == has_reason
    if has_reason:
        (reason,) = result
        assert "float32, zeros: 1.9e-01 of the update passes" in reason
        assert "the original's own float32 error is up to 9.4e-03, and 64 times that is allowed" in reason


# --- the precision of Newton–Schulz ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "fused", "expected"),
    [
        ("celo2", [], {"eager": "float32"}),
        ("elo-celo2", ["cpu"], {"eager": "float32", "cpu": "float32"}),
        ("celo2-base", ["cpu"], None),
        ("velo", ["cpu"], None),
    ],
)
def test_a_proof_states_the_precision_of_newton_schulz(family: str, fused: list[str], expected: Any) -> None:
    assert devices.newton_schulz(synthetic_artifact(family), fused) == expected


def test_every_format_states_the_precision_of_newton_schulz() -> None:
    ran = {"eager": "float32", "cpu": "float32", "cuda": "tf32"}
    report = replace(passing(), newton_schulz=ran)
    again = read_report(through_json(report))
    assert again.newton_schulz == ran
    sentence = "Newton–Schulz ran in float32 (eager, cpu kernels) and tf32 (cuda kernels)"
    assert sentence in markdown.render_markdown(again).replace("\\", "")
    assert sentence in html.render_html([again])
    console = Console(width=400, file=io.StringIO())
    tables.print_report(again, console)
    assert sentence in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert read_report(through_json(passing())).newton_schulz is None


@pytest.mark.parametrize("wrong", [{"eager": "float8"}, {"tpu": "float32"}, ["float32"], {"cpu": 32}, "float32"])
def test_another_precision_is_refused(wrong: Any) -> None:
    with pytest.raises(ZooError, match="newton_schulz"):
        read_report({**through_json(passing()), "newton_schulz": wrong})
