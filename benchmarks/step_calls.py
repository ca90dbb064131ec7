"""Count the project's own functions and files that one VeLO step enters, eager and fused.

A reader of the step has to read that many. ``python benchmarks/step_calls.py [--list]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pylo_zoo
from pylo_zoo.optim import VeLO

PACKAGE = str(Path(pylo_zoo.__file__).parent)


def entered(step: Callable[[], object]) -> set[tuple[str, str]]:
    """The package's files and functions that ``step`` calls; comprehensions and lambdas count with their function."""
    found: set[tuple[str, str]] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            found.add((file[len(PACKAGE) + 1 :], name.partition(".<locals>")[0]))

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


def a_step(backend: str) -> set[tuple[str, str]]:
    """The third step of VeLO over a small convolutional network."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10))
    optimizer = VeLO(net.parameters(), num_steps=10, weights="velo-sample", backend=backend)
    found: set[tuple[str, str]] = set()
    for _ in range(3):
        loss = net(torch.randn(4, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        found = entered(lambda loss=loss: optimizer.step(lambda: loss))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the functions")
    listed = parser.parse_args().list
    for backend in ("eager", "fused"):
        found = a_step(backend)
        print(f"{backend}: {len(found)} functions in {len({file for file, _ in found})} files")
        if listed:
            print(*(f"  {file}: {name}" for file, name in sorted(found)), sep="\n")
