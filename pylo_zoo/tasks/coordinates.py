"""The coordinate check of the maximal update parametrization (arXiv 2203.03466, appendix D.1).

Training for a few steps must change a layer's outputs by the same amount at every width. Where the change grows with
the width, steps that are right for a narrow model are too long for a wide one; where it shrinks, the layer stops
learning. Either way hyperparameters, and learned optimizers, do not carry over from one width to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Activations = dict[str, Tensor]


def coordinate_check(
    make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]],
    loss: Callable[[nn.Module], Tensor],
    widths: Sequence[int],
    steps: int = 4,
) -> dict[str, list[float]]:
    """How far a few steps move the outputs of each layer, over widths.

    Args:
        make: a new model of a width and its optimizer.
        loss: the loss of a model on a fixed batch, which runs it once; a scalar.
        widths: widths to compare.
        steps: optimizer steps at each.

    Returns:
        For every module with parameters of its own, by name, the root mean square change of its outputs: one figure a
        width.
    """
    found: dict[str, list[float]] = {}
    for width in widths:
        model, optimizer = make(width)

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            return value

        before = _activations(model, loss)
        for _ in range(steps):
            optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, after in _activations(model, loss).items():
            found.setdefault(name, []).append(float((after - before[name]).square().mean().sqrt()))
    return found


def growth(changes: Sequence[float], widths: Sequence[int]) -> float:
    """The exponent ``a`` of the least-squares fit ``change ∝ width^a``: about 0 where the parametrization is right."""
    x, y = ([math.log(value) for value in values] for values in (widths, changes))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def _activations(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Activations:
    """The outputs of every module with parameters of its own, during one evaluation of the loss."""
    found: Activations = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                found[name] = output.detach().clone()

        return hook

    own = [(name, m) for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_hook(keep(name)) for name, module in own]
    try:
        with torch.no_grad():
            loss(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


class MuMLP(nn.Module):
    """A perceptron with two hidden layers in the maximal update parametrization, in the form that Adam takes.

    Weights start with variance 1/fan-in, those of the readout at 0, as the paper advises, since what noise they start
    with shrinks with the width and would blur the check; the readout divides its input by ``width / base_width``. What
    remains to the optimizer is to divide the steps of ``hidden.weight``, alone, by ``width / base_width``.

    Args:
        width: of both hidden layers.
        base_width: width at which this is the standard parametrization.
        inputs: number of inputs.
        outputs: number of outputs.
        seed: of the initial weights.
    """

    def __init__(self, width: int, base_width: int = 64, inputs: int = 16, outputs: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.width_mult = width / base_width
        self.input = nn.Linear(inputs, width)
        self.hidden = nn.Linear(width, width)
        self.readout = nn.Linear(width, outputs)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            nn.init.zeros_(p)
        for layer in (self.input, self.hidden):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[batch, outputs]`` of ``x`` ``[batch, inputs]``."""
        x = torch.relu(self.hidden(torch.relu(self.input(x))))
        return self.readout(x / self.width_mult)


__all__ = ["MuMLP", "coordinate_check", "growth"]
