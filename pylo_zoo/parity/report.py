"""What a parity run found: the judgement, its JSON and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

SCHEMA_VERSION = 1

FORWARD_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""Largest error of a network's output, relative to its largest value: some hundred roundings deep."""

TRAJECTORY_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
"""Largest error of a parameter, relative to its largest movement over the ten steps, beyond ``ROUNDING_FLOOR``.

float32: what the golden trajectories of the original code allow. float64: a wrong axis, epsilon or order costs at least
1e-8 of an update; rounding, amplified by Newton–Schulz and ReLU kinks over ten steps, stays some orders below.
"""

LEGEND = (
    "torch, jax: how the parameters are laid out. ordinary, mixed: the gradients; mixed\n"
    "has zeros and spikes. Errors are relative to the largest output or, in ten-step\n"
    "trajectories, to how far the parameter moved; worst at names the output or shape."
)

ROUNDING_FLOOR = 4
"""Roundings of the parameter itself that are allowed besides: a small step of a large value is kept no better."""


@dataclass(frozen=True)
class Leaves:
    """Level 1: the source's leaves against the artifact's, bit for bit; paths joined by ``/``."""

    compared: int
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()
    differing: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not (self.missing or self.extra or self.differing)


@dataclass(frozen=True)
class Statements:
    """Architecture and behaviour against what the source's own files, or the registry of this file, say of them."""

    contradictions: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return not self.contradictions


@dataclass(frozen=True)
class Check:
    """One comparison of numbers.

    Attributes:
        level: what was compared.
        dtype: on both sides.
        variant: layout and gradients, or inputs.
        errors: by output or parameter, how far the two sides are apart and how far they may be, in the same unit.
    """

    level: str
    dtype: str
    variant: str
    errors: Mapping[str, tuple[float, float]]

    @property
    def worst(self) -> str:
        """Where the error is largest for what is allowed there."""
        return max(self.errors, key=lambda name: self.errors[name][0] / self.errors[name][1])

    @property
    def passed(self) -> bool:
        return bool(self.errors) and all(error <= allowed for error, allowed in self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        errors = {
            name: {"error": error if math.isfinite(error) else None, "allowed": allowed}  # JSON has no infinity
            for name, (error, allowed) in self.errors.items()
        }
        what = {"level": self.level, "dtype": self.dtype, "variant": self.variant}
        return {**what, "passed": self.passed, "worst": self.worst, "errors": errors}


@dataclass(frozen=True)
class Report:
    """The judgement on one artifact. ``status`` is "passed", "failed" or "not_run", then with a ``reason``.

    ``fingerprint`` is that of the artifact (:attr:`pylo_zoo.artifact.Artifact.fingerprint`) that was judged.
    """

    name: str
    family: str
    source: Mapping[str, Any]
    fingerprint: str
    leaves: Leaves
    statements: Statements
    checks: Sequence[Check] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    reason: str | None = None

    @property
    def status(self) -> str:
        if not all(each.passed for each in (self.leaves, self.statements, *self.checks)):
            return "failed"
        return "passed" if self.checks else "not_run"

    @property
    def passed(self) -> bool:
        return self.status == "passed"

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
            "checks": [each.to_dict() for each in self.checks],
            "environment": dict(self.environment),
            "created": self.created,
        }
        return {**found, "reason": self.reason} if self.reason else found

    def render(self, console: Console) -> None:
        """Print the table: a line a check, the verdict below."""
        table = Table(
            title=f"Parity of {self.name} ({self.family}) with its JAX original",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for column in ("check", "dtype", "variant", "worst at"):
            table.add_column(column)
        for column in ("error", "allowed"):
            table.add_column(column, justify="right")
        table.add_column("")
        broken = [*self.leaves.missing, *self.leaves.extra, *self.leaves.differing]
        where = f"{broken[0]}" if broken else f"{self.leaves.compared} leaves"
        table.add_row(
            "leaves", "", "bit for bit", where, f"{len(broken)} off", "none off", _verdict(self.leaves.passed)
        )
        table.add_row(
            "behaviour",
            "",
            "as its files say",
            "",
            f"{len(self.statements.contradictions)} off",
            "none off",
            _verdict(self.statements.passed),
        )
        for each in self.checks:
            numbers = (f"{value:.1e}" for value in each.errors[each.worst])
            table.add_row(each.level, each.dtype, each.variant, each.worst, *numbers, _verdict(each.passed))
        console.print(table)
        if self.checks:
            console.print(LEGEND)
        for contradiction in self.statements.contradictions:
            console.print(Text(contradiction, style="red"))
        if self.reason:
            console.print(Text(f"parity: not checked, {self.reason}"))
        else:
            console.print(Text(f"parity: {self.status}", style="green" if self.passed else "red"))


def _verdict(passed: bool) -> Text:
    return Text("ok", style="green") if passed else Text("FAILED", style="bold red")
