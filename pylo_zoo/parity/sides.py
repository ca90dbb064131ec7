"""What the two sides of a comparison share: snapshots, traces, and settings of a run.

:class:`~pylo_zoo.parity.torch_side.TorchSide` and :class:`~pylo_zoo.parity.jax_side.JaxSide` run single steps from any
state and whole runs. Both accept and return numpy arrays in JAX layout, so both can start a step from the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import Kernels
from pylo_zoo.parity.quantities import PER_TENSOR

Arrays = Mapping[str, np.ndarray]
Trace = dict[tuple[str, str], np.ndarray]
"""Intermediate quantities by case (``""`` for the run) and name."""


class Snapshot(NamedTuple):
    """The complete state before or after a step.

    Attributes:
        params: by case, in JAX layout.
        state: by case and name, channel axis first, then JAX layout; ``row`` and ``col`` keep the averaged axis with
            size 1.
        run: ``step``, and for VeLO and Celo ``loss_average`` and ``loss_minimum`` ``[10]``.
    """

    params: Arrays
    state: Mapping[str, Arrays]
    run: Arrays


class Outcome(NamedTuple):
    """The state after a step, and the intermediate quantities of the step."""

    after: Snapshot
    trace: Trace


Tamper = Callable[[Kernels], Any]
"""Wraps a device's kernels in kernels with a planted fault."""


class StateMismatch(ZooError):
    """The two sides do not keep the same state."""


def add_to_trace(trace: Trace, quantity: str, value: np.ndarray, names: Sequence[str]) -> None:
    """Record a quantity of the run, or one row per parameter of a per-tensor quantity."""
    if quantity.startswith(PER_TENSOR):
        trace.update({(name, quantity): row for name, row in zip(names, value, strict=True)})
    else:
        trace["", quantity] = value


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, because rounding must not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_behavior(artifact: Artifact, changes: Mapping[str, Any]) -> Artifact:
    """``artifact`` with the behavior fields ``changes`` replaced."""
    return replace(artifact, behavior=replace(artifact.behavior, **changes)) if changes else artifact
