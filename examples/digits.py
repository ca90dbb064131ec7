"""Train a digits classifier with a learned optimizer and, for comparison, with AdamW.

python examples/digits.py --weights zoo/velo-sample
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import pylo_zoo
from pylo_zoo.experiments.tasks import digits
from pylo_zoo.optim import optimizer_class

MakeOptimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Result:
    name: str
    loss: float
    accuracy: float
    milliseconds: float


def run(name: str, make: MakeOptimizer, data: digits.Images, steps: int, seed: int, progress: Progress) -> Result:
    """One training run. All runs with a seed have the same initial weights and batches."""
    model = digits.classifier(seed)
    optimizer = make(model)
    task = progress.add_task(name, total=steps, loss=float("nan"))
    times = [time.perf_counter()]

    def after_step(loss: float) -> None:
        times.append(time.perf_counter())
        progress.update(task, advance=1, loss=loss)

    losses = digits.train(model, optimizer, data, steps, seed, after_step)
    median = statistics.median(later - earlier for earlier, later in pairwise(times))
    return Result(name, statistics.mean(losses[-20:]), digits.accuracy(model, data), 1000 * median)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="velo-sample", help="registry name or artifact directory")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    artifact = pylo_zoo.load(arguments.weights)
    cls = optimizer_class(artifact.family)
    horizon = {"num_steps": arguments.steps} if cls.needs_loss else {}

    def learned(model: torch.nn.Module) -> torch.optim.Optimizer:
        return cls(model.parameters(), weights=artifact, **horizon)

    def adamw(lr: float) -> MakeOptimizer:
        return lambda model: torch.optim.AdamW(model.parameters(), lr=lr)

    runs = {f"{artifact.name} (hand-set)" if artifact.name == "velo-sample" else artifact.name: learned}
    runs |= {f"AdamW, lr {lr:g}": adamw(lr) for lr in (1e-3, 1e-2)}
    data = digits.load_digits()
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    console = Console()
    with Progress(*columns, console=console) as progress:
        results = [run(name, make, data, arguments.steps, arguments.seed, progress) for name, make in runs.items()]

    table = Table(
        title=f"digits, 64-32-10 network, batch {digits.BATCH}, {arguments.steps} steps", title_justify="left"
    )
    table.add_column("optimizer")
    for column in ("loss, last 20", "test accuracy", "ms per step"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(result.name, f"{result.loss:.5f}", f"{result.accuracy:.2%}", f"{result.milliseconds:.2f}")
    if artifact.name == "velo-sample":
        console.print("velo-sample is set by hand, with two constants tuned on this task. It does not represent VeLO.")
    console.print("The loss is the mean of the last 20 training steps. Times are medians and include the model.")
    console.print("AdamW's rate is constant; optimizers that receive num_steps decrease their steps over the run.")
    console.print(table)


if __name__ == "__main__":
    main()
