"""The complete proof: all comparisons and planted faults for one artifact, collected in one report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pylo_zoo import config, converters, formats
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import contradictions, unstated
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import (
    completeness,
    controls,
    devices,
    explain,
    forward,
    kernel_faults,
    leaves,
    live,
    plan,
    steps,
    trajectory,
    vectors,
)
from pylo_zoo.parity.coverage import coverage
from pylo_zoo.parity.jax_mode import jax_is_missing
from pylo_zoo.parity.quantities import PARAMETER, order
from pylo_zoo.parity.sides import one_thread
from pylo_zoo.parity.theta import read_theta
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Check, Error, Quantity, Report, Settings, Statements

SEED = 0
Progress = Callable[[str, int, int], None]
"""Called with the current task, the number of finished parts, and their total."""


def silent(task: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


def verify(
    artifact: Artifact,
    source: Path,
    *,
    seed: int = SEED,
    max_error: float = bounds.MAX_ERROR,
    progress: Progress | None = None,
) -> Report:
    """Prove or disprove that ``artifact`` computes in torch what the checkpoint ``source`` computes in JAX.

    Args:
        artifact: the torch side.
        source: the original checkpoint file.
        seed: seed of all random numbers.
        max_error: largest allowed float64 error of a single step, relative to the update.
        progress: called before each part of the proof.

    Returns:
        The report. Without JAX, or for a family without a reference, it is "not_run" with a reason and covers only
        leaves and statements.

    Raises:
        ZooError: ``source`` cannot be read, or is not the file that the artifact was converted from.
    """
    read = formats.read(source)
    if read.sha256 != artifact.source.sha256:
        raise ZooError(
            f"{source} is not the file that {artifact.name} was converted from "
            f"(sha256 {read.sha256[:12]}…, not {artifact.source.sha256[:12]}…).",
            "Pass the original with --source.",
        )
    report = without_jax(artifact, read, reason="jax and flax are not installed")
    if converters.get(artifact.family).reference is None:
        return replace(report, reason=f"the family {artifact.family} has no JAX reference")
    if jax_is_missing():
        return report
    if nonfinite := artifact.source.layout.get("nonfinite"):
        reason = f"the checkpoint contains NaN or infinite values ({', '.join(nonfinite[:4])})"
        return replace(report, reason=reason)
    with one_thread():
        return _proof(report, artifact, read, seed, max_error, progress or silent)


def without_jax(artifact: Artifact, read: formats.Source, reason: str) -> Report:
    """A "not_run" report with the checks that need no reference: leaves and statements."""
    return Report(
        name=artifact.name,
        family=artifact.family,
        source={"uri": artifact.source.uri, "sha256": read.sha256, "bytes": read.bytes},
        fingerprint=artifact.fingerprint,
        defaults=dict(artifact.defaults),
        leaves=leaves.check_leaves(artifact, read),
        statements=Statements(contradictions(artifact, read), unstated(artifact, read)),
        environment=environment(),
        created=now(),
        reason=reason,
    )


def _proof(
    report: Report, artifact: Artifact, read: formats.Source, seed: int, max_error: float, progress: Progress
) -> Report:
    theta, runs = read_theta(artifact, read), list(plan.plan(artifact))
    kernels = devices.kernels_of(artifact)
    fused = [each.device for each in kernels if each.compared]
    parts = iter(range(len(runs) + len(trajectory.WHOLE_RUNS) + 2))
    total = len(runs) + len(trajectory.WHOLE_RUNS) + 2

    progress("the network", next(parts), total)
    network = forward.probe(artifact, theta, seed)
    checks = [*forward.checks(artifact, network)]
    comparisons: list[steps.StepComparison] = []
    references: dict[str, steps.ReferenceRun] = {}
    quantities = Tally()
    for run in runs:
        progress(f"single steps: {run.name}", next(parts), total)
        reference = steps.run_reference(artifact, theta, run, seed)
        if run.kind == "regime" or run.name.partition(":")[0] == plan.BELOW:
            references[run.name] = reference
        for dtype, layout, device in steps.all_sides(run, fused):
            comparison = steps.compare(artifact, reference, dtype, layout, max_error, device)
            checks.append(step_check(comparison))
            quantities.add(comparison)
            comparisons.append(comparison)
    originals = []
    for planned in trajectory.WHOLE_RUNS:
        progress(f"whole runs: {planned.name}", next(parts), total)
        originals.append(trajectory.original(artifact, theta, planned, seed))
        checks += trajectory.checks(artifact, originals[-1], devices=fused)
    original_check = live.live(artifact, theta, seed)
    checks += [original_check] if isinstance(original_check, Check) else []
    progress("planted faults", next(parts), total)
    right = all(check.passed for check in checks)
    planted = [*controls.run(artifact, read, references, right=right)]
    planted += controls.by_level(artifact, read, network, references["ordinary"], originals[0], step_check, right=right)
    for device in fused:
        planted += kernel_faults.run(artifact, device, references, right=right)
    completeness.check(checks, planted, fused, max_error)
    kernels = [replace(each, uncovered=devices.uncovered(each.device, comparisons)) for each in kernels]
    progress("done", total, total)
    hyper = dict(converters.get(artifact.family).parity_hyper)
    not_covered = [
        f"behavior that neither the source's files nor the registry state: {each}" for each in report.statements.unsaid
    ]
    not_covered += [original_check] if isinstance(original_check, str) else []
    not_covered += [f"fused kernels on {each.device}: {each.reason}" for each in kernels if not each.compared]
    return replace(
        report,
        settings=Settings(seed, max_error, bounds.FACTOR, bounds.FLOOR, hyper, config.to_dict(artifact.behavior)),
        checks=checks,
        quantities=quantities.list(),
        controls=planted,
        explanation=explain.first_difference(comparisons) or explain.worst(comparisons),
        coverage=coverage(checks, comparisons, not_covered),
        kernels=kernels,
        newton_schulz=devices.newton_schulz(artifact, fused),
        vectors=vectors.pack(artifact, network, originals[: vectors.STORED_RUNS]),
        created=now(),
        reason=None,
    )


def step_check(comparison: steps.StepComparison) -> Check:
    """The :class:`Check` of a comparison of single steps."""
    run, ledger = comparison.reference.run, comparison.reference.ledger
    errors: dict[str, Error] = {}
    columns = [ledger.index[case.name, PARAMETER] for case in run.cases]
    for case, column in zip(run.cases, columns, strict=True):
        largest = float(comparison.errors[:, column].max()) if len(comparison.errors) else 0.0
        allowed = comparison.allowed[column]
        ulps = _ulps(comparison, case.name)
        errors[case.name] = Error(largest, None if np.isinf(allowed) else float(allowed), ulps)
    broken = [ledger.keys[key] for key in np.nonzero(comparison.off.any(axis=0))[0] if key not in columns]
    return Check(
        level="step",
        dtype=comparison.dtype,
        layout=comparison.layout,
        name=run.name,
        steps=len(comparison.errors),
        errors=errors,
        kind=run.kind,
        broken=[f"{quantity} of {case or 'the run'}" for case, quantity in broken],
        by_step=[float(each[columns].max()) for each in comparison.errors],
        kernels=comparison.kernels,
    )


def _ulps(comparison: steps.StepComparison, case: str) -> float:
    part = comparison.reference.ledger.slice((case, PARAMETER))
    worst = 0.0
    for ours, truth in zip(comparison.ours, comparison.reference.truth, strict=False):
        error = float(np.abs(ours[part] - truth[part]).max())
        worst = max(worst, bounds.ulps(error, float(np.abs(truth[part]).max()), comparison.dtype))
    return worst


class Tally:
    """Collects, for each intermediate quantity and dtype, the error that came nearest to its bound."""

    def __init__(self) -> None:
        self._worst: dict[tuple[str, str], tuple[float, Quantity]] = {}

    def add(self, comparison: steps.StepComparison) -> None:
        """Add a comparison. Those of kernels are skipped, because kernels do not expose every quantity."""
        if comparison.kernels or not len(comparison.errors):
            return
        excess, run, keys = comparison.excess, comparison.reference.run, comparison.reference.ledger.keys
        at = excess.argmax(axis=0)
        for key, (case, name) in enumerate(keys):
            step = int(at[key])
            value = float(excess[step, key])
            if value > self._worst.get((name, comparison.dtype), (-1.0,))[0]:
                allowed = float(comparison.allowed[key])
                quantity = Quantity(
                    name,
                    comparison.dtype,
                    float(comparison.errors[step, key]),
                    None if np.isinf(allowed) else allowed,
                    run.name,
                    comparison.layout,
                    case,
                    step,
                )
                self._worst[name, comparison.dtype] = value, quantity

    def list(self) -> list[Quantity]:
        """The collected quantities: float64 first, then in the order of the chain."""
        quantities = [quantity for _, quantity in self._worst.values()]
        return sorted(quantities, key=lambda each: (each.dtype == "float32", order(each.name), each.name))


def now() -> str:
    """The current time for the field ``created``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, str]:
    """Package versions and platform."""
    packages = {}
    for name in ("pylo-zoo", "torch", "jax", "flax", "numpy"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {**packages, "python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
