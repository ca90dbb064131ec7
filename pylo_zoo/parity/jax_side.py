"""The JAX reference of an artifact's family: single steps from any state, and whole runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pylo_zoo import config, converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity.cases import Case
from pylo_zoo.parity.jax_mode import x64
from pylo_zoo.parity.sides import Arrays, Outcome, Snapshot, Trace, add_to_trace

LSTM_STATE = ("lstm_hidden", "lstm_cell")
"""State keys with one row per parameter, in the order of the names."""


class JaxSide:
    """The JAX reference of an artifact's family, with the meta-parameters of the original file.

    Args:
        artifact: provides family, architecture and behavior; its weights are not used.
        theta: the original's meta-parameters.
        cases: the parameters.
        start: their initial values, by case, in JAX layout.
        hyper: hyperparameters, named like the torch optimizer's arguments.
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
        self, before: Snapshot, grads: Arrays, loss: float, lr: float | None = None, *, traced: bool = True
    ) -> Outcome:
        """One step from ``before``; without ``traced``, the outcome has no intermediate quantities."""
        with x64():
            reference = self._reference if lr is None else self._build({**self._hyper, "lr": lr})
            params = {name: np.asarray(value, self._dtype) for name, value in before.params.items()}
            grads = {name: np.asarray(grads[name], self._dtype) for name in self._cases}
            params, state, values = reference.traced_update(params, grads, self._restore(before), loss)
            trace: Trace = {}
            for (name, quantity), value in values.items() if traced else ():
                if name:
                    trace[name, quantity] = np.asarray(value)
                else:
                    add_to_trace(trace, quantity, np.asarray(value), sorted(self._cases))
            return Outcome(self._export(params, state), trace)

    def run(self, grads: Sequence[Arrays], losses: Sequence[float]) -> Sequence[Arrays]:
        """A whole run from the start; returns the parameters before the first step and after each."""
        trajectory: list[Arrays] = [self._params]
        params, state = self._params, self._state
        with x64():
            for gradient, loss in zip(grads, losses, strict=True):
                gradient = {name: np.asarray(gradient[name], self._dtype) for name in self._cases}
                params, state = self._reference.update(params, gradient, state, loss)
                trajectory.append({name: np.asarray(value) for name, value in params.items()})
        return trajectory

    def _build(self, hyper: Mapping[str, Any]) -> Any:
        return build_reference(self._artifact, self._theta, hyper, self._dtype)

    def _export(self, params: Mapping[str, Any], state: Mapping[str, Any]) -> Snapshot:
        rows = sorted(self._cases)
        by_case: dict[str, dict[str, np.ndarray]] = {name: {} for name in self._cases}
        run: dict[str, np.ndarray] = {}
        for key, value in state.items():
            if isinstance(value, Mapping):
                for name, accumulators in value.items():
                    case = self._cases[name]
                    by_case[name].update({k: _with_all_axes(case, k, np.asarray(v)) for k, v in accumulators.items()})
            elif key in LSTM_STATE:
                for name, row in zip(rows, np.asarray(value), strict=True):
                    by_case[name][key] = row
            elif key != "loss_count":  # always equals ``step``
                run[key] = np.asarray(value)
        return Snapshot({name: np.asarray(value) for name, value in params.items()}, by_case, run)

    def _restore(self, before: Snapshot) -> dict[str, Any]:
        """``before`` as the reference's state, with the shapes of its ``init``."""
        rows = sorted(self._cases)

        def shaped(value: np.ndarray, like: Any) -> np.ndarray:
            return np.asarray(value).reshape(like.shape).astype(like.dtype)

        state: dict[str, Any] = {}
        for key, like in self._state.items():
            if isinstance(like, Mapping):
                state[key] = {
                    name: {k: shaped(before.state[name][k], v) for k, v in accumulators.items()}
                    for name, accumulators in like.items()
                }
            elif key in LSTM_STATE:
                state[key] = shaped(np.stack([before.state[name][key] for name in rows]), like)
            else:
                state[key] = shaped(before.run["step" if key == "loss_count" else key], like)
        return state


def _with_all_axes(case: Case, key: str, value: np.ndarray) -> np.ndarray:
    """An accumulator with the averaged axis of ``row`` and ``col`` as size 1, and one axis for a scalar parameter."""
    from pylo_zoo.reference.accumulators import factored_axes

    if key in ("row", "col") and (axes := factored_axes(case.shape)):
        return np.expand_dims(value, axes[key == "col"] + 1)
    return value[:, None] if not case.shape and value.ndim == 1 else value


def build_reference(artifact: Artifact, theta: Mapping[str, Any], hyper: Mapping[str, Any], dtype: str) -> Any:
    """Build the reference of the artifact's family, architecture and behavior with the weights ``theta``."""
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
