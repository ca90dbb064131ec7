"""The coordinate check of the maximal update parametrization (arXiv 2203.03466, appendix D.1).

A few training steps must change a layer's outputs by the same amount at every width. If the change grows with the
width, steps that suit a narrow model are too large for a wide one; if it shrinks, the layer stops learning. In both
cases hyperparameters and learned optimizers do not transfer between widths.
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
    """Measure how much a few steps change the outputs of each layer, at several widths.

    Args:
        make: builds a model of a width and its optimizer.
        loss: the scalar loss of a model on a fixed batch; it calls the model once.
        widths: widths to compare.
        steps: optimizer steps at each width.

    Returns:
        The root mean square change of the outputs, per width, for every module that has its own parameters, by name.
    """
    changes: dict[str, list[float]] = {}
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
            changes.setdefault(name, []).append(float((after - before[name]).square().mean().sqrt()))
    return changes


def growth(changes: Sequence[float], widths: Sequence[int]) -> float:
    """The exponent ``a`` of the least-squares fit ``change ∝ width^a``, about 0 for a correct parametrization."""
    x, y = ([math.log(value) for value in values] for values in (widths, changes))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def _activations(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Activations:
    """The outputs of every module that has its own parameters, during one evaluation of the loss."""
    outputs: Activations = {}

    def store(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.detach().clone()

        return hook

    layers = [(name, m) for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_hook(store(name)) for name, module in layers]
    try:
        with torch.no_grad():
            loss(model)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


class MuMLP(nn.Module):
    """An MLP with two hidden layers in the maximal update parametrization for Adam.

    The weights start with variance 1/fan_in. The readout starts at 0, as the paper advises: random initial values would
    shrink with the width and blur the check. The readout divides its input by ``width / base_width``. The optimizer
    must divide the steps of ``hidden.weight``, and of no other parameter, by ``width / base_width``.

    Args:
        width: width of both hidden layers.
        base_width: width at which this equals the standard parametrization.
        inputs: number of inputs.
        outputs: number of outputs.
        seed: seed of the initial weights.
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
