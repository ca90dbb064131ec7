"""Compares the JAX reference with the research groups' own optimizers, if their packages can be imported.

Parity tests the torch side against the reference, and golden trajectories test the reference. This module runs the
originals (:mod:`~pylo_zoo.parity.original_packages`) on any checkpoint, parameters and gradients.

    check = check_reference("velo", theta, architecture=..., behavior=..., hyper={"num_steps": 100},
                            params=params, grads=grads, losses=losses)
    assert check.agrees, check.worst
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pylo_zoo import config
from pylo_zoo.errors import ZooError, count
from pylo_zoo.parity.original_packages import (
    ORIGINALS,
    Original,
    Params,
    failed,
    find_original,
    load,
    quiet_float32,
    sha256,
    version,
)

__all__ = [
    "FLOOR",
    "ORIGINALS",
    "TOLERANCE",
    "Check",
    "Original",
    "Run",
    "available",
    "check_reference",
    "run_original",
]

TOLERANCE = 1e-4
"""Relative to a parameter's largest movement. Over a dozen steps, rounding separates two float32 programs by about
1e-5, and a weight that is off by 1 % causes 1e-3 or more. tests/golden/README.md uses the same tolerance."""
FLOOR = 4 * float(np.finfo(np.float32).eps)
"""Relative to a parameter's largest value: the rounding error of storing it in float32, subtracted from each error."""


@dataclass(frozen=True, eq=False)
class Run:
    """The result of running an original.

    Attributes:
        original: dotted name of the class or function.
        version: version of its distribution, or "unknown".
        sha256: sha256 of its source file, or ""; the version of ``learned_optimization`` has been 0.0.1 for years.
        params: float32 parameters after each step, by name.
    """

    original: str
    version: str
    sha256: str
    params: list[dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Check:
    """A comparison of the reference with the original, with the same initial parameters, gradients and losses.

    Attributes:
        run: the original's run.
        reference: the reference's parameters after each step.
        errors: largest error of each parameter, minus the floor, relative to its largest movement.
    """

    run: Run
    reference: list[dict[str, np.ndarray]]
    errors: dict[str, float]

    @property
    def agrees(self) -> bool:
        """Whether every error is within :data:`TOLERANCE`; NaN is not."""
        return all(error <= TOLERANCE for error in self.errors.values())

    @property
    def worst(self) -> tuple[str, float]:
        """The parameter with the largest error, and that error; NaN is the largest."""
        return max(self.errors.items(), key=lambda item: (np.isnan(item[1]), item[1]))


# --- running -----------------------------------------------------------------------------------------------------


def available() -> dict[str, str]:
    """The originals' packages that can be imported, with their versions or "unknown".

    Importing them can take seconds. A package may contain the originals of only some of its families.
    """
    versions = {}
    for original in ORIGINALS.values():
        try:
            load(original)
        except ZooError:
            continue
        versions[original.package] = version(original)
    return versions


def run_original(
    family: str,
    theta: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any],
    behavior: Mapping[str, Any],
    hyper: Mapping[str, Any],
    params: Params,
    grads: Sequence[Params],
    losses: Sequence[Any] | None = None,
) -> Run:
    """Run a family's original in float32.

    Args:
        family: a key of :data:`ORIGINALS`.
        theta: the meta-parameters, nested as ``flax.serialization.msgpack_restore`` returns them.
        architecture, behavior: the fields of the family's records in ``pylo_zoo.config``.
        hyper: hyperparameters, named as in the torch constructor; missing ones have their defaults. In CELO2, AdamW
            updates the 0-d and 1-d parameters.
        params: initial parameters by name, in JAX layout.
        grads: gradients by name, for each step.
        losses: one loss per step.

    Raises:
        ZooError: the family has no known or importable original, the original fails to run, a hyperparameter is
            unknown, or the inputs do not fit each other.
    """
    original = find_original(family)
    make = load(original)
    complete = _hyper(family, original, hyper)
    losses = _check_inputs(original, params, grads, losses)
    import jax
    import jax.numpy as jnp

    from pylo_zoo.reference import FAMILIES

    arguments = {
        **asdict(config.parse(FAMILIES[family].architecture, architecture, "architecture")),
        **asdict(config.parse(FAMILIES[family].behavior, behavior, "behavior")),
        **original.fixed,
    }
    with quiet_float32():
        inputs = theta, dict(params), [*map(dict, grads)], losses
        weights, start, gradients, losses = jax.tree.map(lambda x: jnp.asarray(x, "float32"), inputs)
        try:
            steps = list(original.drive(make, arguments, weights, complete, start, gradients, losses))
        except Exception as error:
            raise failed(original, "fails to run", error, "Check that theta has this architecture.") from error
    trajectory = [{name: np.asarray(p) for name, p in step.items()} for step in steps]
    return Run(f"{original.module}.{original.name}", version(original), sha256(original), trajectory)


def check_reference(
    family: str,
    theta: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any],
    behavior: Mapping[str, Any],
    hyper: Mapping[str, Any],
    params: Params,
    grads: Sequence[Params],
    losses: Sequence[Any] | None = None,
) -> Check:
    """Run a family's original and the reference, and compare them; arguments and errors as :func:`run_original`."""
    records: dict[str, Any] = {"architecture": architecture, "behavior": behavior, "hyper": hyper}
    run = run_original(family, theta, **records, params=params, grads=grads, losses=losses)
    from pylo_zoo.reference import build

    trajectory = []
    with quiet_float32():
        reference = build(family, theta, **records)
        current: Any = params
        state = reference.init(params)
        for t, gradient in enumerate(grads):
            current, state = reference.update(current, gradient, state, None if losses is None else losses[t])
            trajectory.append({name: np.asarray(p) for name, p in current.items()})
    return Check(run, trajectory, {name: _error(name, params, run.params, trajectory) for name in params})


def _error(name: str, start: Params, expected: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    """The largest error of one parameter, minus the floor, relative to its largest movement in ``expected``."""
    original, ours = (np.stack([step[name].astype(np.float64) for step in run]) for run in (expected, got))
    movement = np.abs(original - np.asarray(start[name], np.float32)).max()
    error = np.maximum(np.abs(ours - original).max() - FLOOR * np.abs(original).max(), 0)  # NaN stays NaN
    return float(error) if error == 0 else float(np.divide(error, movement)) if movement else float("inf")


# --- checking inputs ---------------------------------------------------------------------------------------------


def _hyper(family: str, original: Original, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters of the family; those in ``original.unsupported`` must have the value without effect."""
    from pylo_zoo.reference import FAMILIES, REQUIRED

    known = FAMILIES[family].hyper
    if unknown := sorted(set(hyper) - set(known)):
        raise ZooError(f"hyper: unknown {', '.join(unknown)}.", f"{family} has {', '.join(known)}.")
    complete = {**known, **hyper}
    if missing := [name for name, value in complete.items() if value is REQUIRED]:
        raise ZooError(f"hyper: {', '.join(missing)} missing.", f"Set it: {family} requires it.")
    for name, neutral in original.unsupported.items():
        if complete[name] != neutral:
            raise ZooError(
                f"hyper: {name} is {complete[name]!r}, but the original of {family} has no such argument.",
                f"Leave it at {neutral!r}.",
            )
    return complete


def _check_inputs(
    original: Original, params: Params, grads: Sequence[Params], losses: Sequence[Any] | None
) -> list[float]:
    """Check shapes and lengths, and return the losses; zeros if the rule reads none."""
    shapes = {name: np.shape(p) for name, p in params.items()}
    if not shapes or not grads:
        raise ZooError("params or grads is empty.", "Pass at least one parameter and one step of gradients.")
    for t, step in enumerate(grads):
        if {name: np.shape(g) for name, g in step.items()} != shapes:
            raise ZooError(
                f"The gradients of step {t} do not fit the parameters.", "Use the names and shapes of the parameters."
            )
    if losses is None and not original.needs_loss:
        return [0.0] * len(grads)
    if losses is None or len(losses) != len(grads):
        given = count(0 if losses is None else len(losses), "loss")
        raise ZooError(f"{given} for {count(len(grads), 'step')}.", "Pass one loss per step.")
    return [float(loss) for loss in losses]
