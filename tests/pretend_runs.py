"""Runs on the pretend device and on the CPU, compared bit for bit (``pretend_device.py`` explains the device).

``python tests/pretend_runs.py [--thorough]`` prints, as JSON, what differs in each case.
"""

# pyright: reportArgumentType=false
from __future__ import annotations

import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from contract_table import TABLE, Entry
from pretend_device import SHAPES, VARIANTS, Constructors, PretendTensor, Recorder, install, unwrap
from torch import Tensor

from pylo_zoo.kernels.cpu import CpuKernels
from pylo_zoo.weights import load

STEPS = 5
Values = dict[str, Tensor]
Event = Callable[["Run"], None]


class Run:
    """A run of an optimizer over a few parameters, on the CPU or on the pretend device."""

    def __init__(self, build: Callable[[Any], Any], dtype: torch.dtype, on_device: bool, mixed: bool = False) -> None:
        self.build, self.dtype, self.generator = build, dtype, torch.Generator().manual_seed(0)
        self.mixed = mixed  # whether every second parameter stays on the CPU
        self.move_to(on_device, [torch.randn(shape, generator=self.generator).to(dtype) for shape in SHAPES])

    def move_to(self, on_device: bool, values: list[Tensor]) -> None:
        """Continue with a new optimizer, over new parameters, and with the state of the last one, if any."""
        state = self.optimizer.state_dict() if hasattr(self, "optimizer") else None
        self.on_device = on_device
        values = [unwrap(value).detach().clone() for value in values]
        self.params = [self.place(value, k).requires_grad_() for k, value in enumerate(values)]
        self.optimizer = self.build(self.params)
        if state is not None:
            with self.device():
                self.optimizer.load_state_dict(state)

    def place(self, value: Tensor, k: int = 0) -> Tensor:
        return PretendTensor(value) if self.on_device and not (self.mixed and k % 2) else value

    def device(self) -> Any:
        return _Device()

    def step(self, loss: float, gradient: float | None = None) -> None:
        """One step; ``gradient`` is an element of one of the gradients."""
        for k, p in enumerate(self.params):
            g = torch.randn(p.shape, generator=self.generator).to(self.dtype)
            if k == 2 and gradient is not None:
                g.view(-1)[5] = gradient
            p.grad = self.place(g, k)
        with self.device():
            self.optimizer.step(loss=self.place(torch.tensor(loss)))

    def values(self) -> Values:
        """Copies of parameters, state and the run's state, on the CPU."""
        state, run = self.optimizer.state, self.optimizer.param_groups[0]
        values = {f"parameter {k}": p for k, p in enumerate(self.params)}
        values |= {f"{name} of {k}": v for k, p in enumerate(self.params) for name, v in state.get(p, {}).items()}
        values |= {f"the run's {name}": run[name] for name in getattr(self.optimizer, "run_keys", ()) if name in run}
        return {name: unwrap(value).detach().clone() for name, value in values.items()}


class _Device:
    """The modes in which operations run on the pretend device."""

    def __enter__(self) -> None:
        self._recorder = Recorder()
        self._modes = Constructors(self._recorder.waits), self._recorder
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def differences(one: Values, other: Values) -> list[str]:
    """The names of values whose bits differ. All NaNs are equal."""
    names = one.keys() | other.keys()
    return sorted(n for n in names if n not in one or n not in other or not _same_bits(one[n], other[n]))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype) or not torch.equal(one.isnan(), other.isnan()):
        return False
    one, other = (torch.where(each.isnan(), 0, each) for each in (one, other))
    return torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)))


# --- what happens between two steps ----------------------------------------------------------------------------------


def move_to_device(run: Run) -> None:
    """The run's state continues on the device; ``run`` is on the CPU before."""
    run.move_to(True, run.params)


def move_to_cpu(run: Run) -> None:
    run.move_to(False, run.params)


def counters_on_cpu(run: Run) -> None:
    """An optimizer that an older version pickled has its counters on the CPU."""
    for entries in (*run.optimizer.param_groups, *run.optimizer.state.values()):
        for name in {"step", "banked"} & entries.keys():
            entries[name] = unwrap(entries[name]).clone()


def counters_as_numbers(run: Run) -> None:
    """A wrapper has turned counters into numbers."""
    for entries in (*run.optimizer.param_groups, *run.optimizer.state.values()):
        if "step" in entries:
            entries["step"] = int(unwrap(entries["step"]))


def nothing(run: Run) -> None: ...


EVENTS: dict[str, tuple[bool, Event]] = {
    "nothing": (True, nothing),
    "it moves to the device": (False, move_to_device),
    "it moves to the CPU": (True, move_to_cpu),
    "its counters are on the CPU": (True, counters_on_cpu),
    "its counters are numbers": (True, counters_as_numbers),
}
"""Whether the run starts on the device, and what happens after its third step."""
QUICK = [("defaults", "its counters are on the CPU"), ("accumulate", "it moves to the device")]


NONFINITE = ((1.0, math.inf), (0.5, None), (0.3, math.nan), (math.nan, None), (0.2, -math.inf), (0.1, None))
"""Loss of each step, and an element of a gradient."""
LARGE = (0.1, 1e38)
"""Finite, but the square of the gradient is not."""


def compare_skipping(
    build: Callable[[Any], Any], dtype: torch.dtype, repeats: int, mixed: bool = False
) -> dict[int, list[str]]:
    """What differs from a run on the CPU in which the same steps are skipped."""
    one, other, found = Run(build, dtype, False), Run(build, dtype, True, mixed), {}
    for step, (loss, gradient) in enumerate([*NONFINITE * repeats, LARGE, NONFINITE[0]]):
        for run in (one, other):
            run.step(loss, gradient)
        values, others = one.values(), other.values()
        if not any(one.optimizer.state.values()):  # a skipped first step creates no state on the CPU
            others = {name: value for name, value in others.items() if name in values}
        differing = differences(values, others)
        differing += ["skipped_steps"] if one.optimizer.skipped_steps != other.optimizer.skipped_steps else []
        if differing:
            found[step] = differing
    return found


def compare(build: Callable[[Any], Any], dtype: torch.dtype, event: str) -> dict[int, list[str]]:
    """What differs from a run on the CPU, by step."""
    on_device, change = EVENTS[event]
    one, other, found = Run(build, dtype, False), Run(build, dtype, on_device), {}
    for step in range(STEPS):
        if step == 3:
            change(other)
        messages = []
        for run in (one, other):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run.step(1.0 / (step + 1))
            messages.append([str(each.message) for each in caught])
        differing = differences(one.values(), other.values())
        differing += ["warnings"] if messages[0] != messages[1] and event == "nothing" else []
        if differing:
            found[step] = differing
    return found


def arguments_of(entry: Entry, extra: Mapping[str, Any], backend: str) -> dict[str, Any] | None:
    """The arguments of an optimizer, or None if it does not accept ``extra``."""
    if not extra.keys() <= inspect.signature(entry.cls).parameters.keys():
        return None
    weights = {} if entry.weights is None else {"weights": load(entry.weights)}
    return {**entry.arguments, **weights, **extra, "backend": backend}


def cases(thorough: bool) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Variant, its arguments, and what happens during the run."""
    variants: dict[str, dict[str, Any]] = {"defaults": {}, "accumulate": VARIANTS["accumulate"]}
    for event, (name, extra) in product(EVENTS, variants.items()):
        if thorough or (name, event) in QUICK:
            yield name, extra, event
    yield "a run longer than num_steps", {"num_steps": 3}, "nothing"
    yield from ((name, VARIANTS[name], "nothing") for name in ("skip", "skip, accumulate"))
    if thorough:
        yield from ((name, extra, "nothing") for name, extra in VARIANTS.items())


def main(thorough: bool) -> None:
    install()
    torch.set_num_threads(1)
    # The device has no kernels for the LSTM: on the CPU, torch computes it as well, with the same roundings.
    setattr(CpuKernels, "plan_lstm", lambda *arguments: None)  # noqa: B010
    results: dict[str, Any] = {}
    for (name, entry), backend in product(TABLE.items(), ("eager", "fused") if thorough else ("fused",)):
        for variant, extra, event in cases(thorough):
            arguments = arguments_of(entry, extra, backend)
            if arguments is not None:
                dtype = torch.bfloat16 if "master_weights" in extra else torch.float32
                build = lambda p, a=arguments, c=entry.cls: c(p, **a)  # noqa: E731
                skips = extra.get("nonfinite") == "skip"
                found = compare_skipping(build, dtype, 1 + thorough) if skips else compare(build, dtype, event)
                results[f"{name}, {backend}, {variant}, {event}"] = found
    for name in ("VeLO", "CELO2", "ELO", "Muon"):
        skips = arguments_of(TABLE[name], {"nonfinite": "skip"}, "fused") or {}
        build = lambda p, a=skips, c=TABLE[name].cls: c(p, **a)  # noqa: E731
        results[f"{name}, on two devices"] = compare_skipping(build, torch.float32, 1, mixed=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main("--thorough" in sys.argv)
