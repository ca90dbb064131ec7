"""The host's time per step: kernels are replaced by functions that do nothing, so only Python and small torch
operations remain. Prints µs per tensor and the ratio to fused AdamW's in the same run.

    python benchmarks/host_time.py [--tensors 1000] [--optimizers VeLO,CELO2] [--steps 30]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pylo_zoo import optim
from pylo_zoo.kernels import cpu, kernels_for

LEARNED: dict[str, Callable[[Any], Any]] = {
    "VeLO": lambda params: optim.VeLO(params, num_steps=1000, weights="random:velo", backend="fused"),
    "Celo": lambda params: optim.Celo(params, num_steps=1000, weights="random:celo", backend="fused"),
    "CeloAdam": lambda params: optim.CeloAdam(params, num_steps=1000, weights="random:celo-adam", backend="fused"),
    "CELO2": lambda params: optim.CELO2(params, weights="random:celo2", backend="fused"),
    "CELO2 base": lambda params: optim.CELO2(params, weights="random:celo2-base", backend="fused"),
    "ELO": lambda params: optim.ELO(params, weights="random:elo", backend="fused"),
    "MuLO": lambda params: optim.MuLO(params, weights="random:mulo", backend="fused"),
    "Muon": lambda params: optim.Muon(params, backend="fused"),
}
IDLE = ("advance", "moments", "move", "normalized", "adam", "gates", "lstm_step")
"""The kernel functions that do nothing during the measurement."""


class IdleLibrary:
    """The CPU kernel library without its work: buffers keep what they contain."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        idle = name.removeprefix("pylo_zoo_") in IDLE
        return (lambda *arguments: None) if idle else getattr(self._library, name)


def parameters(count: int) -> list[torch.nn.Parameter]:
    """Vectors of 8 elements with gradients: the smallest work that takes every part of a step."""
    params = [torch.nn.Parameter(torch.ones(8)) for _ in range(count)]
    for p in params:
        p.grad = torch.ones(8)
    return params


def median_step(step: Callable[[], Any], steps: int) -> float:
    """Median CPU seconds per step on one thread, after three steps that build plans."""
    for _ in range(3):
        step()
    times = []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=1000)
    parser.add_argument("--optimizers", default=",".join(LEARNED))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kernels = kernels_for("fused", torch.device("cpu"))
    if not isinstance(kernels, cpu.CpuKernels):
        raise SystemExit("The CPU kernels are unavailable.")
    kernels._library = IdleLibrary(kernels._library)
    adamw = torch.optim.AdamW(parameters(arguments.tensors), fused=True)
    floor = median_step(adamw.step, arguments.steps)
    print(f"{'AdamW fused':12} {floor / arguments.tensors * 1e6:6.2f} µs per tensor")
    for name in arguments.optimizers.split(","):
        optimizer = LEARNED[name](parameters(arguments.tensors))
        seconds = median_step(lambda o=optimizer: o.step(loss=1.0), arguments.steps)
        print(f"{name:12} {seconds / arguments.tensors * 1e6:6.2f} µs per tensor, {seconds / floor:5.2f} × AdamW")


if __name__ == "__main__":
    main()
