"""One step on either side, from any state: the torch optimizer and the JAX reference, seen alike.

Both sides take and give numpy arrays in JAX's layout, so that a step of one can begin where a step of the other began.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pylo_zoo import config, converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import Kernels
from pylo_zoo.ops.trace import listening
from pylo_zoo.optim import optimizer_class
from pylo_zoo.optim.lstm_controlled import LSTMControlledOptimizer
from pylo_zoo.optim.mlp_rule import MLPRuleOptimizer
from pylo_zoo.parity.cases import Case
from pylo_zoo.parity.jax_mode import x64
from pylo_zoo.parity.quantities import PARAMETER, PER_TENSOR

TORCH_FROM_JAX = {0: (), 1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
"""Which JAX axis each torch axis is: dense (in, out) to (out, in), convolutions (*spatial, in, out) to (out, in,
*spatial). Stated here apart from ``ops.layout``, whose choice of axes is what these runs put to the test."""

Arrays = Mapping[str, np.ndarray]
Notes = dict[tuple[str, str], np.ndarray]
"""By case, ``""`` for the run, and quantity."""


class Snapshot(NamedTuple):
    """Everything that a step begins with, or leaves behind.

    Attributes:
        params: by case, in JAX layout.
        state: by case and name, in JAX layout behind a leading axis of channels; ``row`` and ``col`` keep the averaged
            axis at size 1.
        run: ``step``, and for VeLO and Celo ``loss_average`` and ``loss_minimum`` ``[10]``.
    """

    params: Arrays
    state: Mapping[str, Arrays]
    run: Arrays


class Outcome(NamedTuple):
    """What a step left behind, and what was noted on the way."""

    after: Snapshot
    notes: Notes


Tamper = Callable[[Kernels], Any]
"""Gives the kernels that take the place of a device's kernels: how a fault of theirs is planted."""


class Side(Protocol):
    """One step from ``before``; ``lr`` is this step's, where a schedule changes it."""

    def step(self, before: Snapshot, grads: Arrays, loss: float, lr: float | None = None) -> Outcome: ...


class Misfit(ZooError):
    """The two sides do not keep the same state."""


# --- torch -------------------------------------------------------------------------------------------------------


ADVICE = ("this run goes past its num_steps", "weight_decay=", "lr has fallen", "a parameter of shape")
"""How the warnings begin that speak of training: a proof uses such settings on purpose."""


@contextmanager
def _without_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        for beginning in ADVICE:
            warnings.filterwarnings("ignore", beginning)
        yield


class TorchSide:
    """The optimizer of an artifact, with its parameters kept in ``layout`` where a case allows it.

    Args:
        artifact: whose optimizer runs.
        cases: parameters.
        start: their values to begin with, by case.
        hyper: arguments of the optimizer.
        dtype: "float32" or "float64".
        layout: "torch" or "jax".
        kernels: device whose fused kernels step the parameters; "" for the eager implementation on the CPU.
        tamper: plants a fault in these kernels.
    """

    def __init__(
        self,
        artifact: Artifact,
        cases: Sequence[Case],
        start: Arrays,
        hyper: Mapping[str, Any],
        dtype: str,
        layout: str,
        kernels: str = "",
        tamper: Tamper | None = None,
    ) -> None:
        self._dtype, self._device = getattr(torch, dtype), torch.device(kernels or "cpu")
        self._cases = {case.name: case for case in cases}
        self._kept = {case.name: case.torch if layout == "torch" else "jax" for case in cases}
        self._parameters = {name: torch.nn.Parameter(self._tensor(name, start[name])) for name in self._cases}
        self._subject, self._rows, self._primed = "", [], False
        self._notes: Notes = {}
        self.misfits: dict[tuple[str, str], str] = {}
        hyper = dict(hyper)
        widths = hyper.pop("width_mult", {})
        cls: Any = optimizer_class(artifact.family)
        if issubclass(cls, (MLPRuleOptimizer, LSTMControlledOptimizer)):  # every quantity of eager steps can be seen
            hyper["backend"] = "fused" if kernels else "eager"
        self.eager: set[str] = set()
        """Cases that the eager implementation stepped."""
        with _without_advice():
            self._optimizer: Any = cls([self._group(case, widths) for case in cases], weights=artifact, **hyper)
        if tamper is not None:
            own = self._optimizer.kernels_of
            self._optimizer.kernels_of = lambda p: None if (found := own(p)) is None else tamper(found)
        self._lr = self._optimizer.param_groups[0]["lr"]
        self._names = {p: name for name, p in self._parameters.items()}
        self._listen()

    def step(self, before: Snapshot, grads: Arrays, loss: float, lr: float | None = None) -> Outcome:
        """One step from ``before``."""
        fresh = not self._primed and before.run.get("step") == 0
        if not self._primed and not fresh:  # the optimizer makes its state in its first step; it is written over
            self._take({name: np.zeros(case.shape) for name, case in self._cases.items()}, 1.0)
        self._primed = True
        if not fresh:  # a run's first step begins with the optimizer's own new state, which is put to the test so
            self._restore(before)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr if lr is None else lr
        self._notes = {}
        with listening(self._hear):
            self._take(grads, loss)
        return Outcome(self.snapshot(), self._notes)

    @property
    def subject(self) -> str:
        """The parameter that is being updated, or ``""``."""
        return self._subject

    def run(self, grads: Sequence[Arrays], losses: Sequence[float]) -> Sequence[Arrays]:
        """A whole run from the start, on its own: the parameters before the first step and after each."""
        found = [{name: self._array(name, p) for name, p in self._parameters.items()}]
        for gradient, loss in zip(grads, losses, strict=True):
            self._take(gradient, loss)
            found.append({name: self._array(name, p) for name, p in self._parameters.items()})
        return found

    def snapshot(self) -> Snapshot:
        """Where the optimizer is now."""
        params = {name: self._array(name, p) for name, p in self._parameters.items()}
        state = {name: {k: v for k, v in self._state(name).items() if k != "step"} for name in self._cases}
        group = self._optimizer.param_groups[0]
        run = {key: group[key].detach().cpu().numpy().copy() for key in self._optimizer.run_keys}
        return Snapshot(params, state, run)

    def _group(self, case: Case, widths: Mapping[str, float]) -> dict[str, Any]:
        group = {"params": [self._parameters[case.name]], "layout": self._kept[case.name]}
        if case.name in widths:
            group["width_mult"] = widths[case.name]
        return {**group, "rule": case.rule} if case.rule else group

    def _take(self, grads: Arrays, loss: float) -> None:
        for name, p in self._parameters.items():
            p.grad = self._tensor(name, grads[name])
        with _without_advice():
            self._optimizer.step(loss=torch.tensor(loss, dtype=self._dtype))
        for name, p in self._parameters.items():
            if p.grad is None or not np.array_equal(
                self._array(name, p.grad), grads[name].astype(p.grad.cpu().numpy().dtype), True
            ):
                self.misfits[name, PARAMETER] = "the optimizer changed p.grad"

    def _restore(self, before: Snapshot) -> None:
        group = self._optimizer.param_groups[0]
        if mine := set(self._optimizer.run_keys) ^ set(before.run):
            raise Misfit(
                f"Only one side keeps {', '.join(sorted(mine))} of the run.", "Name state alike on both sides."
            )
        with torch.no_grad():
            for key, value in before.run.items():
                group[key].copy_(torch.as_tensor(np.array(value)))
            for name, p in self._parameters.items():
                p.copy_(self._tensor(name, before.params[name]))
                self._restore_state(name, self._optimizer.state[p], before)

    def _restore_state(self, name: str, state: dict[str, torch.Tensor], before: Snapshot) -> None:
        wanted, kept = before.state[name], {key for key in state if key != "step"}
        if wanted and not kept & wanted.keys():
            both = f"{', '.join(sorted(kept)) or 'nothing'} here, {', '.join(sorted(wanted))} in the reference"
            raise Misfit(f"The two sides name a parameter's state apart: {both}.", "Name state alike on both sides.")
        if kept != wanted.keys():
            here, there = (
                ", ".join(sorted(each)) or "nothing" for each in (kept - wanted.keys(), wanted.keys() - kept)
            )
            for key in kept ^ wanted.keys():
                self.misfits[name, key] = f"the state has {here} where the original has {there}"
        for key in wanted.keys() & kept:
            tensor = self._tensor(name, wanted[key])
            if tensor.shape != state[key].shape:
                self.misfits[name, key] = (
                    f"{key} is {tuple(state[key].shape)} where the original has {tuple(tensor.shape)} (own layout)"
                )
            else:
                state[key].copy_(tensor)
        if "step" in state:
            state["step"].copy_(torch.as_tensor(np.array(before.run["step"])))

    def _state(self, name: str) -> dict[str, np.ndarray]:
        return {key: self._array(name, value) for key, value in self._optimizer.state[self._parameters[name]].items()}

    # --- notes ---

    def _listen(self) -> None:
        """Have the optimizer say which parameter it is at."""
        update, prepare = self._optimizer.update, self._optimizer.prepare

        def updating(item: Any, *args: Any) -> None:
            self._subject = self._names[item.parameter]
            self.eager.add(self._subject)
            update(item, *args)
            self._subject = ""  # stays where the update raises

        def preparing(items: Sequence[Any], *args: Any) -> Any:
            self._rows = [self._names[item.parameter] for item in items]
            return prepare(items, *args)

        self._optimizer.update, self._optimizer.prepare = updating, preparing

    def _hear(self, quantity: str, value: torch.Tensor) -> None:
        if self._subject:
            self._notes[self._subject, quantity] = self._array(self._subject, value)
        else:
            _spread(self._notes, quantity, value.detach().cpu().numpy().copy(), self._rows)

    # --- layouts ---

    def _tensor(self, name: str, value: np.ndarray) -> torch.Tensor:
        """JAX layout to the parameter's own; axes before the parameter's stay."""
        value = np.asarray(value)
        axes = self._axes(name, value.ndim)
        ordered = np.array(value if axes is None else value.transpose(axes), order="C")
        return torch.from_numpy(ordered).to(self._device, self._dtype)

    def _array(self, name: str, tensor: torch.Tensor) -> np.ndarray:
        """The inverse; a copy."""
        value = tensor.detach().cpu().numpy()
        axes = self._axes(name, value.ndim)
        return np.array(value if axes is None else value.transpose(np.argsort(axes)), order="C")

    def _axes(self, name: str, ndim: int) -> list[int] | None:
        own = self._cases[name].ndim
        if self._kept[name] == "jax" or own < 2 or ndim not in (own, own + 1):
            return None
        lead = ndim - own
        stacked = (*range(own - 2), own - 1, own - 2)
        order = TORCH_FROM_JAX[own] if self._kept[name] == "torch" else stacked
        return [*range(lead), *(lead + axis for axis in order)]


def _spread(notes: Notes, quantity: str, value: np.ndarray, names: Sequence[str]) -> None:
    """Keep a note of the run, or a row for each tensor."""
    if quantity.startswith(PER_TENSOR):
        notes.update({(name, quantity): row for name, row in zip(names, value, strict=True)})
    else:
        notes["", quantity] = value


# --- JAX ---------------------------------------------------------------------------------------------------------


class JaxSide:
    """The reference of an artifact's family, on the theta tree of the original.

    Args:
        artifact: its family, architecture and behaviour; never its weights.
        theta: the original's meta-parameters.
        cases: parameters.
        start: their values to begin with, by case.
        hyper: as the optimizer's arguments.
        dtype: "float32" or "float64".
    """

    def __init__(
        self,
        artifact: Artifact,
        theta: Mapping[str, Any],
        cases: Sequence[Case],
        start: Arrays,
        hyper: Mapping[str, Any],
        dtype: str,
    ) -> None:
        self._artifact, self._theta, self._hyper, self._dtype = artifact, theta, dict(hyper), dtype
        self._cases = {case.name: case for case in cases}
        with x64():
            self._reference = self._build(self._hyper)
            routed = {case.name: case.rule for case in cases if case.rule} if self._reference.routes else None
            self._params = {name: np.asarray(start[name], dtype) for name in self._cases}
            self._state = self._reference.init(self._params, routed)

    def fresh(self) -> Snapshot:
        """The snapshot before the first step."""
        return self._export(self._params, self._state)

    def step(
        self, before: Snapshot, grads: Arrays, loss: float, lr: float | None = None, *, noted: bool = True
    ) -> Outcome:
        """One step from ``before``; ``noted`` is whether the outcome has its notes."""
        with x64():
            reference = self._reference if lr is None else self._build({**self._hyper, "lr": lr})
            params = {name: np.asarray(value, self._dtype) for name, value in before.params.items()}
            grads = {name: np.asarray(grads[name], self._dtype) for name in self._cases}
            params, state, traced = reference.traced_update(params, grads, self._restore(before), loss)
            notes: Notes = {}
            for (name, quantity), value in traced.items() if noted else ():
                if name:
                    notes[name, quantity] = np.asarray(value)
                else:
                    _spread(notes, quantity, np.asarray(value), sorted(self._cases))
            return Outcome(self._export(params, state), notes)

    def run(self, grads: Sequence[Arrays], losses: Sequence[float]) -> Sequence[Arrays]:
        """A whole run from the start: the parameters before the first step and after each."""
        found: list[Arrays] = [self._params]
        params, state = self._params, self._state
        with x64():
            for gradient, loss in zip(grads, losses, strict=True):
                gradient = {name: np.asarray(gradient[name], self._dtype) for name in self._cases}
                params, state = self._reference.update(params, gradient, state, loss)
                found.append({name: np.asarray(value) for name, value in params.items()})
        return found

    def _build(self, hyper: Mapping[str, Any]) -> Any:
        return build_reference(self._artifact, self._theta, hyper, self._dtype)

    def _export(self, params: Mapping[str, Any], state: Mapping[str, Any]) -> Snapshot:
        rows = sorted(self._cases)
        own: dict[str, dict[str, np.ndarray]] = {name: {} for name in self._cases}
        run: dict[str, np.ndarray] = {}
        for key, value in state.items():
            if isinstance(value, Mapping):
                for name, accumulators in value.items():
                    case = self._cases[name]
                    own[name].update({k: _led(case, k, np.asarray(v)) for k, v in accumulators.items()})
            elif key in LSTM_STATE:
                for name, row in zip(rows, np.asarray(value), strict=True):
                    own[name][key] = row
            elif key != "loss_count":  # the step, once more
                run[key] = np.asarray(value)
        return Snapshot({name: np.asarray(value) for name, value in params.items()}, own, run)

    def _restore(self, before: Snapshot) -> dict[str, Any]:
        """The reference's own state, shaped as its ``init`` shaped it."""
        rows = sorted(self._cases)

        def shaped(value: np.ndarray, like: Any) -> np.ndarray:
            return np.asarray(value).reshape(like.shape).astype(like.dtype)

        found: dict[str, Any] = {}
        for key, like in self._state.items():
            if isinstance(like, Mapping):
                found[key] = {
                    name: {k: shaped(before.state[name][k], v) for k, v in accumulators.items()}
                    for name, accumulators in like.items()
                }
            elif key in LSTM_STATE:
                found[key] = shaped(np.stack([before.state[name][key] for name in rows]), like)
            else:
                found[key] = shaped(before.run["step" if key == "loss_count" else key], like)
        return found


LSTM_STATE = ("lstm_hidden", "lstm_cell")


def _led(case: Case, key: str, value: np.ndarray) -> np.ndarray:
    """An accumulator of the reference with the averaged axis of row and col back at size 1, and a scalar's one axis."""
    from pylo_zoo.reference.accumulators import factored_axes

    if key in ("row", "col") and (axes := factored_axes(case.shape)):
        return np.expand_dims(value, axes[key == "col"] + 1)
    return value[:, None] if not case.shape and value.ndim == 1 else value


def build_reference(artifact: Artifact, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> Any:
    """The reference of the artifact's family with its architecture and behaviour, over ``theta``."""
    from pylo_zoo.reference import build

    family = converters.get(artifact.family)
    assert family.reference is not None
    return build(
        family.load(family.reference),
        theta,
        architecture=config.to_dict(artifact.architecture),
        behavior=config.to_dict(artifact.behavior),
        hyper=hyper,
        dtype=dtype,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: these tensors are too small to share, and rounding must not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_behavior(artifact: Artifact, changes: Mapping[str, Any]) -> Artifact:
    """``artifact`` with other behaviour."""
    return replace(artifact, behavior=replace(artifact.behavior, **changes)) if changes else artifact
