"""Training losses on the digits with 16-bit parameters, with and without float32 master weights.

    python benchmarks/precision.py [NAME_OR_DIRECTORY ...]

Trains one classifier per dtype, from the same start, with each checkpoint, Muon and torch's AdamW. Prints the mean loss
of the last 20 steps, averaged over three seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pylo_zoo
from pylo_zoo.experiments.tasks import digits
from pylo_zoo.optim import Muon, optimizer_class

STEPS, SEEDS = 500, 3
RUNS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, master": (torch.bfloat16, True),
    "float16": (torch.float16, False),
    "float16, master": (torch.float16, True),
}


class Narrow(nn.Module):
    """The classifier in ``dtype``, with float32 logits and loss."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.classifier = digits.classifier(seed).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.to(self.dtype)).float()


def builders(names: list[str]) -> dict[str, Callable[[Any, bool], torch.optim.Optimizer | None]]:
    """By column title: a function from parameters and ``master_weights`` to an optimizer, or None if unsupported."""

    def learned(artifact: pylo_zoo.Artifact) -> Callable[[Any, bool], torch.optim.Optimizer]:
        cls: Any = optimizer_class(artifact.family)
        horizon = {"num_steps": STEPS} if cls.needs_loss else {}
        return lambda params, master: cls(params, weights=artifact, master_weights=master, **horizon)

    artifacts = [pylo_zoo.load(name) for name in names]
    return {
        **{f"{optimizer_class(a.family).__name__} ({a.name})": learned(a) for a in artifacts},
        "Muon, lr 0.02": lambda params, master: Muon(params, master_weights=master),
        "AdamW, lr 0.001": lambda params, master: None if master else torch.optim.AdamW(params),
    }


def final_loss(
    build: Callable[[Any, bool], torch.optim.Optimizer | None], run: str, seeds: int = SEEDS
) -> float | None:
    """Mean loss of the last 20 steps, averaged over the seeds."""
    dtype, master = RUNS[run]
    means = []
    for seed in range(seeds):
        model = Narrow(seed, dtype)
        optimizer = build(model.parameters(), master)
        if optimizer is None:
            return None
        losses = digits.train(model, optimizer, digits.load_digits(), STEPS, seed)
        means.append(statistics.mean(losses[-20:]))
    return statistics.mean(means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=["velo-sample"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    losses = {
        name: {run: final_loss(build, run) for run in RUNS} for name, build in builders(arguments.weights).items()
    }
    if arguments.json:
        print(json.dumps(losses, indent=2))
        return
    table = Table(title=f"{STEPS} steps, {SEEDS} seeds, torch {torch.__version__}", title_justify="left")
    for column in ("optimizer", *RUNS):
        table.add_column(column)
    for name, row in losses.items():
        table.add_row(name, *("–" if loss is None else f"{loss:.2g}" for loss in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
