"""What a step inside a CUDA graph of the caller cannot do."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pylo_zoo.errors import quoted
from pylo_zoo.optim.checks import require


def check_capture(reads_values: bool, loss: Any, has_state: bool) -> None:
    """Raise if a graph that the caller captures cannot contain a step.

    Args:
        reads_values: whether the step reads values, with ``nonfinite="raise"``.
        loss: the loss, or None if the rule does not read it.
        has_state: whether every parameter with a gradient has been updated before.

    Raises:
        ZooError: the step reads values, repeats a number of the host, or creates state.
    """
    require(
        not reads_values,
        'A step with nonfinite="raise" reads values, which a CUDA graph cannot.',
        'Use nonfinite="skip" or "propagate".',
    )
    on_host = "on the CPU" if isinstance(loss, Tensor) else quoted(loss)
    require(
        loss is None or (isinstance(loss, Tensor) and not loss.is_cpu),
        f"The loss is {on_host}, and a CUDA graph would repeat its value.",
        "Pass the loss as a tensor on the GPU.",
    )
    require(
        has_state,
        "This capture contains the first step of a parameter, which creates its state.",
        "Run a step outside the capture, then capture again.",
    )
