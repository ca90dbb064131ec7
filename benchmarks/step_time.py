"""Time of one optimizer step against fused AdamW's on the same parameters, interleaved in one run.

    python benchmarks/step_time.py [NAME_OR_DIRECTORY ...]

Prints a table of medians, and of the ratios pair by pair; --json prints them for a machine. Machines are noisy: quote
the ratio, and the machine with it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pylo_zoo
from pylo_zoo.optim import optimizer_class

WIDTH, LAYERS, VOCABULARY = 320, 6, 5000


def parameters() -> list[torch.nn.Parameter]:
    """Those of a small GPT: 10.6 million in 75 tensors, with gradients."""
    block = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH), *[(WIDTH,)] * 8]
    shapes = [(VOCABULARY, WIDTH), (256, WIDTH), *block * LAYERS, (WIDTH,)]
    generator = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
    for p in found:
        p.grad = 0.01 * torch.randn(p.shape, generator=generator)
    return found


def timed(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step(lambda: 1.0)
    return time.perf_counter() - start


def measure(weights: str, steps: int) -> dict[str, float | str]:
    """Medians over ``steps`` pairs of steps, after two that are not counted."""
    artifact = pylo_zoo.load(weights)
    cls = optimizer_class(artifact.family)
    horizon: dict[str, Any] = {"num_steps": 1000} if cls.needs_loss else {}
    ours = cls(parameters(), weights=artifact, **horizon)
    adamw = torch.optim.AdamW(parameters(), fused=True)
    pairs = [(timed(ours), timed(adamw)) for _ in range(steps + 2)][2:]
    return {
        "weights": weights,
        "optimizer": cls.__name__,
        "ms": 1000 * statistics.median(a for a, _ in pairs),
        "adamw_ms": 1000 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "least_ratio": min(a / b for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=["velo-sample"])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(weights, arguments.steps) for weights in arguments.weights]
    count = sum(p.numel() for p in parameters())
    about = f"{count:,} parameters, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    if arguments.json:
        print(json.dumps({"about": about, "rows": rows}, indent=2))
        return
    table = Table(title=about, title_justify="left")
    for column in ("optimizer", "weights", "ms", "AdamW ms", "ratio", "least"):
        table.add_column(column)
    for row in rows:
        numbers = (f"{row[key]:.1f}" for key in ("ms", "adamw_ms", "ratio", "least_ratio"))
        table.add_row(str(row["optimizer"]), str(row["weights"]), *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
