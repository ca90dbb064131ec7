"""Parses ``parity.json`` into a :class:`~pylo_zoo.report.records.Report`.

The file is untrusted, so every field is validated. Derived fields (``status``, ``passed``, ``worst``) are computed
again, and a file whose derived fields contradict its numbers is rejected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.parsing import Field
from pylo_zoo.report.records import (
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    Check,
    Control,
    Coverage,
    Error,
    Explanation,
    Kernels,
    Leaves,
    Link,
    Quantity,
    Report,
    Settings,
    Statements,
)

MAX_NAMES = 200
"""Distinct parameters and outputs, and distinct settings of checks: a page has one cell per pair."""
MAX_STEPS = 100_000
MAX_NESTING = 6
HINT = "Download the artifact again, or run `pylo-zoo verify` on it."

KEYS = (
    *("schema_version", "status", "name", "family", "source", "fingerprint", "leaves", "statements", "settings"),
    *("checks", "quantities", "controls", "explanation", "coverage", "kernels", "environment"),
    *("vectors_sha256", "created"),
)
DTYPES = ("float64", "float32")
LAYOUTS = ("torch", "jax")
LEVELS = ("network", "step", "trajectory", "original")
KINDS = ("regime", "options", "flags")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "float64")
STATUSES = ("caught", "missed", "not applicable")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2}))?")


def read_report(values: Any) -> Report:
    """Parse ``values``, the content of ``parity.json``. The report's ``vectors`` are None.

    Raises:
        ZooError: ``values`` is malformed, of another version, too large, or contradicts itself.
    """
    if isinstance(values, dict) and values.get("schema_version") not in READABLE_VERSIONS:
        version = quoted(values.get("schema_version"))
        raise ZooError(
            f"parity.json has schema_version {version}, not {SCHEMA_VERSION}.",
            "Update pylo-zoo, or run `pylo-zoo verify` on the artifact.",
        )
    root = Field(_upgraded(values), "parity.json", HINT)
    fields = root.fields(KEYS, optional=("reason", "defaults", "newton_schulz"))
    report = Report(
        name=fields["name"].text(),
        family=fields["family"].text(),
        source=_source(fields["source"]),
        fingerprint=_sha256(fields["fingerprint"]),
        leaves=_leaves(fields["leaves"]),
        statements=_statements(fields["statements"]),
        settings=fields["settings"].optional(_settings),
        checks=_checks(fields["checks"]),
        quantities=fields["quantities"].items(_quantity),
        controls=fields["controls"].items(_control),
        explanation=fields["explanation"].optional(_explanation),
        coverage=fields["coverage"].optional(_coverage),
        kernels=fields["kernels"].items(_kernels),
        environment=fields["environment"].mapping(Field.text),
        recorded_sha256=fields["vectors_sha256"].optional(_sha256),
        created=fields["created"].match(_TIME, "a time"),
        reason=_reason(fields["reason"]) if "reason" in fields else None,
        defaults=fields["defaults"].mapping(_number) if "defaults" in fields else None,
        newton_schulz=_newton_schulz(fields["newton_schulz"]) if "newton_schulz" in fields else None,
    )
    _agrees(fields["status"], report.status)
    if (report.status == "not_run" and not report.reason) or (report.status == "passed" and report.reason):
        raise root.error(f": status {report.status!r} does not fit reason {quoted(report.reason)}")
    return report


def _upgraded(values: Any) -> Any:
    """Content of an older version with the fields that it lacks. Existing fields are not validated here."""
    if not isinstance(values, dict) or values["schema_version"] == SCHEMA_VERSION:
        return values
    upgraded = {"kernels": [], **values}
    if isinstance(values.get("checks"), list):
        upgraded["checks"] = [{"kernels": "", **each} if isinstance(each, dict) else each for each in values["checks"]]
    if isinstance(values.get("explanation"), dict):
        upgraded["explanation"] = {"kernels": "", **values["explanation"]}
    return upgraded


# --- the records -------------------------------------------------------------------------------------------------


def _source(field: Field) -> dict[str, Any]:
    fields = field.fields(("uri", "sha256", "bytes"))
    return {
        "uri": fields["uri"].optional(Field.text),
        "sha256": _sha256(fields["sha256"]),
        "bytes": fields["bytes"].integer(0, 2**53),
    }


def read_leaves(value: Any) -> Leaves:
    """Parse the section ``leaves``.

    Raises:
        ZooError: the section is malformed or contradicts itself.
    """
    return _leaves(Field(value, "parity.json: leaves", HINT))


def _leaves(field: Field) -> Leaves:
    fields = field.fields(("compared", "missing", "extra", "differing", "passed"))
    names = {key: _texts(fields[key]) for key in ("missing", "extra", "differing")}
    leaves = Leaves(_count(fields["compared"]), **names)
    if len(leaves.missing) + len(leaves.differing) > leaves.compared:
        raise field.error(f": more leaves are missing or differ than were compared ({leaves.compared})")
    _agrees(fields["passed"], leaves.passed)
    return leaves


def _statements(field: Field) -> Statements:
    fields = field.fields(("contradictions", "unsaid", "passed"))
    statements = Statements(_texts(fields["contradictions"]), _texts(fields["unsaid"]))
    _agrees(fields["passed"], statements.passed)
    return statements


def _settings(field: Field) -> Settings:
    fields = field.fields(("seed", "max_error", "factor", "floor", "hyper", "behavior"))
    for key in ("max_error", "factor", "floor"):
        _size(fields[key])
    fields["seed"].integer(-(2**63), 2**63)
    for key in ("hyper", "behavior"):
        fields[key].mapping(_plain)
    return Settings(**{key: each.value for key, each in fields.items()})


def _checks(field: Field) -> list[Check]:
    checks = field.items(_check)
    names = {name for check in checks for name in check.errors}
    settings = {(check.level, check.kind, check.name, check.kernels) for check in checks}
    if max(len(names), len(settings)) > MAX_NAMES:
        raise field.error(f" cover more than {MAX_NAMES} parameters or settings")
    return checks


def _check(field: Field) -> Check:
    keys = ("level", "dtype", "layout", "name", "steps", "errors", "kind", "broken", "by_step", "passed", "worst")
    fields = field.fields((*keys, "kernels"))
    level = fields["level"].choice(LEVELS)
    errors = fields["errors"].mapping(_error)
    if not errors:
        raise field.error(" compares nothing")
    broken = _texts(fields["broken"])
    if fields["passed"].value is False and not broken and all(error.passed for error in errors.values()):
        errors = {name: _beyond(error) for name, error in errors.items()}
    check = Check(
        level=level,
        dtype=fields["dtype"].choice(DTYPES),
        layout=fields["layout"].choice(LAYOUTS if level == "step" else ("", *LAYOUTS)),
        name=fields["name"].text(),
        steps=fields["steps"].integer(0, MAX_STEPS),
        errors=errors,
        kind=fields["kind"].choice(KINDS if level == "step" else ("",)),
        broken=broken,
        by_step=fields["by_step"].items(_infinite, MAX_STEPS),
        recorded_worst=fields["worst"].choice(errors),
        kernels=fields["kernels"].choice(("", *DEVICES) if level in ("step", "trajectory") else ("",)),
    )
    if check.by_step and len(check.by_step) != check.steps:
        raise fields["by_step"].error(f" has {len(check.by_step)} errors for {check.steps} steps")
    _agrees(fields["passed"], check.passed)
    # Numbers have four digits, so two near-equal errors may have swapped order.
    largest = max(errors, key=lambda name: errors[name].excess)
    if errors[check.worst].excess < 0.999 * errors[largest].excess:
        raise fields["worst"].error(f" is {quoted(check.worst)}, but the error of {quoted(largest)} is larger")
    return check


def _error(field: Field) -> Error:
    fields = field.fields(("error", "allowed", "ulps"))
    return Error(_infinite(fields["error"]), *(fields[key].optional(_size) for key in ("allowed", "ulps")))


def _beyond(error: Error) -> Error:
    """``error``, moved past its bound if rounding to four digits made the two equal."""
    equal = error.allowed is not None and error.error == error.allowed > 0
    return Error(math.nextafter(error.error, math.inf), error.allowed, error.ulps) if equal else error


def _kernels(field: Field) -> Kernels:
    fields = field.fields(("device", "reason", "uncovered", "compared"))
    kernels = Kernels(fields["device"].choice(DEVICES), fields["reason"].text(), _texts(fields["uncovered"]))
    _agrees(fields["compared"], kernels.compared)
    return kernels


def _newton_schulz(field: Field) -> dict[str, str]:
    precisions = field.mapping(lambda each: each.choice(PRECISIONS))
    if unknown := set(precisions) - {"eager", *DEVICES}:
        raise field.error(f" has the unknown backend {quoted(min(unknown))}")
    return precisions


def _quantity(field: Field) -> Quantity:
    fields = field.fields(("name", "dtype", "error", "allowed", "run", "layout", "case", "step"))
    return Quantity(
        name=fields["name"].text(),
        dtype=fields["dtype"].choice(DTYPES),
        error=_infinite(fields["error"]),
        allowed=fields["allowed"].optional(_size),
        run=fields["run"].text(),
        layout=fields["layout"].choice(LAYOUTS),
        case=fields["case"].text(),
        step=_count(fields["step"]),
    )


def _control(field: Field) -> Control:
    fields = field.fields(("name", "fault", "status", "by", "case", "error", "allowed"))
    return Control(
        **{key: fields[key].text() for key in ("name", "fault", "by", "case")},
        status=fields["status"].choice(STATUSES),
        error=fields["error"].optional(_size),
        allowed=fields["allowed"].optional(_size),
    )


def _explanation(field: Field) -> Explanation:
    keys = ("run", "dtype", "layout", "step", "case", "shape", "quantity", "meaning", "index", "ours", "theirs")
    fields = field.fields((*keys, "misfit", "off_in", "right_in", "chain", "kernels"))
    return Explanation(
        **{key: fields[key].text() for key in ("run", "case", "quantity", "meaning")},
        dtype=fields["dtype"].choice(DTYPES),
        layout=fields["layout"].choice(LAYOUTS),
        step=_count(fields["step"]),
        shape=fields["shape"].items(_count),
        index=fields["index"].items(_count),
        ours=_number(fields["ours"]),
        theirs=_number(fields["theirs"]),
        misfit=fields["misfit"].optional(Field.text),
        off_in=_texts(fields["off_in"]),
        right_in=_texts(fields["right_in"]),
        chain=fields["chain"].items(_link, least=1),
        kernels=fields["kernels"].choice(("", *DEVICES)),
    )


def _link(field: Field) -> Link:
    fields = field.fields(("quantity", "meaning", "error", "allowed"))
    return Link(
        quantity=fields["quantity"].text(),
        meaning=fields["meaning"].text(),
        error=_infinite(fields["error"]),
        allowed=_infinite(fields["allowed"]),
    )


def _coverage(field: Field) -> Coverage:
    fields = field.fields(("covered", "not_covered"))
    return Coverage(fields["covered"].mapping(_texts), _texts(fields["not_covered"]))


# --- the values --------------------------------------------------------------------------------------------------


def _agrees(field: Field, computed: object) -> None:
    if type(field.value) is not type(computed) or field.value != computed:
        raise field.error(f" is {quoted(field.value)}, but the numbers in the file give {quoted(computed)}")


def _texts(field: Field) -> list[str]:
    return field.items(Field.text)


def _sha256(field: Field) -> str:
    return field.match(_SHA256, "64 lower-case hex digits")


def _reason(field: Field) -> str:
    if not field.text():
        raise field.wrong("a reason")
    return field.value


def _count(field: Field) -> int:
    return field.integer(0, 10**9)


def _number(field: Field) -> float:
    """A number; None, which stands for a non-finite number in the file, becomes NaN."""
    return math.nan if field.value is None else field.number()


def _size(field: Field) -> float:
    """A non-negative number."""
    if (number := field.number()) < 0:
        raise field.wrong("a non-negative number")
    return number


def _infinite(field: Field) -> float:
    """A non-negative number; None, which stands for a non-finite number in the file, becomes infinity."""
    return math.inf if field.value is None else _size(field)


def _plain(field: Field, depth: int = 0) -> Any:
    """The value itself, if it is plain JSON with at most ``MAX_NESTING`` levels."""
    if depth > MAX_NESTING:
        raise field.error(f" has more than {MAX_NESTING} nested levels")
    if isinstance(field.value, (list, tuple)):
        return field.items(lambda each: _plain(each, depth + 1))
    if isinstance(field.value, Mapping):
        return field.mapping(lambda each: _plain(each, depth + 1))
    if isinstance(field.value, (int, float)) and not isinstance(field.value, bool):
        return field.number()
    return field.value if field.value is None or isinstance(field.value, bool) else field.text()
