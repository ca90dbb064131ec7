"""Copies on the host of a run's counters, for decisions that must not wait for a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class HostCounts:
    """Copies on the host of the counters that are on another device.

    A counter on a CPU is read each time. One on another device is read when its tensor is new to the host: in a run's
    first step, after loading, and after a caller has replaced it. From then on, the host counts along.

    So the host misses what happens on the device alone. Replays of a CUDA graph and steps inside ``torch.compile``
    advance the device's counters only: the warning about ``num_steps`` comes late or never. Capture as many calls of
    ``step`` as ``accumulate`` is, or a multiple, so that the host knows which call follows. A step that
    ``nonfinite="skip"`` leaves out on the device counts here: the warning comes early.
    """

    def __init__(self) -> None:
        self._known: tuple[Any, ...] = ()
        self._step = self._calls = 0
        self.completes_step = True  # whether this call completes a step, as far as the host can tell
        self._accumulating: set[Tensor] = set()

    def refresh(self, run: Mapping[str, Any], state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Read the counters of the ``run`` and the parameters' ``state`` if the run has other tensors than before."""
        counters = run.get("step"), run.get("banked")
        if len(self._known) == len(counters) and all(map(_is_same, counters, self._known)):
            return
        self._known = counters
        self._step, self._calls = (_read(each) for each in counters)
        self._accumulating = {p for p, entry in state.items() if _is_elsewhere(b := entry.get("banked")) and _read(b)}

    def step(self, run: Mapping[str, Any]) -> int:
        """The number of earlier steps."""
        return self._step if _is_elsewhere(run["step"]) else int(run["step"])

    def calls(self, run: Mapping[str, Any]) -> int:
        """The number of accumulated calls."""
        return self._calls if _is_elsewhere(run["banked"]) else int(run["banked"])

    def is_accumulating(self, p: Tensor, entry: Mapping[str, Any]) -> bool:
        """Whether a parameter with this state has accumulated gradients."""
        banked = entry.get("banked", 0)
        return p in self._accumulating if _is_elsewhere(banked) else int(banked) > 0

    def add_step(self) -> None:
        self._step += 1

    def add_call(self, parameters: list[Tensor]) -> None:
        """Count a call that added the gradients of ``parameters``."""
        self._calls += 1
        self._accumulating.update(parameters)

    def reset_calls(self, keep_parameters: bool = False) -> None:
        """Count from 0 again; ``keep_parameters`` if they may still have accumulated gradients."""
        self._calls = 0
        if not keep_parameters:
            self._accumulating.clear()


def _is_elsewhere(counter: Any) -> bool:
    return isinstance(counter, Tensor) and not counter.is_cpu


def _is_same(counter: Any, known: Any) -> bool:
    return counter is known


def _read(counter: Any) -> int:
    """The value of a counter; 0 if it is missing or on the meta device. A number becomes a tensor before it matters."""
    return int(counter) if isinstance(counter, Tensor) and not counter.is_meta else 0
