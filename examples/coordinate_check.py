"""The coordinate check: does MuLO's step transfer between widths, with and without its width multipliers?

python examples/coordinate_check.py --weights zoo/mulo

Prints the change of each layer's outputs after four steps, for several widths of a perceptron, and the exponent of its
growth with the width. It is about 0 with the multipliers, and about 1 in the hidden layer without them.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pylo_zoo
from pylo_zoo.artifact import Artifact
from pylo_zoo.experiments.tasks.coordinates import MuMLP, coordinate_check, growth
from pylo_zoo.optim import MuLO, param_groups


def make(width: int, artifact: Artifact, scaled: bool) -> tuple[nn.Module, MuLO]:
    """A perceptron and its optimizer. ``scaled``: divide the hidden weights' steps by the width multiplier."""
    model = MuMLP(width)
    options = {"hidden.weight": {"width_mult": model.width_mult}} if scaled else {}
    return model, MuLO(param_groups(model, width_mult=1.0, options=options), weights=artifact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="mulo", help="registry name or artifact directory of family mulo")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()

    artifact = pylo_zoo.load(arguments.weights)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 16, generator=generator), torch.randn(64, 4, generator=generator)

    def loss(model: nn.Module) -> Tensor:
        return nn.functional.mse_loss(model(x), y)

    table = Table(title=f"change of each layer's outputs after {arguments.steps} steps")
    for column in ("width_mult", "layer", *map(str, arguments.widths), "exponent"):
        table.add_column(column, justify="left" if column in ("width_mult", "layer") else "right")
    for scaled in (True, False):
        changes = coordinate_check(
            lambda width, scaled=scaled: make(width, artifact, scaled), loss, arguments.widths, arguments.steps
        )
        for layer, sizes in changes.items():
            shown = [f"{size:.3g}" for size in sizes]
            table.add_row("width/64" if scaled else "1", layer, *shown, f"{growth(sizes, arguments.widths):+.2f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
