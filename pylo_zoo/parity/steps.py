"""Single steps from synchronized states: both sides begin with the reference's state, and every quantity is compared.

The reference runs in float64. Its state is rounded to float32 before each step, so float32 and float64 steps of both
sides begin with the same numbers. The difference between the reference's float32 step and its float64 step measures
the effect of rounding on each quantity; :mod:`bounds` derives the allowed error from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import cases
from pylo_zoo.parity.cases import CASES, Case
from pylo_zoo.parity.jax_side import JaxSide
from pylo_zoo.parity.quantities import PARAMETER, PER_TENSOR, order
from pylo_zoo.parity.sides import Outcome, Snapshot, StateMismatch, Tamper, with_behavior
from pylo_zoo.parity.torch_side import TorchSide
from pylo_zoo.report import bounds

DTYPES = ("float64", "float32")
LAYOUTS = ("torch", "jax")
Key = tuple[str, str]
"""Case (``""`` for the run) and quantity."""
MAX_MESSAGE = 300
"""Maximum length of an exception's message in a report, in characters."""


@dataclass(frozen=True)
class Run:
    """A run of synchronized steps.

    Attributes:
        kind: "regime", "options" or "flags": what the run varies.
        name: the regime, or the changed options or fields.
        regime: regime of the gradients and losses.
        cases: the parameters.
        hyper: arguments of the optimizer.
        behavior: fields of the behavior that differ from the artifact's.
        lrs: learning rate of each step, if a schedule changes it.
        steps: number of steps.
        layouts: layouts of the torch side.
        table: the table that contains ``cases``; parameters and gradients are drawn for the whole table.
        traced: whether intermediate quantities are compared, in addition to state and parameters.
    """

    kind: str
    name: str
    regime: str
    cases: Sequence[Case]
    hyper: Mapping[str, Any]
    behavior: Mapping[str, Any] = field(default_factory=dict)
    lrs: Sequence[float] | None = None
    steps: int = 3
    layouts: Sequence[str] = LAYOUTS
    table: Sequence[Case] = CASES
    traced: bool = True


@dataclass(frozen=True)
class ReferenceRun:
    """The reference's side of a run.

    Attributes:
        before: the state before each step.
        truth, single: the quantities after each step in float64 and float32, as flat arrays.
        units: the values that errors are relative to, by step, as flat arrays.
        noise: largest error of the float32 steps by key, in units.
    """

    run: Run
    grads: Sequence[Mapping[str, np.ndarray]]
    losses: Sequence[float]
    before: Sequence[Snapshot]
    ledger: Ledger
    truth: Sequence[np.ndarray]
    single: Sequence[np.ndarray]
    units: Sequence[np.ndarray]
    noise: np.ndarray

    def first(self, steps: int) -> ReferenceRun:
        """The first ``steps`` steps of the run."""
        cut = {name: getattr(self, name)[:steps] for name in ("before", "truth", "single", "units")}
        return replace(self, **cut)


class Ledger:
    """The layout of a step's quantities in one flat array."""

    def __init__(self, outcome: Outcome) -> None:
        values = quantities(outcome)
        self.keys: list[Key] = sorted(values, key=lambda key: (order(key[1]), key[0]))
        self.shapes = {key: values[key].shape for key in self.keys}
        sizes = np.array([values[key].size for key in self.keys])
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        channels = [_channels(key, values[key].shape) for key in self.keys]
        self._channel_starts = np.concatenate(
            [start + np.arange(n) * (size // n) for start, size, n in zip(self.starts, sizes, channels, strict=True)]
        ).astype(int)
        self._channel_sizes = np.concatenate(
            [np.full(n, size // n) for size, n in zip(sizes, channels, strict=True)]
        ).astype(int)
        self.index = {key: place for place, key in enumerate(self.keys)}

    def flat(self, outcome: Outcome) -> np.ndarray:
        """The quantities of ``outcome`` as float64; NaN for those that are missing or have another shape."""
        values = quantities(outcome)
        parts = [(_fit(values.get(key), self.shapes[key]), self.shapes[key]) for key in self.keys]
        return np.concatenate(
            [np.full(int(np.prod(shape)), np.nan) if part is None else part.ravel() for part, shape in parts]
        )

    def misfits(self, outcome: Outcome) -> dict[Key, str]:
        """The quantities of the torch side's ``outcome`` that are missing or have another shape, with the reason."""
        values, misfits = quantities(outcome), {}
        for key, shape in self.shapes.items():
            value = values.get(key)
            if value is None:
                misfits[key] = f"the torch side does not record {key[1]}"
            elif _fit(value, shape) is None:
                sides = f"{value.shape} on the torch side and {shape} in the original, both in JAX layout"
                misfits[key] = f"{key[1]} has shape {sides}"
        return misfits

    def units(self, truth: np.ndarray, before: Snapshot) -> np.ndarray:
        """The largest magnitude of each quantity per channel; for parameters, of the update."""
        values = truth.copy()
        for name, value in before.params.items():
            part = self.slice((name, PARAMETER))
            values[part] -= np.asarray(value, np.float64).ravel()
        largest = np.maximum.reduceat(np.nan_to_num(np.abs(values)), self._channel_starts)
        return np.repeat(largest, self._channel_sizes)

    def errors(self, ours: np.ndarray, truth: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Elementwise errors, in units; infinite if only one side is NaN."""
        with np.errstate(all="ignore"):
            difference = np.abs(ours - truth)
            relative = np.where(difference == 0, 0.0, difference / units)
        equal = np.isnan(ours) & np.isnan(truth) | (ours == truth)
        return np.where(equal, 0.0, np.where(np.isnan(relative), np.inf, relative))

    def worst(self, errors: np.ndarray) -> np.ndarray:
        """The largest element of each key."""
        return np.maximum.reduceat(errors, self.starts)

    def slice(self, key: Key) -> slice:
        """The position of ``key`` in the flat array."""
        start = self.starts[self.index[key]]
        return slice(start, start + int(np.prod(self.shapes[key])))


def _fit(value: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """``value`` broadcast to ``shape``, or None if that is impossible."""
    if value is not None and (value.shape == (*shape, 1) or (value.size == 1 and not shape)):
        value = value.reshape(shape)  # the update receives a scalar as shape [1]
    try:
        return None if value is None else np.broadcast_to(value, shape)
    except ValueError:
        return None


def _channels(key: Key, shape: tuple[int, ...]) -> int:
    """Number of channels with separate units. Only accumulators and features have a leading channel axis."""
    has_channels = key[1].startswith(("features/", "normalized/")) or key[1] in ("momentum", "row", "col", "diag")
    return shape[0] if has_channels and shape else 1


def quantities(outcome: Outcome) -> dict[Key, np.ndarray]:
    """All quantities of a step: trace, state and parameters."""
    after = outcome.after
    state = {(name, key): value for name, own in after.state.items() for key, value in own.items()}
    run = {("", "count" if key == "step" else key): value for key, value in after.run.items()}
    return {**outcome.trace, **state, **run, **{(name, PARAMETER): value for name, value in after.params.items()}}


def run_reference(artifact: Artifact, theta: Mapping[str, Any], run: Run, seed: int) -> ReferenceRun:
    """Run the reference along ``run`` while it is finite."""
    changed = with_behavior(artifact, run.behavior)
    start = cases.parameters(seed, cases.REGIMES[run.regime].scale, run.table)
    grads = cases.gradients(seed, run.regime, run.steps, run.table)
    losses = cases.losses(seed, run.regime, run.steps)
    double, single = (JaxSide(changed, theta, run.cases, start, run.hyper, dtype) for dtype in DTYPES)
    state = rounded(double.fresh())
    if "step" in state.run:
        state.run["step"] = np.asarray(cases.REGIMES[run.regime].start)  # pyright: ignore[reportIndexIssue]
    ledger: Ledger | None = None
    before, truths, singles, units = [], [], [], []
    noise: np.ndarray | None = None
    for step in range(run.steps):
        lr = run.lrs[step] if run.lrs else None
        exact = double.step(state, grads[step], losses[step], lr, traced=run.traced)
        ledger = ledger or Ledger(exact)
        truth = ledger.flat(exact)
        if not np.isfinite(truth).all():
            break
        unit = ledger.units(truth, state)
        rough = ledger.flat(single.step(state, grads[step], losses[step], lr, traced=run.traced))
        errors = ledger.worst(ledger.errors(rough, truth, unit))
        noise = errors if noise is None else np.maximum(noise, errors)
        before.append(state)
        truths.append(truth)
        singles.append(rough)
        units.append(unit)
        state = rounded(exact.after)
    assert ledger is not None
    noise = np.zeros(len(ledger.keys)) if noise is None else noise
    return ReferenceRun(run, grads, losses, before, ledger, truths, singles, units, noise)


def rounded(snapshot: Snapshot) -> Snapshot:
    """``snapshot`` with every value rounded to float32; integer counters stay."""

    def values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v if np.issubdtype(v.dtype, np.integer) else cases.rounded(v) for k, v in arrays.items()}

    state = {name: values(own) for name, own in snapshot.state.items()}
    return Snapshot(values(snapshot.params), state, values(snapshot.run))


@dataclass(frozen=True)
class StepComparison:
    """The torch side of a run, compared with the reference's.

    Attributes:
        reference: the reference's side.
        dtype, layout: dtype and layout of the torch side.
        ours: the torch side's quantities after each step, as flat arrays.
        errors: errors by step and key, in units.
        allowed: bounds by key; infinite if the original's float32 result is not finite, so nothing is compared.
        misfits: differences that are not numeric, by key: a missing value, another shape, or an exception.
        kernels: device whose fused kernels ran; "" for the eager implementation.
        compared: by key, whether the torch side exposes the quantity. Kernels expose no feature of a parameter.
        eager: cases that the eager implementation updated.
    """

    reference: ReferenceRun
    dtype: str
    layout: str
    ours: Sequence[np.ndarray]
    errors: np.ndarray
    allowed: np.ndarray
    misfits: Mapping[Key, str]
    kernels: str
    compared: np.ndarray
    eager: frozenset[str]

    @property
    def excess(self) -> np.ndarray:
        """Error divided by bound, by step and key; 0 if nothing is compared."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isinf(self.allowed) | (self.errors == 0), 0.0, self.errors / self.allowed)

    @property
    def off(self) -> np.ndarray:
        """Whether the error exceeds its bound, by step and key."""
        return self.errors > self.allowed


def compare(
    artifact: Artifact,
    reference: ReferenceRun,
    dtype: str,
    layout: str,
    max_error: float = bounds.MAX_ERROR,
    kernels: str = "",
    tamper: Tamper | None = None,
) -> StepComparison:
    """Run every step of ``reference`` with the torch optimizer, from the same states.

    Args:
        artifact: the torch side.
        reference: the reference's side.
        dtype: "float32" or "float64"; kernels support float32 only.
        layout: "torch" or "jax".
        max_error: largest allowed float64 error of a parameter.
        kernels: device whose fused kernels run; "" for the eager implementation.
        tamper: plants a fault in these kernels.

    Raises:
        ZooError: the optimizer cannot be built, or the two sides do not keep the same state.
    """
    run, ledger = reference.run, reference.ledger
    side: TorchSide | None = None
    compared = np.array([not kernels or _exposed_by_kernels(key, reference) for key in ledger.keys])
    ours, errors, misfits = [], [], {}
    for step, before in enumerate(reference.before):
        try:
            side = side or TorchSide(
                *(with_behavior(artifact, run.behavior), run.cases, before.params, run.hyper, dtype, layout),
                kernels=kernels,
                tamper=tamper,
            )
            outcome = side.step(
                before, reference.grads[step], reference.losses[step], run.lrs[step] if run.lrs else None
            )
        except Exception as error:  # an exception of a broken port is reported as a difference
            if isinstance(error, StateMismatch) or (side is None and isinstance(error, ZooError)):
                raise
            key, misfits[key] = _describe_exception(error, side, step, run)
            ours.append(reference.truth[step])
            errors.append(np.zeros(len(ledger.keys)))
            errors[-1][ledger.index[key]] = np.inf
            break
        misfits |= {key: why for key, why in ledger.misfits(outcome).items() if compared[ledger.index[key]]}
        flat = ledger.flat(outcome)
        ours.append(flat)
        errors.append(ledger.worst(ledger.errors(flat, reference.truth[step], reference.units[step])))
    table = np.array(errors).reshape(len(errors), len(ledger.keys))
    table[:, ~compared] = 0.0
    for key, why in side.misfits.items() if side else ():
        key = key if key in ledger.index else (key[0], PARAMETER)
        table[:, ledger.index[key]] = np.inf
        misfits[key] = why
    allowed = bounds.allowed(reference.noise, dtype)
    if dtype == "float64":
        updates = [ledger.index[name, PARAMETER] for name in (case.name for case in run.cases)]
        allowed[updates] = np.minimum(allowed[updates], max_error)
    eager = frozenset(side.eager if side else ())
    return StepComparison(reference, dtype, layout, ours, table, allowed, misfits, kernels, compared, eager)


def _describe_exception(error: Exception, side: TorchSide | None, step: int, run: Run) -> tuple[Key, str]:
    """The key under which the report shows an exception, and its text there."""
    subject = side.subject if side else ""
    message = " ".join(str(error).split())[:MAX_MESSAGE]
    when = f"at step {step + 1}" + (f" of {subject}" if subject else "") if side else "in its constructor"
    key = subject or run.cases[0].name, PARAMETER
    return key, f"the optimizer raised {type(error).__name__} {when}: {message}"


def _exposed_by_kernels(key: Key, reference: ReferenceRun) -> bool:
    """Whether fused kernels expose this quantity: parameters, state, and what is computed before the update."""
    case, quantity = key
    if not case or quantity == PARAMETER or quantity.startswith(PER_TENSOR):
        return True
    return bool(reference.before) and quantity in reference.before[0].state[case]


def all_sides(run: Run, devices: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each combination of dtype, layout and device of kernels ("" for eager) in which ``run`` is compared."""
    for dtype, kernels in [*((dtype, "") for dtype in DTYPES), *(("float32", device) for device in devices)]:
        for layout in run.layouts:
            yield dtype, layout, kernels
