"""The fused kernels that a proof compares: CPU kernels, and CUDA kernels if the machine has a CUDA GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import kernels_for
from pylo_zoo.ops.precision import resolve_precision
from pylo_zoo.optim import CELO2, optimizer_class
from pylo_zoo.optim.lstm_controlled import LSTMControlledOptimizer
from pylo_zoo.optim.mlp_rule import MLPRuleOptimizer
from pylo_zoo.parity.cases import CASES, LONG
from pylo_zoo.parity.steps import StepComparison
from pylo_zoo.report.records import Kernels

DEVICES = ("cpu", "cuda")


def kernels_of(artifact: Artifact) -> list[Kernels]:
    """The kernels of each device, with a reason if they cannot be compared. Compiles the CPU kernels if necessary."""
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


def newton_schulz(artifact: Artifact, fused: Sequence[str]) -> dict[str, str] | None:
    """Precision of Newton–Schulz in the float32 checks, by backend; None if the rule does not orthogonalize."""
    if not (issubclass(optimizer_class(artifact.family), CELO2) and artifact.behavior.orthogonalize):
        return None
    places = {"eager": "cpu", **{device: device for device in fused}}
    return {
        name: resolve_precision("float32", torch.float32, torch.device(place)).name for name, place in places.items()
    }


def uncovered(device: str, comparisons: Sequence[StepComparison]) -> list[str]:
    """The parameters that the eager implementation updated in the runs with kernels of ``device``."""
    eager = {name for each in comparisons if each.kernels == device for name in each.eager}
    return [case.name for case in (*CASES, *LONG) if case.name in eager]
