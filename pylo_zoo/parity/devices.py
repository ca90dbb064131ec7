"""Which fused kernels a proof compares: those of the CPU, and of a GPU if this machine has one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import kernels_for
from pylo_zoo.optim import optimizer_class
from pylo_zoo.optim.lstm_controlled import LSTMControlledOptimizer
from pylo_zoo.optim.mlp_rule import MLPRuleOptimizer
from pylo_zoo.parity.cases import CASES, LONG
from pylo_zoo.parity.report import Kernels
from pylo_zoo.parity.steps import Found

DEVICES = ("cpu", "cuda")


def kernels_of(artifact: Artifact) -> list[Kernels]:
    """The kernels of each device, with the reason if they cannot be compared here; compiles those of the CPU once."""
    return [Kernels(device, _unavailable(artifact, device)) for device in DEVICES]


def _unavailable(artifact: Artifact, device: str) -> str:
    if not issubclass(optimizer_class(artifact.family), (MLPRuleOptimizer, LSTMControlledOptimizer)):
        return f"the optimizer of {artifact.family} has no kernels"
    if device == "cuda" and not torch.cuda.is_available():
        return "this machine has no CUDA device"
    try:
        kernels_for("fused", torch.device(device))
    except ZooError as error:
        return " ".join(error.message.split())
    return ""


def uncovered(device: str, found: Sequence[Found]) -> list[str]:
    """The parameters that the eager implementation stepped in the runs of a device's kernels."""
    eager = {name for each in found if each.kernels == device for name in each.eager}
    return [case.name for case in (*CASES, *LONG) if case.name in eager]
