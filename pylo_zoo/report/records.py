"""The records of a parity report, its verdict, and its JSON form (docs/parity.schema.json)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Version 2 has no fields about kernels: its checks ran the eager implementation only."""
DIGITS = 4
"""Significant digits of an error in JSON."""


@dataclass(frozen=True)
class Leaves:
    """Bitwise comparison of the source's leaves with the artifact's; paths are joined by ``/``."""

    compared: int
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()
    differing: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not (self.missing or self.extra or self.differing)


@dataclass(frozen=True)
class Statements:
    """Architecture and behavior compared with the source's own files and the registry entry.

    ``unsaid`` lists fields, with values, that neither of them states: no check can show that these are wrong.
    """

    contradictions: Sequence[str] = ()
    unsaid: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return not self.contradictions


@dataclass(frozen=True)
class Error:
    """The largest difference between the two sides, and its bound.

    Attributes:
        error: for a parameter, relative to the update; for any other quantity, relative to its largest value.
        allowed: the bound, in the same unit; None if the original's float32 result is not finite, so nothing is
            compared.
        ulps: the error of a parameter in units in the last place of its largest value.
    """

    error: float
    allowed: float | None
    ulps: float | None = None

    @property
    def passed(self) -> bool:
        return self.allowed is None or self.error <= self.allowed

    @property
    def excess(self) -> float:
        """The error divided by its bound; infinite for NaN."""
        if self.allowed is None:
            return 0.0
        if math.isnan(self.error):
            return math.inf
        return self.error / self.allowed if self.allowed else math.inf * self.error if self.error else 0.0


@dataclass(frozen=True)
class Check:
    """One comparison of the two sides.

    Attributes:
        level: "network", "step" (single steps from synchronized states), "trajectory" (whole runs) or "original" (the
            reference against the group's own package).
        dtype: dtype of both sides.
        layout: layout of the torch side's parameters; "" for a network.
        name: the regime, option, flags or length.
        steps: number of compared steps.
        errors: largest error over all steps, by output or parameter.
        kind: for a step check, "regime", "options" or "flags".
        broken: intermediate quantities beyond their bounds, as "quantity of parameter".
        by_step: the largest error of any parameter after each step.
        recorded_worst: :attr:`worst` as stored in a file, whose numbers are rounded to four digits.
        kernels: device whose fused kernels ran the torch side, such as "cpu"; "" for the eager implementation.
    """

    level: str
    dtype: str
    layout: str
    name: str
    steps: int
    errors: Mapping[str, Error]
    kind: str = ""
    broken: Sequence[str] = ()
    by_step: Sequence[float] = ()
    recorded_worst: str | None = field(default=None, repr=False)
    kernels: str = ""

    @property
    def worst(self) -> str:
        """The output or parameter whose error is largest relative to its bound."""
        if self.recorded_worst is not None:
            return self.recorded_worst
        return max(self.errors, key=lambda name: self.errors[name].excess)

    @property
    def passed(self) -> bool:
        return self.steps > 0 and bool(self.errors) and not self.broken and all(e.passed for e in self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "passed": self.passed, "worst": self.worst, "broken": list(self.broken)}
        del values["recorded_worst"]
        return values | {"errors": {name: asdict(error) for name, error in self.errors.items()}}


@dataclass(frozen=True)
class Quantity:
    """The error of an intermediate quantity that came nearest to its bound, over all step checks of one dtype."""

    name: str
    dtype: str
    error: float
    allowed: float | None
    run: str
    layout: str
    case: str
    step: int


@dataclass(frozen=True)
class Link:
    """One quantity in the chain of an update, for one parameter at one step."""

    quantity: str
    meaning: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Explanation:
    """The first quantity that differs or, if none does, the one that came nearest to its bound.

    Attributes:
        run, dtype, layout, step: the step check and its step, counted from 0.
        kernels: device whose fused kernels ran the torch side; "" for the eager implementation.
        case, shape: the parameter, or ``""`` for a quantity of the run, and the quantity's shape in JAX layout.
        quantity, meaning: the quantity's name and description.
        index: index of the element with the largest error: channel first, then JAX layout.
        ours, theirs: its two values.
        misfit: a difference that is not numeric: a missing value, another shape, or an exception.
        off_in, right_in: the parameters for which this quantity is beyond or within its bound at this step.
        chain: every quantity of the parameter at this step, in the order of computation.
    """

    run: str
    dtype: str
    layout: str
    step: int
    case: str
    shape: Sequence[int]
    quantity: str
    meaning: str
    index: Sequence[int]
    ours: float
    theirs: float
    misfit: str | None
    off_in: Sequence[str]
    right_in: Sequence[str]
    chain: Sequence[Link]
    kernels: str = ""

    @property
    def failed(self) -> bool:
        """Whether the quantity is beyond its bound."""
        return any(link.quantity == self.quantity and not link.passed for link in self.chain)


@dataclass(frozen=True)
class Control:
    """A planted fault, and whether the comparison caught it.

    Attributes:
        name, fault: name and description of the fault.
        status: "caught", "missed" or "not applicable".
        by: the first quantity that showed the fault, or "leaves"; the reason if the fault is not applicable.
        case: the parameter in which the fault showed.
        error, allowed: the error there and its bound.
    """

    name: str
    fault: str
    status: str
    by: str
    case: str = ""
    error: float | None = None
    allowed: float | None = None


@dataclass(frozen=True)
class Kernels:
    """Whether the fused kernels of one kind of device were compared.

    Attributes:
        device: "cpu" or "cuda".
        reason: why they were not compared; "" if they were.
        uncovered: parameters that the kernels do not cover and the eager implementation updates instead.
    """

    device: str
    reason: str = ""
    uncovered: Sequence[str] = ()

    @property
    def compared(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Coverage:
    """What the run covered, by dimension, and what it did not cover."""

    covered: Mapping[str, Sequence[str]]
    not_covered: Sequence[str]


@dataclass(frozen=True)
class Settings:
    """Settings of the run; the same settings on the same platform produce the same report."""

    seed: int
    max_error: float
    factor: float
    floor: float
    hyper: Mapping[str, Any] = field(default_factory=dict)
    behavior: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The parity result for one artifact, written to ``parity.json``.

    Attributes:
        fingerprint: :attr:`pylo_zoo.artifact.Artifact.fingerprint` of the compared artifact.
        vectors: content of ``parity-vectors.safetensors``; the JSON holds its sha256 only.
        recorded_sha256: that sha256, in a report that was read from JSON.
        defaults: the artifact's defaults at the time, which the fingerprint does not cover; None in older reports.
        newton_schulz: precision of Newton–Schulz in the float32 checks, by "eager" or the kernels' device; None if the
            rule does not orthogonalize, and in older reports.
        reason: why ``status`` is "not_run"; None otherwise.
    """

    name: str
    family: str
    source: Mapping[str, Any]
    fingerprint: str
    leaves: Leaves
    statements: Statements
    settings: Settings | None = None
    checks: Sequence[Check] = ()
    quantities: Sequence[Quantity] = ()
    controls: Sequence[Control] = ()
    explanation: Explanation | None = None
    coverage: Coverage | None = None
    kernels: Sequence[Kernels] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    vectors: bytes | None = field(default=None, repr=False)
    created: str = ""
    reason: str | None = None
    recorded_sha256: str | None = field(default=None, repr=False)
    defaults: Mapping[str, float] | None = None
    newton_schulz: Mapping[str, str] | None = None

    @property
    def vectors_sha256(self) -> str | None:
        """sha256 of the report's vectors; None if it has none."""
        return hashlib.sha256(self.vectors).hexdigest() if self.vectors else self.recorded_sha256

    @property
    def status(self) -> str:
        """One of "passed", "failed", or "not_run" if no numbers were compared."""
        if not self.comparisons_passed or self.missed or self.untried:
            return "failed"
        return "passed" if self.checks else "not_run"

    @property
    def comparisons_passed(self) -> bool:
        """Whether every comparison that ran passed, planted faults aside."""
        return all(each.passed for each in (self.leaves, self.statements, *self.checks))

    @property
    def passed(self) -> bool:
        """Whether every comparison ran and passed, and every applicable planted fault was caught."""
        return self.status == "passed"

    @property
    def missed(self) -> list[Control]:
        """The planted faults that the comparisons did not catch."""
        return [control for control in self.controls if control.status == "missed"]

    @property
    def untried(self) -> bool:
        """Whether every comparison passed but no planted fault applied: such a proof could not have failed."""
        none_applied = bool(self.checks) and all(control.status == "not applicable" for control in self.controls)
        return none_applied and self.comparisons_passed

    def of_level(self, level: str, kernels: str = "") -> list[Check]:
        """The checks of one level that ran the eager implementation, or the kernels of one device."""
        return [check for check in self.checks if check.level == level and check.kernels == kernels]

    @property
    def devices(self) -> list[str]:
        """The empty string for the eager implementation, then the devices whose kernels were compared."""
        return list(dict.fromkeys(["", *(check.kernels for check in self.checks)]))

    def worst_step(self, dtype: str) -> tuple[str, Error] | None:
        """The parameter with the largest single-step error in ``dtype``, and that error; None if none was compared."""
        errors = [item for check in self.of_level("step") if check.dtype == dtype for item in check.errors.items()]
        compared = [item for item in errors if item[1].allowed is not None]
        return max(compared, key=lambda item: item[1].error) if compared else None

    def to_dict(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        values = {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "name": self.name,
            "family": self.family,
            "source": dict(self.source),
            "fingerprint": self.fingerprint,
            "leaves": {**asdict(self.leaves), "passed": self.leaves.passed},
            "statements": {**asdict(self.statements), "passed": self.statements.passed},
            "settings": asdict(self.settings) if self.settings else None,
            "checks": [each.to_dict() for each in self.checks],
            "quantities": [asdict(each) for each in self.quantities],
            "controls": [asdict(each) for each in self.controls],
            "explanation": asdict(self.explanation) if self.explanation else None,
            "coverage": asdict(self.coverage) if self.coverage else None,
            "kernels": [{**asdict(each), "compared": each.compared} for each in self.kernels],
            "environment": dict(self.environment),
            "vectors_sha256": self.vectors_sha256,
            "created": self.created,
        }
        if self.defaults is not None:
            values["defaults"] = dict(self.defaults)
        if self.newton_schulz is not None:
            values["newton_schulz"] = dict(self.newton_schulz)
        return _json(values | ({"reason": self.reason} if self.reason else {}))


def _json(value: Any) -> Any:
    """``value`` for JSON: tuples become lists, non-finite numbers None, and floats have four significant digits."""
    if isinstance(value, Mapping):
        return {key: each if key in UNROUNDED else _json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


UNROUNDED = ("settings", "source", "defaults")
"""Fields whose numbers are written in full."""
