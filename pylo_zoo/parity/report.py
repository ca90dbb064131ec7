"""What a parity run found: the records, the judgement, and their JSON (docs/parity.schema.json)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Version 2 lacks what is said of kernels: its checks ran the eager implementation."""
DIGITS = 4
"""Significant digits of an error in JSON."""


@dataclass(frozen=True)
class Leaves:
    """The source's leaves against the artifact's, bit for bit; paths joined by ``/``."""

    compared: int
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()
    differing: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not (self.missing or self.extra or self.differing)


@dataclass(frozen=True)
class Statements:
    """Architecture and behaviour against what the source's own files, or the registry of this file, say of them.

    ``unsaid`` are the fields, with their values, that neither says anything of: nothing can show that they are wrong.
    """

    contradictions: Sequence[str] = ()
    unsaid: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return not self.contradictions


@dataclass(frozen=True)
class Error:
    """How far apart the two sides are, and how far they may be.

    Attributes:
        error: in units of the update (of a parameter), or of the largest value (of any other quantity).
        allowed: in the same unit; None where the original's own float32 gives no number, so that nothing is compared.
        ulps: of a parameter, the error in units in the last place of its largest value.
    """

    error: float
    allowed: float | None
    ulps: float | None = None

    @property
    def passed(self) -> bool:
        return self.allowed is None or self.error <= self.allowed

    @property
    def excess(self) -> float:
        """The error for what is allowed, not a number being beyond everything."""
        if self.allowed is None:
            return 0.0
        if math.isnan(self.error):
            return math.inf
        return self.error / self.allowed if self.allowed else math.inf * self.error if self.error else 0.0


@dataclass(frozen=True)
class Check:
    """One comparison of numbers.

    Attributes:
        level: "network", "step" (single steps from synchronised states), "trajectory" (whole runs) or "original" (the
            reference against the group's own package).
        dtype: on both sides.
        layout: of the torch side's parameters; "" for a network.
        name: regime, option, flags or length.
        steps: how many were compared.
        errors: by output or parameter, the largest of any step.
        kind: of a step check, "regime", "options" or "flags".
        broken: intermediate quantities beyond their bounds, as "quantity of parameter".
        by_step: the largest error of any parameter after each step.
        recorded_worst: :attr:`worst` as a file has it, whose four digits may no longer tell it.
        kernels: device whose fused kernels stepped the torch side, such as "cpu"; "" for the eager implementation.
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
        """Where the error is largest for what is allowed there."""
        if self.recorded_worst is not None:
            return self.recorded_worst
        return max(self.errors, key=lambda name: self.errors[name].excess)

    @property
    def passed(self) -> bool:
        return self.steps > 0 and bool(self.errors) and not self.broken and all(e.passed for e in self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        found = {**asdict(self), "passed": self.passed, "worst": self.worst, "broken": list(self.broken)}
        del found["recorded_worst"]
        return found | {"errors": {name: asdict(error) for name, error in self.errors.items()}}


@dataclass(frozen=True)
class Quantity:
    """An intermediate quantity over all step checks of one dtype: where it came nearest to its bound."""

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
    """One quantity of the chain of an update, at one step of one parameter."""

    quantity: str
    meaning: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Explanation:
    """The first quantity that differs or, where none does, the one that came nearest to its bound.

    Attributes:
        run, dtype, layout, step: where; ``step`` is 0-based.
        kernels: device whose fused kernels stepped the torch side; "" for the eager implementation.
        case, shape: the parameter, ``""`` for what belongs to the run, and the shape of the quantity in JAX layout.
        quantity, meaning: the quantity.
        index: of the element that is off most, in JAX layout, behind the channel.
        ours, theirs: its two values.
        misfit: what is wrong besides numbers: state of another shape, or an exception.
        off_in, right_in: the parameters for which this quantity is off at this step, and those for which it is not.
        chain: every quantity of the parameter at this step, first things first.
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
    """A seeded fault, and whether this run would have caught it.

    Attributes:
        name, fault: what was planted.
        status: "caught", "missed" or "not applicable".
        by: the first quantity that showed it, or "leaves"; the reason, where it does not apply.
        case: the parameter in which it showed, and by how much, ``error`` against ``allowed``.
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
        uncovered: parameters that the kernels do not cover, so that the eager implementation steps them.
    """

    device: str
    reason: str = ""
    uncovered: Sequence[str] = ()

    @property
    def compared(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Coverage:
    """What was tried, by dimension, and what was not."""

    covered: Mapping[str, Sequence[str]]
    not_covered: Sequence[str]


@dataclass(frozen=True)
class Settings:
    """How the run was made; the same settings give the same report on the same platform."""

    seed: int
    max_error: float
    factor: float
    floor: float
    hyper: Mapping[str, Any] = field(default_factory=dict)
    behavior: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The judgement on one artifact. ``status`` is "passed", "failed" or "not_run", then with a ``reason``.

    ``fingerprint`` is that of the artifact (:attr:`pylo_zoo.artifact.Artifact.fingerprint`) that was judged;
    ``vectors`` is the content of the ``parity-vectors.safetensors`` that belongs to it; the JSON has its sha256,
    which a report that was read from there keeps as ``recorded_sha256``. ``defaults`` are the artifact's defaults at
    the time, which the fingerprint leaves out; None in a report of an older version.
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

    @staticmethod
    def from_dict(values: Any) -> Report:
        """The report whose :meth:`to_dict` gave ``values``, which may be anybody's.

        Raises:
            ZooError: they are no report, or contradict themselves (:func:`pylo_zoo.parity.reading.read`).
        """
        from pylo_zoo.parity.reading import read

        return read(values)

    @property
    def vectors_sha256(self) -> str | None:
        """sha256 of the vectors that belong to it; None without any."""
        return hashlib.sha256(self.vectors).hexdigest() if self.vectors else self.recorded_sha256

    @property
    def status(self) -> str:
        """One of "passed", "failed", or "not_run" where no numbers were compared."""
        right = all(each.passed for each in (self.leaves, self.statements, *self.checks))
        if not right or self.missed or self.untried:
            return "failed"
        return "passed" if self.checks else "not_run"

    @property
    def passed(self) -> bool:
        """Whether everything was compared and is right, planted faults caught included."""
        return self.status == "passed"

    @property
    def missed(self) -> list[Control]:
        """The planted faults that slipped through."""
        return [control for control in self.controls if control.status == "missed"]

    @property
    def untried(self) -> bool:
        """Whether everything is right, and no planted fault could be tried: such a run cannot fail."""
        none = bool(self.checks) and all(control.status == "not applicable" for control in self.controls)
        return none and all(each.passed for each in (self.leaves, self.statements, *self.checks))

    def of_level(self, level: str, kernels: str = "") -> list[Check]:
        """The checks of one level: of the eager implementation, or of the kernels of a device."""
        return [check for check in self.checks if check.level == level and check.kernels == kernels]

    @property
    def devices(self) -> list[str]:
        """The devices whose kernels were compared, after "" for the eager implementation."""
        return list(dict.fromkeys(["", *(check.kernels for check in self.checks)]))

    def worst_step(self, dtype: str) -> tuple[str, Error] | None:
        """Parameter and error of the largest single-step error of a parameter in ``dtype``; None without any."""
        found = [item for check in self.of_level("step") if check.dtype == dtype for item in check.errors.items()]
        compared = [item for item in found if item[1].allowed is not None]
        return max(compared, key=lambda item: item[1].error) if compared else None

    def to_dict(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        found = {
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
            found["defaults"] = dict(self.defaults)
        return _json(found | ({"reason": self.reason} if self.reason else {}))


def _json(value: Any) -> Any:
    """``value`` as JSON has it: lists for tuples, None for what is no finite number, errors to four digits."""
    if isinstance(value, Mapping):
        return {key: each if key in EXACT else _json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


EXACT = ("settings", "source", "defaults")
