"""``parity.json`` back into a :class:`~pylo_zoo.parity.report.Report`; it may be a stranger's, so all is checked.

What is stated beside the numbers (``status``, ``passed``, ``worst``) is worked out again; a file that says something
else than its own numbers is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pylo_zoo.errors import ZooError
from pylo_zoo.parity.report import (
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

MOST = 2_000
"""Entries of a list; a real report has a hundred checks and as many quantities."""
MOST_NAMES = 200
"""Different parameters and outputs, and different settings of checks: pages have a cell for each pair of them."""
MOST_STEPS = 100_000
MOST_TEXT = 10_000
DEEPEST = 6
HINT = "Fetch the artifact again, or prove it again with `pylo-zoo verify`."

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


def read(values: Any) -> Report:
    """The report that ``values``, the content of ``parity.json``, is of; ``vectors`` are None.

    Raises:
        ZooError: it is no such content, of another version, larger than any report, or contradicts itself.
    """
    if isinstance(values, dict) and values.get("schema_version") not in READABLE_VERSIONS:
        version = _shown(values.get("schema_version"))
        raise ZooError(
            f"parity.json has schema_version {version}, not {SCHEMA_VERSION}.", "Update pylo-zoo, or prove it again."
        )
    found = _object(_current(values), KEYS, "it", optional=("reason", "defaults"))
    report = Report(
        name=_text(found["name"], "name"),
        family=_text(found["family"], "family"),
        source=_source(found["source"]),
        fingerprint=_matching(_SHA256, found["fingerprint"], "fingerprint"),
        leaves=read_leaves(found["leaves"]),
        statements=_statements(found["statements"]),
        settings=_optional(_settings, found["settings"]),
        checks=_checks(found["checks"]),
        quantities=_list(found["quantities"], "quantities", _quantity),
        controls=_list(found["controls"], "controls", _control),
        explanation=_optional(_explanation, found["explanation"]),
        coverage=_optional(_coverage, found["coverage"]),
        kernels=_list(found["kernels"], "kernels", _kernels),
        environment=_mapping(found["environment"], "environment", _text),
        recorded_sha256=_optional(lambda value: _matching(_SHA256, value, "vectors_sha256"), found["vectors_sha256"]),
        created=_matching(_TIME, found["created"], "created"),
        reason=_text(found["reason"], "reason", least=1) if "reason" in found else None,
        defaults=_mapping(found["defaults"], "defaults", _value) if "defaults" in found else None,
    )
    _agrees(report.status, found["status"], "status")
    if (report.status == "not_run" and not report.reason) or (report.status == "passed" and report.reason):
        _refuse(f"its status is {report.status!r}, and its reason {_shown(report.reason)}")
    return report


def _current(values: Any) -> Any:
    """A report of an older version with what it lacks, in the present form; its own fields are not checked here."""
    if not isinstance(values, dict) or values["schema_version"] == SCHEMA_VERSION:
        return values
    found = {"kernels": [], **values}
    if isinstance(values.get("checks"), list):
        found["checks"] = [{"kernels": "", **each} if isinstance(each, dict) else each for each in values["checks"]]
    if isinstance(values.get("explanation"), dict):
        found["explanation"] = {"kernels": "", **values["explanation"]}
    return found


# --- the records -------------------------------------------------------------------------------------------------


def _source(value: Any) -> dict[str, Any]:
    found = _object(value, ("uri", "sha256", "bytes"), "source")
    return {
        "uri": _optional(lambda uri: _text(uri, "source.uri"), found["uri"]),
        "sha256": _matching(_SHA256, found["sha256"], "source.sha256"),
        "bytes": _count(found["bytes"], "source.bytes", most=2**53),
    }


def read_leaves(value: Any) -> Leaves:
    """The section ``leaves``, checked.

    Raises:
        ZooError: it is none.
    """
    found = _object(value, ("compared", "missing", "extra", "differing", "passed"), "leaves")
    names = {key: _texts(found[key], f"leaves.{key}") for key in ("missing", "extra", "differing")}
    leaves = Leaves(_count(found["compared"], "leaves.compared"), **names)
    if len(leaves.missing) + len(leaves.differing) > leaves.compared:
        _refuse("more leaves are off than were compared")
    _agrees(leaves.passed, found["passed"], "leaves.passed")
    return leaves


def _statements(value: Any) -> Statements:
    found = _object(value, ("contradictions", "unsaid", "passed"), "statements")
    statements = Statements(*(_texts(found[key], f"statements.{key}") for key in ("contradictions", "unsaid")))
    _agrees(statements.passed, found["passed"], "statements.passed")
    return statements


def _settings(value: Any) -> Settings:
    found = _object(value, ("seed", "max_error", "factor", "floor", "hyper", "behavior"), "settings")
    for key in ("max_error", "factor", "floor"):
        _size(found[key], f"settings.{key}", none=False)
    if isinstance(found["seed"], bool) or not isinstance(found["seed"], int) or abs(found["seed"]) > 2**63:
        _refuse(f"settings.seed is {_shown(found['seed'])}")
    for key in ("hyper", "behavior"):
        _mapping(found[key], f"settings.{key}", _plain)
    return Settings(**found)


def _checks(value: Any) -> list[Check]:
    checks = _list(value, "checks", _check)
    names = {name for check in checks for name in check.errors}
    settings = {(check.level, check.kind, check.name, check.kernels) for check in checks}
    if max(len(names), len(settings)) > MOST_NAMES:
        _refuse(f"its checks are of more than {MOST_NAMES} parameters or settings")
    return checks


def _check(value: Any, what: str) -> Check:
    keys = ("level", "dtype", "layout", "name", "steps", "errors", "kind", "broken", "by_step", "passed", "worst")
    found = _object(value, (*keys, "kernels"), what)
    level = _choice(found["level"], LEVELS, f"{what}.level")
    errors = _mapping(found["errors"], f"{what}.errors", _error)
    if not errors:
        _refuse(f"{what} compares nothing")
    if found["passed"] is False and not found["broken"] and all(error.passed for error in errors.values()):
        errors = {name: _beyond(error) for name, error in errors.items()}
    check = Check(
        level=level,
        dtype=_choice(found["dtype"], DTYPES, f"{what}.dtype"),
        layout=_choice(found["layout"], LAYOUTS if level == "step" else ("", *LAYOUTS), f"{what}.layout"),
        name=_text(found["name"], f"{what}.name"),
        steps=_count(found["steps"], f"{what}.steps", most=MOST_STEPS),
        errors=errors,
        kind=_choice(found["kind"], KINDS if level == "step" else ("",), f"{what}.kind"),
        broken=_texts(found["broken"], f"{what}.broken"),
        by_step=_list(found["by_step"], f"{what}.by_step", _infinite, most=MOST_STEPS),
        recorded_worst=_choice(found["worst"], tuple(errors), f"{what}.worst"),
        kernels=_choice(
            found["kernels"], ("", *DEVICES) if level in ("step", "trajectory") else ("",), f"{what}.kernels"
        ),
    )
    if check.by_step and len(check.by_step) != check.steps:
        _refuse(f"{what} has {check.steps} steps and {len(check.by_step)} errors by step")
    _agrees(check.passed, found["passed"], f"{what}.passed")
    # Four digits leave open which of two is larger; what is plainly not the largest is a contradiction.
    largest = max(error.excess for error in errors.values())
    _agrees(errors[check.worst].excess >= 0.999 * largest, True, f"{what}.worst")
    return check


def _error(value: Any, what: str) -> Error:
    found = _object(value, ("error", "allowed", "ulps"), what)
    return Error(_infinite(found["error"], what), *(_size(found[key], f"{what}.{key}") for key in ("allowed", "ulps")))


def _beyond(error: Error) -> Error:
    """``error``, which failed before both its numbers were cut to the same four digits, beyond its bound again."""
    same = error.allowed is not None and error.error == error.allowed > 0
    return Error(math.nextafter(error.error, math.inf), error.allowed, error.ulps) if same else error


def _kernels(value: Any, what: str) -> Kernels:
    found = _object(value, ("device", "reason", "uncovered", "compared"), what)
    kernels = Kernels(
        _choice(found["device"], DEVICES, f"{what}.device"),
        _text(found["reason"], f"{what}.reason"),
        _texts(found["uncovered"], f"{what}.uncovered"),
    )
    _agrees(kernels.compared, found["compared"], f"{what}.compared")
    return kernels


def _quantity(value: Any, what: str) -> Quantity:
    keys = ("name", "dtype", "error", "allowed", "run", "layout", "case", "step")
    found = _object(value, keys, what)
    return Quantity(
        name=_text(found["name"], f"{what}.name"),
        dtype=_choice(found["dtype"], DTYPES, f"{what}.dtype"),
        error=_infinite(found["error"], f"{what}.error"),
        allowed=_size(found["allowed"], f"{what}.allowed"),
        run=_text(found["run"], f"{what}.run"),
        layout=_choice(found["layout"], LAYOUTS, f"{what}.layout"),
        case=_text(found["case"], f"{what}.case"),
        step=_count(found["step"], f"{what}.step"),
    )


def _control(value: Any, what: str) -> Control:
    found = _object(value, ("name", "fault", "status", "by", "case", "error", "allowed"), what)
    return Control(
        name=_text(found["name"], f"{what}.name"),
        fault=_text(found["fault"], f"{what}.fault"),
        status=_choice(found["status"], STATUSES, f"{what}.status"),
        by=_text(found["by"], f"{what}.by"),
        case=_text(found["case"], f"{what}.case"),
        error=_size(found["error"], f"{what}.error"),
        allowed=_size(found["allowed"], f"{what}.allowed"),
    )


def _explanation(value: Any) -> Explanation:
    keys = ("run", "dtype", "layout", "step", "case", "shape", "quantity", "meaning", "index", "ours", "theirs")
    found = _object(value, (*keys, "misfit", "off_in", "right_in", "chain", "kernels"), "explanation")
    texts = {key: _text(found[key], f"explanation.{key}") for key in ("run", "case", "quantity", "meaning")}
    chain = _list(found["chain"], "explanation.chain", _link)
    if not chain:
        _refuse("explanation.chain is empty")
    return Explanation(
        **texts,
        dtype=_choice(found["dtype"], DTYPES, "explanation.dtype"),
        layout=_choice(found["layout"], LAYOUTS, "explanation.layout"),
        step=_count(found["step"], "explanation.step"),
        shape=_list(found["shape"], "explanation.shape", _count),
        index=_list(found["index"], "explanation.index", _count),
        ours=_value(found["ours"], "explanation.ours"),
        theirs=_value(found["theirs"], "explanation.theirs"),
        misfit=_optional(lambda misfit: _text(misfit, "explanation.misfit"), found["misfit"]),
        off_in=_texts(found["off_in"], "explanation.off_in"),
        right_in=_texts(found["right_in"], "explanation.right_in"),
        chain=chain,
        kernels=_choice(found["kernels"], ("", *DEVICES), "explanation.kernels"),
    )


def _link(value: Any, what: str) -> Link:
    found = _object(value, ("quantity", "meaning", "error", "allowed"), what)
    return Link(
        quantity=_text(found["quantity"], f"{what}.quantity"),
        meaning=_text(found["meaning"], f"{what}.meaning"),
        error=_infinite(found["error"], f"{what}.error"),
        allowed=_infinite(found["allowed"], f"{what}.allowed"),
    )


def _coverage(value: Any) -> Coverage:
    found = _object(value, ("covered", "not_covered"), "coverage")
    return Coverage(
        _mapping(found["covered"], "coverage.covered", _texts),
        _texts(found["not_covered"], "coverage.not_covered"),
    )


# --- the values --------------------------------------------------------------------------------------------------


def _refuse(complaint: str) -> NoReturn:
    raise ZooError(f"parity.json is no report of pylo-zoo's: {complaint}.", HINT)


def _shown(value: Any) -> str:
    """``value`` in an error: short, whatever it is."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > 2**63:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _agrees(worked_out: object, stated: Any, what: str) -> None:
    if type(stated) is not type(worked_out) or stated != worked_out:
        _refuse(f"{what} is {_shown(stated)}, and its own numbers say otherwise")


def _object(value: Any, keys: Sequence[str], what: str, optional: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{what} is {_shown(value)}")
    if unknown := [key for key in value if key not in keys and key not in optional]:
        _refuse(f"{what} has the unknown field {_shown(unknown[0])}")
    if missing := [key for key in keys if key not in value]:
        _refuse(f"{what} lacks {missing[0]}")
    return value


def _mapping(value: Any, what: str, item: Callable[[Any, str], T]) -> dict[str, T]:
    if not isinstance(value, dict) or len(value) > MOST:
        _refuse(f"{what} is {_shown(value)}, not an object of at most {MOST} fields")
    return {_text(key, what): item(each, f"a value of {what}") for key, each in value.items()}


def _list(value: Any, what: str, item: Callable[[Any, str], T], most: int = MOST) -> list[T]:
    if not isinstance(value, (list, tuple)) or len(value) > most:
        _refuse(f"{what} is {_shown(value)}, not a list of at most {most}")
    return [item(each, f"{what}[{place}]") for place, each in enumerate(value)]


def _optional(item: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else item(value)


def _text(value: Any, what: str, least: int = 0) -> str:
    if not isinstance(value, str) or not least <= len(value) <= MOST_TEXT:
        _refuse(f"{what} is {_shown(value)}, not a text of at most {MOST_TEXT} characters")
    return value


def _texts(value: Any, what: str) -> list[str]:
    return _list(value, what, _text)


def _matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _refuse(f"{what} is {_shown(value)}")
    return value


def _choice(value: Any, known: Sequence[str], what: str) -> str:
    if not isinstance(value, str) or value not in known:
        _refuse(f"{what} is {_shown(value)}")
    return value


def _count(value: Any, what: str, most: int = 10**9) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        _refuse(f"{what} is {_shown(value)}, not a whole number from 0 to {most:,}")
    return value


def _value(value: Any, what: str) -> float:
    """A number; None, which JSON has for what is not finite, as NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e308:
        _refuse(f"{what} is {_shown(value)}, not a finite number")
    return float(value)


def _size(value: Any, what: str, *, none: bool = True) -> float | None:
    """A number from zero, or None."""
    if value is None and none:
        return None
    if value is None or not (found := _value(value, what)) >= 0:
        _refuse(f"{what} is {_shown(value)}, not a number from zero")
    return found


def _infinite(value: Any, what: str) -> float:
    """A number from zero; None, which JSON has for what is not finite, as infinity."""
    found = _size(value, what)
    return math.inf if found is None else found


def _plain(value: Any, what: str, depth: int = 0) -> Any:
    """``value`` itself, if it is plain JSON of a modest depth."""
    if depth > DEEPEST:
        _refuse(f"{what} is nested too deep")
    if isinstance(value, (list, tuple)):
        return _list(value, what, lambda each, where: _plain(each, where, depth + 1))
    if isinstance(value, Mapping):
        return _mapping(value, what, lambda each, where: _plain(each, where, depth + 1))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _value(value, what)
    return value if value is None or isinstance(value, bool) else _text(value, what)
