"""A classifier of scikit-learn's handwritten digits (1,797 images of 8×8) that trains in seconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pylo_zoo.experiments.tasks.images import Images
from pylo_zoo.experiments.tasks.images import digits as load_images

BATCH = 64


def load_digits() -> Images:
    """Load the digits that scikit-learn includes, as rows ``[n, 64]`` in [0, 1].

    Raises:
        ZooError: scikit-learn is not installed.
    """
    data = load_images()
    pixels, test_pixels = ((each.flatten(1) + 1) / 2 for each in (data.images, data.test_images))
    return Images(pixels, data.labels, test_pixels, data.test_labels)


def classifier(seed: int, hidden: int = 32) -> nn.Module:
    """A 64-``hidden``-10 ReLU network, weights N(0, 1/fan_in), biases 0."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5 if p.ndim == 2 else torch.zeros(p.shape)
            )
    return model


def batches(digits: Images, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` random batches of training images and labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        indices = torch.randint(len(digits.labels), (BATCH,), generator=generator)
        yield digits.images[indices], digits.labels[indices]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: Images,
    steps: int,
    seed: int,
    after_step: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Train, and return the loss of each step's batch.

    Args:
        model: maps images ``[n, 64]`` to logits ``[n, 10]``.
        optimizer: any optimizer. Its ``step`` receives a closure that returns the loss.
        digits: the data.
        steps: number of steps.
        seed: seed of the data order.
        after_step: called with each step's loss.
    """
    losses = []
    for images, labels in batches(digits, steps, seed):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step(lambda: losses[-1])
        after_step(losses[-1])
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, digits: Images) -> float:
    """The fraction of held-out images that ``model`` classifies correctly."""
    return (model(digits.test_images).argmax(dim=1) == digits.test_labels).float().mean().item()
