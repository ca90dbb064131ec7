"""Single steps from synchronised states: both sides begin where the reference stands, and every quantity is compared.

The reference walks a run in float64, rounded to float32 before each step, so that float32 and float64 on both sides
begin with the very same numbers. Its own float32 step against its float64 step measures how much rounding matters,
there and then, for each quantity; what a right port may be off by is derived from that (:mod:`bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import bounds, cases
from pylo_zoo.parity.cases import CASES, Case
from pylo_zoo.parity.quantities import PARAMETER, PER_TENSOR, order
from pylo_zoo.parity.sides import JaxSide, Misfit, Outcome, Snapshot, Tamper, TorchSide, with_behavior

DTYPES = ("float64", "float32")
LAYOUTS = ("torch", "jax")
Key = tuple[str, str]
"""Case, ``""`` for the run, and quantity."""
LONGEST_MESSAGE = 300
"""Characters of an exception's message that a report keeps."""


@dataclass(frozen=True)
class Run:
    """A run of synchronised steps.

    Attributes:
        kind: "regime", "options" or "flags": what the run is about.
        name: of the regime, or of what is set.
        regime: of the gradients.
        cases: parameters.
        hyper: arguments of the optimizer.
        behavior: fields of the behaviour that differ from the artifact's.
        lrs: learning rates by step, where a schedule changes them.
        steps: how many.
        layouts: of the torch side.
        table: all parameters of which ``cases`` are some; parameters and gradients are drawn for all of them.
        noted: whether intermediate quantities are compared, besides state and parameters.
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
    noted: bool = True


@dataclass(frozen=True)
class Walk:
    """The reference's side of a run: where each step begins, and what the two dtypes make of it.

    ``truth`` and ``single`` are the quantities after each step, flat, in float64 and float32; ``units`` what errors are
    relative to; ``noise`` by key the largest error of float32, in units.
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

    def first(self, steps: int) -> Walk:
        """The beginning of the walk."""
        cut = {name: getattr(self, name)[:steps] for name in ("before", "truth", "single", "units")}
        return replace(self, **cut)


class Ledger:
    """How the quantities of a step stand in one flat array."""

    def __init__(self, outcome: Outcome) -> None:
        found = quantities(outcome)
        self.keys: list[Key] = sorted(found, key=lambda key: (order(key[1]), key[0]))
        self.shapes = {key: found[key].shape for key in self.keys}
        sizes = np.array([found[key].size for key in self.keys])
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        channels = [_channels(key, found[key].shape) for key in self.keys]
        self._channel_starts = np.concatenate(
            [start + np.arange(n) * (size // n) for start, size, n in zip(self.starts, sizes, channels, strict=True)]
        ).astype(int)
        self._channel_sizes = np.concatenate(
            [np.full(n, size // n) for size, n in zip(sizes, channels, strict=True)]
        ).astype(int)
        self.index = {key: place for place, key in enumerate(self.keys)}

    def flat(self, outcome: Outcome) -> np.ndarray:
        """The quantities of ``outcome``, in float64; NaN where it lacks one."""
        found = quantities(outcome)
        return np.concatenate([self._part(found.get(key), self.shapes[key]) for key in self.keys])

    def _part(self, value: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
        if value is None:
            return np.full(int(np.prod(shape)), np.nan)
        if value.size == 1 and not shape:  # a scalar, which the update sees as [1]
            value = value.reshape(())
        try:
            return np.broadcast_to(value, shape).ravel()
        except ValueError:
            return np.full(int(np.prod(shape)), np.nan)

    def units(self, truth: np.ndarray, before: Snapshot) -> np.ndarray:
        """The largest magnitude of each quantity, a channel apart; of the parameters, of their movement."""
        moved = truth.copy()
        for name, value in before.params.items():
            part = self.slice((name, PARAMETER))
            moved[part] -= np.asarray(value, np.float64).ravel()
        largest = np.maximum.reduceat(np.nan_to_num(np.abs(moved)), self._channel_starts)
        return np.repeat(largest, self._channel_sizes)

    def errors(self, ours: np.ndarray, truth: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Elementwise, in units; infinite where only one side is a number."""
        with np.errstate(all="ignore"):
            difference = np.abs(ours - truth)
            found = np.where(difference == 0, 0.0, difference / units)
        same = np.isnan(ours) & np.isnan(truth) | (ours == truth)
        return np.where(same, 0.0, np.where(np.isnan(found), np.inf, found))

    def worst(self, errors: np.ndarray) -> np.ndarray:
        """By key, the largest of its elements."""
        return np.maximum.reduceat(errors, self.starts)

    def slice(self, key: Key) -> slice:
        """Where ``key`` stands."""
        start = self.starts[self.index[key]]
        return slice(start, start + int(np.prod(self.shapes[key])))


def _channels(key: Key, shape: tuple[int, ...]) -> int:
    """How many channels with units of their own a quantity has: those of accumulators and features."""
    led = key[1].startswith(("features/", "normalized/")) or key[1] in ("momentum", "row", "col", "diag")
    return shape[0] if led and shape else 1


def quantities(outcome: Outcome) -> dict[Key, np.ndarray]:
    """Everything that a step gave: notes, state and parameters."""
    after = outcome.after
    state = {(name, key): value for name, own in after.state.items() for key, value in own.items()}
    run = {("", "count" if key == "step" else key): value for key, value in after.run.items()}
    return {**outcome.notes, **state, **run, **{(name, PARAMETER): value for name, value in after.params.items()}}


def walk(artifact: Artifact, theta: Mapping[str, Any], run: Run, seed: int) -> Walk:
    """Walk the reference along ``run``, while it is finite."""
    changed = with_behavior(artifact, run.behavior)
    start = cases.parameters(seed, cases.REGIMES[run.regime].scale, run.table)
    grads = cases.gradients(seed, run.regime, run.steps, run.table)
    losses = cases.losses(seed, run.regime, run.steps)
    double, single = (JaxSide(changed, theta, run.cases, start, run.hyper, dtype) for dtype in DTYPES)
    now = rounded(double.fresh())
    if "step" in now.run:
        now.run["step"] = np.asarray(cases.REGIMES[run.regime].start)  # pyright: ignore[reportIndexIssue]
    ledger: Ledger | None = None
    before, truths, singles, units = [], [], [], []
    noise: np.ndarray | None = None
    for step in range(run.steps):
        lr = run.lrs[step] if run.lrs else None
        exact = double.step(now, grads[step], losses[step], lr, noted=run.noted)
        ledger = ledger or Ledger(exact)
        truth = ledger.flat(exact)
        if not np.isfinite(truth).all():
            break
        unit = ledger.units(truth, now)
        rough = ledger.flat(single.step(now, grads[step], losses[step], lr, noted=run.noted))
        errors = ledger.worst(ledger.errors(rough, truth, unit))
        noise = errors if noise is None else np.maximum(noise, errors)
        before.append(now)
        truths.append(truth)
        singles.append(rough)
        units.append(unit)
        now = rounded(exact.after)
    assert ledger is not None
    noise = np.zeros(len(ledger.keys)) if noise is None else noise
    return Walk(run, grads, losses, before, ledger, truths, singles, units, noise)


def rounded(snapshot: Snapshot) -> Snapshot:
    """``snapshot`` in float32 numbers; counters stay."""

    def values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v if np.issubdtype(v.dtype, np.integer) else cases.rounded(v) for k, v in arrays.items()}

    state = {name: values(own) for name, own in snapshot.state.items()}
    return Snapshot(values(snapshot.params), state, values(snapshot.run))


@dataclass(frozen=True)
class Found:
    """What a torch side made of a walk.

    Attributes:
        walked: the reference's side.
        dtype, layout: of the torch side.
        ours: the quantities after each step, flat.
        errors: by step and key, in units.
        allowed: by key; infinite where the original's own float32 gives no number, so that nothing is compared.
        misfits: state that could not be put in place, or what the optimizer raised, by key.
        kernels: device whose fused kernels stepped; "" for the eager implementation.
        compared: by key, whether the side shows the quantity; kernels show no intermediate quantity of a parameter.
        eager: cases that the eager implementation stepped.
    """

    walked: Walk
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
        """By step and key, the error for what is allowed; 0 where nothing is compared."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isinf(self.allowed) | (self.errors == 0), 0.0, self.errors / self.allowed)

    @property
    def off(self) -> np.ndarray:
        """By step and key, whether the error is beyond its bound."""
        return self.errors > self.allowed


def compare(
    artifact: Artifact,
    walked: Walk,
    dtype: str,
    layout: str,
    max_error: float = bounds.MAX_ERROR,
    kernels: str = "",
    tamper: Tamper | None = None,
) -> Found:
    """Take every step of ``walked`` with the torch optimizer, from the same beginnings.

    Args:
        artifact: of the torch side.
        walked: the reference's side.
        dtype: "float32" or "float64"; kernels have float32 alone.
        layout: "torch" or "jax".
        max_error: largest float64 error of a parameter.
        kernels: device whose fused kernels step; "" for the eager implementation.
        tamper: plants a fault in these kernels.

    Raises:
        ZooError: the optimizer cannot be built, or the two sides do not keep the same state.
    """
    run, ledger = walked.run, walked.ledger
    side: TorchSide | None = None
    ours, errors, misfits = [], [], {}
    for step, before in enumerate(walked.before):
        try:
            side = side or TorchSide(
                *(with_behavior(artifact, run.behavior), run.cases, before.params, run.hyper, dtype, layout),
                kernels=kernels,
                tamper=tamper,
            )
            outcome = side.step(before, walked.grads[step], walked.losses[step], run.lrs[step] if run.lrs else None)
        except Exception as error:  # whatever a broken port raises is a difference, and has a place
            if isinstance(error, Misfit) or (side is None and isinstance(error, ZooError)):
                raise
            place, misfits_here = _raised(error, side, step, run)
            misfits |= misfits_here
            ours.append(walked.truth[step])
            errors.append(np.zeros(len(ledger.keys)))
            errors[-1][ledger.index[place]] = np.inf
            break
        flat = ledger.flat(outcome)
        ours.append(flat)
        errors.append(ledger.worst(ledger.errors(flat, walked.truth[step], walked.units[step])))
    table = np.array(errors).reshape(len(errors), len(ledger.keys))
    compared = np.array([not kernels or _shown_by_kernels(key, walked) for key in ledger.keys])
    table[:, ~compared] = 0.0
    for key, why in side.misfits.items() if side else ():
        place = key if key in ledger.index else (key[0], PARAMETER)
        table[:, ledger.index[place]] = np.inf
        misfits[place] = why
    allowed = bounds.allowed(walked.noise, dtype)
    if dtype == "float64":
        updates = [ledger.index[name, PARAMETER] for name in (case.name for case in run.cases)]
        allowed[updates] = np.minimum(allowed[updates], max_error)
    eager = frozenset(side.eager if side else ())
    return Found(walked, dtype, layout, ours, table, allowed, misfits, kernels, compared, eager)


def _raised(error: Exception, side: TorchSide | None, step: int, run: Run) -> tuple[Key, dict[Key, str]]:
    """The place of an exception, and what the report says of it there."""
    subject = side.subject if side else ""
    message = " ".join(str(error).split())[:LONGEST_MESSAGE]
    when = f"at step {step + 1}" + (f" of {subject}" if subject else "") if side else "when it was built"
    place = subject or run.cases[0].name, PARAMETER
    return place, {place: f"the optimizer raised {type(error).__name__} {when}: {message}"}


def _shown_by_kernels(key: Key, walked: Walk) -> bool:
    """Whether a side that runs kernels shows this quantity: state, parameters, and what is computed before them."""
    case, quantity = key
    if not case or quantity == PARAMETER or quantity.startswith(PER_TENSOR):
        return True
    return bool(walked.before) and quantity in walked.before[0].state[case]


def all_sides(run: Run, devices: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each dtype, layout and device of kernels ("" for the eager implementation) that ``run`` is tried in."""
    for dtype, kernels in [*((dtype, "") for dtype in DTYPES), *(("float32", device) for device in devices)]:
        for layout in run.layouts:
            yield dtype, layout, kernels
