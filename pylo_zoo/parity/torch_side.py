"""The torch optimizer of an artifact: single steps from any state, and whole runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pylo_zoo.artifact import Artifact
from pylo_zoo.ops.trace import listening
from pylo_zoo.optim import CELO2, optimizer_class
from pylo_zoo.optim.lstm_controlled import LSTMControlledOptimizer
from pylo_zoo.optim.mlp_rule import MLPRuleOptimizer
from pylo_zoo.parity.cases import Case
from pylo_zoo.parity.quantities import PARAMETER
from pylo_zoo.parity.sides import Arrays, Outcome, Snapshot, StateMismatch, Tamper, Trace, add_to_trace

TORCH_FROM_JAX = {0: (), 1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
"""The JAX axis of each torch axis: dense (in, out) to (out, in), convolutions (*spatial, in, out) to (out, in,
*spatial). Independent of ``ops.layout``, because these runs test its choice of axes."""
ADVICE = r".*\b(num_steps|weight_decay|lr|parameter of shape)\b"
"""Warnings about settings that are unwise in training. A proof uses such settings on purpose."""


@contextmanager
def _without_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ADVICE, UserWarning)
        yield


class TorchSide:
    """The torch optimizer of an artifact.

    Args:
        artifact: the artifact whose optimizer runs.
        cases: the parameters.
        start: their initial values, by case, in JAX layout.
        hyper: arguments of the optimizer.
        dtype: "float32" or "float64".
        layout: "jax", or "torch" for the torch layout that each case names.
        kernels: device whose fused kernels run; "" for the eager implementation on the CPU.
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
        self._layouts = {case.name: case.torch if layout == "torch" else "jax" for case in cases}
        self._parameters = {name: torch.nn.Parameter(self._tensor(name, start[name])) for name in self._cases}
        self._subject, self._rows, self._has_state = "", [], False
        self._trace: Trace = {}
        self.misfits: dict[tuple[str, str], str] = {}
        hyper = dict(hyper)
        widths = hyper.pop("width_mult", {})
        cls: Any = optimizer_class(artifact.family)
        if issubclass(cls, (MLPRuleOptimizer, LSTMControlledOptimizer)):
            hyper["backend"] = "fused" if kernels else "eager"
        if issubclass(cls, CELO2):  # by default, a GPU would round products to TF32, and the reference does not
            hyper["ns_dtype"] = dtype
        self.eager: set[str] = set()
        """Cases that the eager implementation updated."""
        with _without_advice():
            self._optimizer: Any = cls([self._group(case, widths) for case in cases], weights=artifact, **hyper)
        if tamper is not None:
            kernels_of = self._optimizer.kernels_of
            self._optimizer.kernels_of = lambda p: None if (right := kernels_of(p)) is None else tamper(right)
        self._lr = self._optimizer.param_groups[0]["lr"]
        self._names = {p: name for name, p in self._parameters.items()}
        self._track_parameters()

    def step(self, before: Snapshot, grads: Arrays, loss: float, lr: float | None = None) -> Outcome:
        """One step from ``before``, with the learning rate ``lr`` if a schedule changes it."""
        is_first = not self._has_state and before.run.get("step") == 0
        if not self._has_state and not is_first:  # the optimizer creates its state in its first step
            self._step({name: np.zeros(case.shape) for name, case in self._cases.items()}, 1.0)
        self._has_state = True
        if not is_first:  # the first step of a run tests the optimizer's own initial state
            self._restore(before)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr if lr is None else lr
        self._trace = {}
        with listening(self._record):
            self._step(grads, loss)
        return Outcome(self.snapshot(), self._trace)

    @property
    def subject(self) -> str:
        """The parameter that is being updated, or ``""``."""
        return self._subject

    def run(self, grads: Sequence[Arrays], losses: Sequence[float]) -> Sequence[Arrays]:
        """A whole run from the start; returns the parameters before the first step and after each."""
        trajectory = [{name: self._array(name, p) for name, p in self._parameters.items()}]
        for gradient, loss in zip(grads, losses, strict=True):
            self._step(gradient, loss)
            trajectory.append({name: self._array(name, p) for name, p in self._parameters.items()})
        return trajectory

    def snapshot(self) -> Snapshot:
        """The current state."""
        params = {name: self._array(name, p) for name, p in self._parameters.items()}
        state = {name: {k: v for k, v in self._state(name).items() if k != "step"} for name in self._cases}
        group = self._optimizer.param_groups[0]
        run = {key: group[key].detach().cpu().numpy().copy() for key in self._optimizer.run_keys}
        return Snapshot(params, state, run)

    def _group(self, case: Case, widths: Mapping[str, float]) -> dict[str, Any]:
        group = {"params": [self._parameters[case.name]], "layout": self._layouts[case.name]}
        if case.name in widths:
            group["width_mult"] = widths[case.name]
        return {**group, "rule": case.rule} if case.rule else group

    def _step(self, grads: Arrays, loss: float) -> None:
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
        if unshared := set(self._optimizer.run_keys) ^ set(before.run):
            raise StateMismatch(
                f"Only one of the two sides keeps the run state {', '.join(sorted(unshared))}.",
                "Use the same state keys in the optimizer and its reference.",
            )
        with torch.no_grad():
            for key, value in before.run.items():
                group[key].copy_(torch.as_tensor(np.array(value)))
            for name, p in self._parameters.items():
                p.copy_(self._tensor(name, before.params[name]))
                self._restore_state(name, self._optimizer.state[p], before)

    def _restore_state(self, name: str, state: dict[str, torch.Tensor], before: Snapshot) -> None:
        theirs, ours = before.state[name], {key for key in state if key != "step"}
        if theirs and not ours & theirs.keys():
            raise StateMismatch(
                f"The optimizer keeps {', '.join(sorted(ours)) or 'no state'} per parameter, its reference "
                f"{', '.join(sorted(theirs))}.",
                "Use the same state keys in the optimizer and its reference.",
            )
        if ours != theirs.keys():
            extra, missing = (
                ", ".join(sorted(each)) or "nothing" for each in (ours - theirs.keys(), theirs.keys() - ours)
            )
            for key in ours ^ theirs.keys():
                self.misfits[name, key] = f"only the torch state has {extra}, and only the original's has {missing}"
        for key in theirs.keys() & ours:
            tensor = self._tensor(name, theirs[key])
            if tensor.shape != state[key].shape:
                self.misfits[name, key] = (
                    f"{key} has shape {tuple(state[key].shape)}, but the original's has {tuple(tensor.shape)} "
                    f"in the same layout"
                )
            else:
                state[key].copy_(tensor)
        if "step" in state:
            state["step"].copy_(torch.as_tensor(np.array(before.run["step"])))

    def _state(self, name: str) -> dict[str, np.ndarray]:
        return {key: self._array(name, value) for key, value in self._optimizer.state[self._parameters[name]].items()}

    # --- trace ---

    def _track_parameters(self) -> None:
        """Wrap the optimizer's methods to record which parameter it updates."""
        update, prepare = self._optimizer.update, self._optimizer.prepare

        def updating(item: Any, *args: Any) -> None:
            self._subject = self._names[item.parameter]
            self.eager.add(self._subject)
            update(item, *args)
            self._subject = ""  # not reached if the update raises, so ``subject`` names the parameter

        def preparing(items: Sequence[Any], *args: Any) -> Any:
            self._rows = [self._names[item.parameter] for item in items]
            return prepare(items, *args)

        self._optimizer.update, self._optimizer.prepare = updating, preparing

    def _record(self, quantity: str, value: torch.Tensor) -> None:
        if self._subject:
            self._trace[self._subject, quantity] = self._array(self._subject, value)
        else:
            add_to_trace(self._trace, quantity, value.detach().cpu().numpy().copy(), self._rows)

    # --- layouts ---

    def _tensor(self, name: str, value: np.ndarray) -> torch.Tensor:
        """Convert from JAX layout to the parameter's layout; leading axes stay."""
        value = np.asarray(value)
        axes = self._axes(name, value.ndim)
        ordered = np.array(value if axes is None else value.transpose(axes), order="C")
        return torch.from_numpy(ordered).to(self._device, self._dtype)

    def _array(self, name: str, tensor: torch.Tensor) -> np.ndarray:
        """The inverse of :meth:`_tensor`, as a copy."""
        value = tensor.detach().cpu().numpy()
        axes = self._axes(name, value.ndim)
        return np.array(value if axes is None else value.transpose(np.argsort(axes)), order="C")

    def _axes(self, name: str, ndim: int) -> list[int] | None:
        rank = self._cases[name].ndim
        if self._layouts[name] == "jax" or rank < 2 or ndim not in (rank, rank + 1):
            return None
        lead = ndim - rank
        stacked = (*range(rank - 2), rank - 1, rank - 2)
        order = TORCH_FROM_JAX[rank] if self._layouts[name] == "torch" else stacked
        return [*range(lead), *(lead + axis for axis in order)]
