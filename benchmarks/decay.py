"""Effect of weight decay and learning-rate schedules on the loss and accuracy of VeLO, Celo and CeloAdam on the digits.

    python benchmarks/decay.py [NAME_OR_DIRECTORY ...] [--steps 500] [--seeds 2]

Trains one classifier per weight decay (constant lr 1) and one per schedule (no decay), from the same start, and prints
the training loss, averaged over the last 20 steps, and the held-out accuracy. Chance is a loss of 2.30 and an accuracy
of 0.10. docs/training.md shows the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import pylo_zoo
from pylo_zoo.experiments.tasks import digits
from pylo_zoo.experiments.train.schedules import factor
from pylo_zoo.optim import optimizer_class

DECAYS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
SCHEDULES = ("linear", "cosine", "wsd")
LAST = 20


class Outcome(NamedTuple):
    """Training loss at the end of a run and accuracy on held-out images, averaged over the seeds."""

    loss: float
    accuracy: float


def outcome(
    artifact: pylo_zoo.Artifact, steps: int, seeds: int, weight_decay: float = 0.0, schedule: str = "constant"
) -> Outcome:
    """Train with one setting."""
    losses, accuracies = [], []
    data = digits.load_digits()
    for seed in range(seeds):
        model = digits.classifier(seed)
        cls: Any = optimizer_class(artifact.family)
        optimizer = cls(model.parameters(), num_steps=steps, weights=artifact, weight_decay=weight_decay)
        history = digits.train(model, optimizer, data, steps, seed, after_step=_scheduler(optimizer, schedule, steps))
        losses.append(statistics.mean(history[-LAST:]))
        accuracies.append(digits.accuracy(model, data))
    return Outcome(statistics.mean(losses), statistics.mean(accuracies))


def _scheduler(optimizer: torch.optim.Optimizer, schedule: str, steps: int) -> Callable[[float], None]:
    """A callback for the end of each step."""
    if schedule == "constant":
        return lambda loss: None
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(schedule, step, steps))
    return lambda loss: scheduler.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=["velo-sample"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings: dict[str, dict[str, Any]] = {
        **{f"weight_decay {decay:g}": {"weight_decay": decay} for decay in DECAYS},
        **{f"{schedule} schedule": {"schedule": schedule} for schedule in SCHEDULES},
    }
    artifacts = [pylo_zoo.load(name) for name in arguments.weights]
    outcomes = {
        label: {each.name: outcome(each, arguments.steps, arguments.seeds, **setting) for each in artifacts}
        for label, setting in settings.items()
    }
    if arguments.json:
        rows = {label: {name: each._asdict() for name, each in row.items()} for label, row in outcomes.items()}
        print(json.dumps(rows))
        return
    table = Table(title=f"{arguments.steps} steps, {arguments.seeds} seeds: loss, accuracy", title_justify="left")
    for column in ("setting", *(each.name for each in artifacts)):
        table.add_column(column)
    for label, row in outcomes.items():
        table.add_row(label, *(f"{each.loss:.2g}, {each.accuracy:.3f}" for each in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
