"""What a training run returns, and its summary."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Result:
    """The result of a run.

    Attributes:
        losses: loss before each step.
        evaluations: metrics on held-out data, by step.
        model_seconds, optimizer_seconds: times of each step that this process ran.
        diverged: why the run stopped early, or None.
        state_bytes: size of the optimizer's state.
        resumed_at: the first step that this process ran.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    model_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    diverged: str | None = None
    state_bytes: int = 0
    resumed_at: int = 0

    @property
    def final(self) -> dict[str, float]:
        """The last evaluation."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}


def summary(result: Result, steps: int) -> dict[str, Any]:
    """The results after ``steps`` steps: the mean loss of the last 5%, and median times in milliseconds."""
    last = result.losses[-max(1, len(result.losses) // 20) :]
    return {
        "steps": steps,
        "loss": statistics.fmean(last) if last else None,
        "evaluation": result.final,
        "diverged": result.diverged,
        "model_ms": _milliseconds(result.model_seconds),
        "optimizer_ms": _milliseconds(result.optimizer_seconds),
        "state_bytes": result.state_bytes,
        "resumed_at": result.resumed_at,
    }


def _milliseconds(seconds: list[float]) -> float | None:
    return 1000 * statistics.median(seconds) if seconds else None


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Size of the tensors in the optimizer's state."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
