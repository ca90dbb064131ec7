"""Two numeric tasks: regression on a table, and a quadratic with a known minimum."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pylo_zoo.errors import UsageError, ZooError
from pylo_zoo.experiments.tasks.base import Batch, Metrics, Task, batch_indices, generator, initialize

TEST_EVERY = 5


def regression(*, width: int = 64, depth: int = 2, batch_size: int = 32) -> Task:
    """Regression of the progression of diabetes after a year on ten measurements (scikit-learn's 442 patients).

    Args:
        width: width of the hidden layers.
        depth: number of hidden layers.
        batch_size: patients per step.
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ZooError(
            "The diabetes data set needs scikit-learn, which is not installed.", "Run pip install 'pylo-zoo[train]'."
        ) from error
    table, progression = load_diabetes(return_X_y=True)
    features = torch.as_tensor(table, dtype=torch.float32) * math.sqrt(len(table))  # the columns have norm 1
    target = torch.as_tensor(progression, dtype=torch.float32)
    held_out = torch.arange(len(target)) % TEST_EVERY == 0
    mean, scale = target[~held_out].mean(), target[~held_out].std()
    target = (target - mean) / scale
    x, y, test_x, test_y = features[~held_out], target[~held_out], features[held_out], target[held_out]

    def make() -> nn.Module:
        sizes = [x.shape[1], *[width] * depth]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], 1), nn.Flatten(0))

    def batch(seed: int, step: int) -> Batch:
        indices = batch_indices(len(y), batch_size, seed, step)
        return x[indices], y[indices]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Metrics:
        device = next(model.parameters()).device
        error = nn.functional.mse_loss(model(test_x.to(device)), test_y.to(device)).item()
        return {"test_loss": error, "r2": 1 - error / test_y.var(unbiased=False).item()}

    return Task(
        "diabetes",
        f"a table of 442 rows, {depth} hidden layers of {width}",
        lambda seed: initialize(make(), seed),
        batch,
        loss,
        evaluate,
        steps=500,
        options={"width": width, "depth": depth, "batch_size": batch_size},
        data="scikit-learn's diabetes: Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression (2004)",
    )


class Matrix(nn.Module):
    """A model whose only parameter is a matrix."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))


def quadratic(*, size: int = 32, condition: float = 1e4, noise: float = 0.0, batch_size: int = 1) -> Task:
    """``0.5 tr((W - A)ᵀ H (W - A)) / n²`` with eigenvalues of H from 1/condition to 1. The minimum is 0, at W = A.

    Args:
        size: n, the size of the matrices.
        condition: condition number of H.
        noise: standard deviation of the noise added to A at each step, relative to A's entries. With noise, the loss at
            A is not 0.
        batch_size: number of noise samples averaged per step.
    """
    if condition < 1 or size < 1 or noise < 0:
        raise UsageError(
            f"A quadratic cannot have size {size}, condition {condition:g} and noise {noise:g}.",
            "Use a condition of at least 1 and a noise of at least 0.",
        )
    source = generator(0, 3)
    eigenvalues = torch.logspace(-math.log10(condition), 0, size)
    basis = torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64))[0]
    root = (basis * eigenvalues.double().sqrt()).T.float()  # H = rootᵀ root
    answer = torch.randn(size, size, generator=source)

    def batch(seed: int, step: int) -> Batch:
        shift = torch.randn(size, size, generator=generator(seed, 4, step)) * noise / math.sqrt(batch_size)
        return answer + shift, root

    def value(weight: Tensor, target: Tensor, root: Tensor) -> Tensor:
        return 0.5 * (root @ (weight - target)).square().sum() / size**2

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (weight,) = model.parameters()
        return value(weight, *batch)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Metrics:
        weight = next(model.parameters()).cpu()
        distance = (weight - answer).norm() / answer.norm()
        return {"excess_loss": value(weight, answer, root).item(), "distance": distance.item()}

    return Task(
        "quadratic",
        f"a quadratic of {size}×{size} unknowns, condition {condition:g}",
        lambda seed: Matrix(size),
        batch,
        loss,
        evaluate,
        steps=500,
        floor=0.0 if noise == 0 else None,
        options={"size": size, "condition": condition, "noise": noise, "batch_size": batch_size},
        data="generated from a seed",
    )
