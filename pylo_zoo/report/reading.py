"""Parses ``parity.json`` into a :class:`~pylo_zoo.report.records.Report`.

The file is untrusted, so every field is validated. Derived fields (``status``, ``passed``, ``worst``) are computed
again, and a file whose derived fields contradict its numbers is rejected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pylo_zoo.errors import ZooError
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

T = TypeVar("T")

MAX_ENTRIES = 2_000
"""Entries of a list; a real report has about a hundred checks and as many quantities."""
MAX_NAMES = 200
"""Distinct parameters and outputs, and distinct settings of checks: a page has one cell per pair."""
MAX_STEPS = 100_000
MAX_TEXT = 10_000
DEEPEST = 6
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
STATUSES = ("caught", "missed", "not applicable")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2}))?")


def read_report(values: Any) -> Report:
    """Parse ``values``, the content of ``parity.json``. The report's ``vectors`` are None.

    Raises:
        ZooError: ``values`` is malformed, of another version, too large, or contradicts itself.
    """
    if isinstance(values, dict) and values.get("schema_version") not in READABLE_VERSIONS:
        version = _shown(values.get("schema_version"))
        raise ZooError(
            f"parity.json has schema_version {version}, not {SCHEMA_VERSION}.",
            "Update pylo-zoo, or run `pylo-zoo verify` on the artifact.",
        )
    values = _object(_upgraded(values), KEYS, "the file", optional=("reason", "defaults"))
    report = Report(
        name=_text(values["name"], "name"),
        family=_text(values["family"], "family"),
        source=_source(values["source"]),
        fingerprint=_matching(_SHA256, values["fingerprint"], "fingerprint"),
        leaves=read_leaves(values["leaves"]),
        statements=_statements(values["statements"]),
        settings=_optional(_settings, values["settings"]),
        checks=_checks(values["checks"]),
        quantities=_list(values["quantities"], "quantities", _quantity),
        controls=_list(values["controls"], "controls", _control),
        explanation=_optional(_explanation, values["explanation"]),
        coverage=_optional(_coverage, values["coverage"]),
        kernels=_list(values["kernels"], "kernels", _kernels),
        environment=_mapping(values["environment"], "environment", _text),
        recorded_sha256=_optional(lambda value: _matching(_SHA256, value, "vectors_sha256"), values["vectors_sha256"]),
        created=_matching(_TIME, values["created"], "created"),
        reason=_text(values["reason"], "reason", least=1) if "reason" in values else None,
        defaults=_mapping(values["defaults"], "defaults", _value) if "defaults" in values else None,
    )
    _agrees(report.status, values["status"], "status")
    if (report.status == "not_run" and not report.reason) or (report.status == "passed" and report.reason):
        _refuse(f"status {report.status!r} does not fit reason {_shown(report.reason)}")
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


def _source(value: Any) -> dict[str, Any]:
    values = _object(value, ("uri", "sha256", "bytes"), "source")
    return {
        "uri": _optional(lambda uri: _text(uri, "source.uri"), values["uri"]),
        "sha256": _matching(_SHA256, values["sha256"], "source.sha256"),
        "bytes": _count(values["bytes"], "source.bytes", most=2**53),
    }


def read_leaves(value: Any) -> Leaves:
    """Parse the section ``leaves``.

    Raises:
        ZooError: the section is malformed or contradicts itself.
    """
    values = _object(value, ("compared", "missing", "extra", "differing", "passed"), "leaves")
    names = {key: _texts(values[key], f"leaves.{key}") for key in ("missing", "extra", "differing")}
    leaves = Leaves(_count(values["compared"], "leaves.compared"), **names)
    if len(leaves.missing) + len(leaves.differing) > leaves.compared:
        _refuse(f"more leaves are missing or differ than were compared ({leaves.compared})")
    _agrees(leaves.passed, values["passed"], "leaves.passed")
    return leaves


def _statements(value: Any) -> Statements:
    values = _object(value, ("contradictions", "unsaid", "passed"), "statements")
    statements = Statements(*(_texts(values[key], f"statements.{key}") for key in ("contradictions", "unsaid")))
    _agrees(statements.passed, values["passed"], "statements.passed")
    return statements


def _settings(value: Any) -> Settings:
    values = _object(value, ("seed", "max_error", "factor", "floor", "hyper", "behavior"), "settings")
    for key in ("max_error", "factor", "floor"):
        _size(values[key], f"settings.{key}", none=False)
    if isinstance(values["seed"], bool) or not isinstance(values["seed"], int) or abs(values["seed"]) > 2**63:
        _refuse(f"settings.seed is {_shown(values['seed'])}, not a 64-bit integer")
    for key in ("hyper", "behavior"):
        _mapping(values[key], f"settings.{key}", _plain)
    return Settings(**values)


def _checks(value: Any) -> list[Check]:
    checks = _list(value, "checks", _check)
    names = {name for check in checks for name in check.errors}
    settings = {(check.level, check.kind, check.name, check.kernels) for check in checks}
    if max(len(names), len(settings)) > MAX_NAMES:
        _refuse(f"the checks cover more than {MAX_NAMES} parameters or settings")
    return checks


def _check(value: Any, path: str) -> Check:
    keys = ("level", "dtype", "layout", "name", "steps", "errors", "kind", "broken", "by_step", "passed", "worst")
    values = _object(value, (*keys, "kernels"), path)
    level = _choice(values["level"], LEVELS, f"{path}.level")
    errors = _mapping(values["errors"], f"{path}.errors", _error)
    if not errors:
        _refuse(f"{path} compares nothing")
    if values["passed"] is False and not values["broken"] and all(error.passed for error in errors.values()):
        errors = {name: _beyond(error) for name, error in errors.items()}
    check = Check(
        level=level,
        dtype=_choice(values["dtype"], DTYPES, f"{path}.dtype"),
        layout=_choice(values["layout"], LAYOUTS if level == "step" else ("", *LAYOUTS), f"{path}.layout"),
        name=_text(values["name"], f"{path}.name"),
        steps=_count(values["steps"], f"{path}.steps", most=MAX_STEPS),
        errors=errors,
        kind=_choice(values["kind"], KINDS if level == "step" else ("",), f"{path}.kind"),
        broken=_texts(values["broken"], f"{path}.broken"),
        by_step=_list(values["by_step"], f"{path}.by_step", _infinite, most=MAX_STEPS),
        recorded_worst=_choice(values["worst"], tuple(errors), f"{path}.worst"),
        kernels=_choice(
            values["kernels"], ("", *DEVICES) if level in ("step", "trajectory") else ("",), f"{path}.kernels"
        ),
    )
    if check.by_step and len(check.by_step) != check.steps:
        _refuse(f"{path}.by_step has {len(check.by_step)} errors for {check.steps} steps")
    _agrees(check.passed, values["passed"], f"{path}.passed")
    # Numbers have four digits, so two near-equal errors may have swapped order.
    largest = max(errors, key=lambda name: errors[name].excess)
    if errors[check.worst].excess < 0.999 * errors[largest].excess:
        _refuse(f"{path}.worst is {_shown(check.worst)}, but the error of {_shown(largest)} is larger")
    return check


def _error(value: Any, path: str) -> Error:
    values = _object(value, ("error", "allowed", "ulps"), path)
    return Error(
        _infinite(values["error"], path), *(_size(values[key], f"{path}.{key}") for key in ("allowed", "ulps"))
    )


def _beyond(error: Error) -> Error:
    """``error``, moved past its bound if rounding to four digits made the two equal."""
    equal = error.allowed is not None and error.error == error.allowed > 0
    return Error(math.nextafter(error.error, math.inf), error.allowed, error.ulps) if equal else error


def _kernels(value: Any, path: str) -> Kernels:
    values = _object(value, ("device", "reason", "uncovered", "compared"), path)
    kernels = Kernels(
        _choice(values["device"], DEVICES, f"{path}.device"),
        _text(values["reason"], f"{path}.reason"),
        _texts(values["uncovered"], f"{path}.uncovered"),
    )
    _agrees(kernels.compared, values["compared"], f"{path}.compared")
    return kernels


def _quantity(value: Any, path: str) -> Quantity:
    keys = ("name", "dtype", "error", "allowed", "run", "layout", "case", "step")
    values = _object(value, keys, path)
    return Quantity(
        name=_text(values["name"], f"{path}.name"),
        dtype=_choice(values["dtype"], DTYPES, f"{path}.dtype"),
        error=_infinite(values["error"], f"{path}.error"),
        allowed=_size(values["allowed"], f"{path}.allowed"),
        run=_text(values["run"], f"{path}.run"),
        layout=_choice(values["layout"], LAYOUTS, f"{path}.layout"),
        case=_text(values["case"], f"{path}.case"),
        step=_count(values["step"], f"{path}.step"),
    )


def _control(value: Any, path: str) -> Control:
    values = _object(value, ("name", "fault", "status", "by", "case", "error", "allowed"), path)
    return Control(
        name=_text(values["name"], f"{path}.name"),
        fault=_text(values["fault"], f"{path}.fault"),
        status=_choice(values["status"], STATUSES, f"{path}.status"),
        by=_text(values["by"], f"{path}.by"),
        case=_text(values["case"], f"{path}.case"),
        error=_size(values["error"], f"{path}.error"),
        allowed=_size(values["allowed"], f"{path}.allowed"),
    )


def _explanation(value: Any) -> Explanation:
    keys = ("run", "dtype", "layout", "step", "case", "shape", "quantity", "meaning", "index", "ours", "theirs")
    values = _object(value, (*keys, "misfit", "off_in", "right_in", "chain", "kernels"), "explanation")
    texts = {key: _text(values[key], f"explanation.{key}") for key in ("run", "case", "quantity", "meaning")}
    chain = _list(values["chain"], "explanation.chain", _link)
    if not chain:
        _refuse("explanation.chain is empty")
    return Explanation(
        **texts,
        dtype=_choice(values["dtype"], DTYPES, "explanation.dtype"),
        layout=_choice(values["layout"], LAYOUTS, "explanation.layout"),
        step=_count(values["step"], "explanation.step"),
        shape=_list(values["shape"], "explanation.shape", _count),
        index=_list(values["index"], "explanation.index", _count),
        ours=_value(values["ours"], "explanation.ours"),
        theirs=_value(values["theirs"], "explanation.theirs"),
        misfit=_optional(lambda misfit: _text(misfit, "explanation.misfit"), values["misfit"]),
        off_in=_texts(values["off_in"], "explanation.off_in"),
        right_in=_texts(values["right_in"], "explanation.right_in"),
        chain=chain,
        kernels=_choice(values["kernels"], ("", *DEVICES), "explanation.kernels"),
    )


def _link(value: Any, path: str) -> Link:
    values = _object(value, ("quantity", "meaning", "error", "allowed"), path)
    return Link(
        quantity=_text(values["quantity"], f"{path}.quantity"),
        meaning=_text(values["meaning"], f"{path}.meaning"),
        error=_infinite(values["error"], f"{path}.error"),
        allowed=_infinite(values["allowed"], f"{path}.allowed"),
    )


def _coverage(value: Any) -> Coverage:
    values = _object(value, ("covered", "not_covered"), "coverage")
    return Coverage(
        _mapping(values["covered"], "coverage.covered", _texts),
        _texts(values["not_covered"], "coverage.not_covered"),
    )


# --- the values --------------------------------------------------------------------------------------------------


def _refuse(complaint: str) -> NoReturn:
    raise ZooError(f"parity.json is not a valid parity report: {complaint}.", HINT)


def _shown(value: Any) -> str:
    """A short printable form of any ``value``, for an error."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > 2**63:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _agrees(computed: object, stated: Any, path: str) -> None:
    if type(stated) is not type(computed) or stated != computed:
        _refuse(f"{path} is {_shown(stated)}, but the numbers in the file give {_shown(computed)}")


def _object(value: Any, keys: Sequence[str], path: str, optional: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{path} is {_shown(value)}, not an object")
    if unknown := [key for key in value if key not in keys and key not in optional]:
        _refuse(f"{path} has the unknown field {_shown(unknown[0])}")
    if missing := [key for key in keys if key not in value]:
        _refuse(f"{path} lacks {missing[0]}")
    return value


def _mapping(value: Any, path: str, item: Callable[[Any, str], T]) -> dict[str, T]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        _refuse(f"{path} is {_shown(value)}, not an object with at most {MAX_ENTRIES} fields")
    return {_text(key, path): item(each, f"a value of {path}") for key, each in value.items()}


def _list(value: Any, path: str, item: Callable[[Any, str], T], most: int = MAX_ENTRIES) -> list[T]:
    if not isinstance(value, (list, tuple)) or len(value) > most:
        _refuse(f"{path} is {_shown(value)}, not a list of at most {most} entries")
    return [item(each, f"{path}[{place}]") for place, each in enumerate(value)]


def _optional(item: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else item(value)


def _text(value: Any, path: str, least: int = 0) -> str:
    if not isinstance(value, str) or not least <= len(value) <= MAX_TEXT:
        _refuse(f"{path} is {_shown(value)}, not a string of at most {MAX_TEXT} characters")
    return value


def _texts(value: Any, path: str) -> list[str]:
    return _list(value, path, _text)


def _matching(pattern: re.Pattern[str], value: Any, path: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _refuse(f"{path} has the wrong form: {_shown(value)}")
    return value


def _choice(value: Any, known: Sequence[str], path: str) -> str:
    if not isinstance(value, str) or value not in known:
        _refuse(f"{path} is {_shown(value)}, which is not one of its known values")
    return value


def _count(value: Any, path: str, most: int = 10**9) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        _refuse(f"{path} is {_shown(value)}, not an integer from 0 to {most:,}")
    return value


def _value(value: Any, path: str) -> float:
    """A number; None, which stands for a non-finite number in the file, becomes NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e308:
        _refuse(f"{path} is {_shown(value)}, not a finite number")
    return float(value)


def _size(value: Any, path: str, *, none: bool = True) -> float | None:
    """A non-negative number, or None."""
    if value is None and none:
        return None
    if value is None or not (number := _value(value, path)) >= 0:
        _refuse(f"{path} is {_shown(value)}, not a non-negative number")
    return number


def _infinite(value: Any, path: str) -> float:
    """A non-negative number; None, which stands for a non-finite number in the file, becomes infinity."""
    number = _size(value, path)
    return math.inf if number is None else number


def _plain(value: Any, path: str, depth: int = 0) -> Any:
    """``value`` itself, if it is plain JSON with at most ``DEEPEST`` levels."""
    if depth > DEEPEST:
        _refuse(f"{path} has more than {DEEPEST} nested levels")
    if isinstance(value, (list, tuple)):
        return _list(value, path, lambda each, where: _plain(each, where, depth + 1))
    if isinstance(value, Mapping):
        return _mapping(value, path, lambda each, where: _plain(each, where, depth + 1))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _value(value, path)
    return value if value is None or isinstance(value, bool) else _text(value, path)
