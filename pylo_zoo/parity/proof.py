"""The proof itself: everything that is checked of one artifact, in order, into one report."""

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
from pylo_zoo.convert import contradictions, unsaid
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import (
    bounds,
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
from pylo_zoo.parity.report import Check, Error, Quantity, Report, Settings, Statements
from pylo_zoo.parity.sides import one_thread
from pylo_zoo.parity.theta import read_theta

SEED = 0
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many parts are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def verify(
    artifact: Artifact,
    source: Path,
    *,
    seed: int = SEED,
    max_error: float = bounds.MAX_ERROR,
    progress: Progress | None = None,
) -> Report:
    """Prove, or disprove, that ``artifact`` is the checkpoint ``source`` in torch.

    Args:
        artifact: the torch side.
        source: the original checkpoint file.
        seed: of everything random.
        max_error: largest float64 error of a single step, in units of the update.
        progress: told how far it is.

    Returns:
        The report; without JAX the leaves alone, as "not_run" with the reason; likewise for a family without a
        reference.

    Raises:
        ZooError: ``source`` cannot be read, or is not the file that the artifact was made of.
    """
    read = formats.read(source)
    if read.sha256 != artifact.source.sha256:
        raise ZooError(
            f"{source} is not the file that {artifact.name} was converted from "
            f"(sha256 {read.sha256[:12]}…, not {artifact.source.sha256[:12]}…).",
            "Give the original with --source, or convert this one.",
        )
    report = without_jax(artifact, read, reason="jax and flax are not installed")
    if converters.get(artifact.family).reference is None:
        return replace(report, reason=f"there is no JAX reference of the family {artifact.family}")
    if jax_is_missing():
        return report
    if nonfinite := artifact.source.layout.get("nonfinite"):
        reason = f"the checkpoint holds NaN or infinite values ({', '.join(nonfinite[:4])}), which no bound compares"
        return replace(report, reason=reason)
    with one_thread():
        return _proof(report, artifact, read, seed, max_error, progress or silent)


def without_jax(artifact: Artifact, read: formats.Source, reason: str) -> Report:
    """What can be checked without the reference: every leaf, and what is said of the behaviour; else "not_run"."""
    return Report(
        name=artifact.name,
        family=artifact.family,
        source={"uri": artifact.source.uri, "sha256": read.sha256, "bytes": read.bytes},
        fingerprint=artifact.fingerprint,
        defaults=dict(artifact.defaults),
        leaves=leaves.check_leaves(artifact, read),
        statements=Statements(contradictions(artifact, read), unsaid(artifact, read)),
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
    parts = iter(range(len(runs) + len(trajectory.COURSES) + 2))
    total = len(runs) + len(trajectory.COURSES) + 2

    progress("the network", next(parts), total)
    network = forward.probe(artifact, theta, seed)
    checks = [*forward.checks(artifact, network)]
    found: list[steps.Found] = []
    walks: dict[str, steps.Walk] = {}
    quantities = Tally()
    for run in runs:
        progress(f"single steps: {run.name}", next(parts), total)
        walked = steps.walk(artifact, theta, run, seed)
        if run.kind == "regime" or run.name.partition(":")[0] == plan.BELOW:
            walks[run.name] = walked
        for dtype, layout, device in steps.all_sides(run, fused):
            each = steps.compare(artifact, walked, dtype, layout, max_error, device)
            checks.append(step_check(each))
            quantities.add(each)
            found.append(each)
    originals = []
    for course in trajectory.COURSES:
        progress(f"whole runs: {course.name}", next(parts), total)
        originals.append(trajectory.original(artifact, theta, course, seed))
        checks += trajectory.checks(artifact, originals[-1], devices=fused)
    beside = live.live(artifact, theta, seed)
    checks += [beside] if isinstance(beside, Check) else []
    progress("planted faults", next(parts), total)
    right = all(check.passed for check in checks)
    planted = [*controls.run(artifact, read, walks, right=right)]
    planted += controls.by_level(artifact, read, network, walks["ordinary"], originals[0], step_check, right=right)
    for device in fused:
        planted += kernel_faults.run(artifact, device, walks, right=right)
    completeness.check(checks, planted, fused, max_error)
    kernels = [replace(each, uncovered=devices.uncovered(each.device, found)) for each in kernels]
    progress("done", total, total)
    hyper = dict(converters.get(artifact.family).parity_hyper)
    besides = [
        f"behaviour that neither the source's files nor the registry say: {each}" for each in report.statements.unsaid
    ]
    besides += [beside] if isinstance(beside, str) else []
    besides += [f"fused kernels on {each.device}: {each.reason}" for each in kernels if not each.compared]
    return replace(
        report,
        settings=Settings(seed, max_error, bounds.FACTOR, bounds.FLOOR, hyper, config.to_dict(artifact.behavior)),
        checks=checks,
        quantities=quantities.list(),
        controls=planted,
        explanation=explain.first_difference(found) or explain.worst(found),
        coverage=coverage(checks, found, besides),
        kernels=kernels,
        vectors=vectors.pack(artifact, network, originals[: vectors.COURSES]),
        created=now(),
        reason=None,
    )


def step_check(found: steps.Found) -> Check:
    """The single steps of one run, dtype and layout, as the report has them."""
    run, ledger = found.walked.run, found.walked.ledger
    errors: dict[str, Error] = {}
    places = []
    for case in run.cases:
        place = ledger.index[case.name, PARAMETER]
        places.append(place)
        largest, allowed = (float(found.errors[:, place].max()) if len(found.errors) else 0.0), found.allowed[place]
        ulps = _ulps(found, case.name)
        errors[case.name] = Error(largest, None if np.isinf(allowed) else float(allowed), ulps)
    broken = [ledger.keys[key] for key in np.nonzero(found.off.any(axis=0))[0] if key not in places]
    return Check(
        level="step",
        dtype=found.dtype,
        layout=found.layout,
        name=run.name,
        steps=len(found.errors),
        errors=errors,
        kind=run.kind,
        broken=[f"{quantity} of {case or 'the run'}" for case, quantity in broken],
        by_step=[float(each[places].max()) for each in found.errors],
        kernels=found.kernels,
    )


def _ulps(found: steps.Found, case: str) -> float:
    part = found.walked.ledger.slice((case, PARAMETER))
    worst = 0.0
    for ours, truth in zip(found.ours, found.walked.truth, strict=False):
        error = float(np.abs(ours[part] - truth[part]).max())
        worst = max(worst, bounds.ulps(error, float(np.abs(truth[part]).max()), found.dtype))
    return worst


class Tally:
    """For each intermediate quantity and dtype, where it came nearest to its bound."""

    def __init__(self) -> None:
        self._worst: dict[tuple[str, str], tuple[float, Quantity]] = {}

    def add(self, found: steps.Found) -> None:
        """Take in one comparison of the eager implementation, which shows every quantity."""
        if found.kernels or not len(found.errors):
            return
        excess, run, keys = found.excess, found.walked.run, found.walked.ledger.keys
        at = excess.argmax(axis=0)
        for key, (case, name) in enumerate(keys):
            step = int(at[key])
            value = float(excess[step, key])
            if value > self._worst.get((name, found.dtype), (-1.0,))[0]:
                allowed = float(found.allowed[key])
                quantity = Quantity(
                    name,
                    found.dtype,
                    float(found.errors[step, key]),
                    None if np.isinf(allowed) else allowed,
                    run.name,
                    found.layout,
                    case,
                    step,
                )
                self._worst[name, found.dtype] = value, quantity

    def list(self) -> list[Quantity]:
        """In the order of the chain, float64 first."""
        found = [quantity for _, quantity in self._worst.values()]
        return sorted(found, key=lambda each: (each.dtype == "float32", order(each.name), each.name))


def now() -> str:
    """The time, for ``created``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, str]:
    """Versions and platform."""
    packages = {}
    for name in ("pylo-zoo", "torch", "jax", "flax", "numpy"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {**packages, "python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
