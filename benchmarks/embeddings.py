"""What an embedding under a matrix rule costs: training losses of a lookup task, with and without ``param_groups``.

    python benchmarks/embeddings.py [NAME_OR_DIRECTORY ...] [--steps 1000] [--seeds 2]

The task maps each of 512 tokens to one of 10 random labels through an embedding and two layers. Muon always runs;
checkpoints of CELO2 and ELO-CELO2 run if they are named. The output is the mean loss of the last 20 steps; chance is
2.30. docs/training.md shows the result.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import pylo_zoo
from pylo_zoo.optim import Muon, optimizer_class, param_groups

VOCABULARY, DIM, LABELS, BATCH, LAST = 512, 32, 10, 64, 20
GROUPS: dict[str, Callable[[nn.Module], Any]] = {
    "model.parameters()": lambda model: [{"params": model.parameters(), "rule": None}],
    "param_groups(model)": param_groups,
}


def final_loss(build: Callable[[Any], torch.optim.Optimizer], groups: str, steps: int, seed: int) -> float:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(VOCABULARY, DIM), nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, LABELS))
    labels = torch.randint(LABELS, (VOCABULARY,))
    optimizer = build(GROUPS[groups](model))
    losses = []
    for _ in range(steps):
        tokens = torch.randint(VOCABULARY, (BATCH,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), labels[tokens])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses[-LAST:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    builders: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "Muon, lr 0.02": lambda groups: Muon(groups, ns_dtype=torch.float32)  # bfloat16 is slow on CPUs
    }
    for name in arguments.weights:
        artifact = pylo_zoo.load(name)
        cls: Any = optimizer_class(artifact.family)
        builders[artifact.name] = lambda groups, cls=cls, artifact=artifact: cls(groups, weights=artifact)
    for name, build in builders.items():
        for groups in GROUPS:
            losses = [final_loss(build, groups, arguments.steps, seed) for seed in range(arguments.seeds)]
            print(f"{name}, {groups}: loss {statistics.mean(losses):.2g}")


if __name__ == "__main__":
    main()
