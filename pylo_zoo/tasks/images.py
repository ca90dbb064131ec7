"""Classifiers of handwritten digits: scikit-learn's 1,797 images of 8×8 grey levels, part of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.tasks.base import Batch, Metrics, Task, chosen, drawn

SIDE, CLASSES = 8, 10
TEST_EVERY = 5
DATA = "scikit-learn's digits: UCI's Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0"


@dataclass(frozen=True)
class Images:
    """Images ``[n, 1, side, side]`` with values about 0, labels ``[n]``, and those held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Images:
    """The digits; every fifth is held out.

    Raises:
        ZooError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ZooError(
            "The digits come with scikit-learn, which is not here.", "pip install 'pylo-zoo[train]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, SIDE, SIDE) / 8 - 1
    labels = torch.as_tensor(labels, dtype=torch.long)
    held_out = torch.arange(len(labels)) % TEST_EVERY == 0
    return Images(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def classification(
    name: str,
    summary: str,
    data: Images,
    make: Callable[[], nn.Module],
    batch_size: int,
    source: str = DATA,
    **more: object,
) -> Task:
    """The task to classify ``data`` with the network that ``make`` makes."""

    def batch(seed: int, step: int) -> Batch:
        picked = chosen(len(data.labels), batch_size, seed, step)
        return data.images[picked], data.labels[picked]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Metrics:
        device = next(model.parameters()).device
        logits = model(data.test_images.to(device))
        labels = data.test_labels.to(device)
        return {
            "accuracy": (logits.argmax(dim=1) == labels).float().mean().item(),
            "test_loss": nn.functional.cross_entropy(logits, labels).item(),
        }

    return Task(
        name,
        summary,
        lambda seed: drawn(make(), seed),
        batch,
        loss,
        evaluate,
        higher_is_better=True,
        data=source,
        **more,  # pyright: ignore[reportArgumentType]
    )


def mlp(*, width: int = 64, depth: int = 2, batch_size: int = 64) -> Task:
    """Fully connected, ReLU.

    Args:
        width: of the hidden layers.
        depth: how many hidden layers.
        batch_size: images a step.
    """

    def make() -> nn.Module:
        sizes = [SIDE * SIDE, *[width] * depth]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], CLASSES))

    options = {"width": width, "depth": depth, "batch_size": batch_size}
    return classification(
        "digits-mlp", f"digits, {depth} hidden layers of {width}", digits(), make, batch_size, options=options
    )


def cnn(*, width: int = 16, depth: int = 2, batch_size: int = 64) -> Task:
    """Convolutions of 3×3 with group norm, averaged over the image.

    Args:
        width: channels of the first layer; each further one has twice as many.
        depth: how many convolutions.
        batch_size: images a step.
    """

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        before = 1
        for layer in range(depth):
            channels = width * 2**layer
            parts += [nn.Conv2d(before, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.ReLU()]
            before = channels
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))

    options = {"width": width, "depth": depth, "batch_size": batch_size}
    return classification(
        "digits-cnn", f"digits, {depth} convolutions from {width} channels", digits(), make, batch_size, options=options
    )


class VisionTransformer(nn.Module):
    """Patches, learned positions, pre-norm blocks, the mean of the tokens (arXiv 2010.11929, in small).

    Args:
        width: of the tokens; four heads share it.
        depth: how many blocks.
        patch: side of the patches.
        side: of the images, which have ``channels``.
    """

    def __init__(
        self, width: int, depth: int, patch: int, side: int = SIDE, channels: int = 1, classes: int = CLASSES
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros((side // patch) ** 2, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, side, side]``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(tokens).mean(dim=1))


def vit(*, width: int = 32, depth: int = 2, patch: int = 2, batch_size: int = 64) -> Task:
    """A vision transformer.

    Args:
        width: of the tokens, divisible by 4.
        depth: how many blocks.
        patch: side of the patches, a divisor of 8.
        batch_size: images a step.
    """
    if width % 4 or SIDE % patch:
        raise ZooError(
            f"A vision transformer of width {width} with patches of {patch} is none.",
            "The width has to be divisible by 4, and 8 by the patch.",
        )
    options = {"width": width, "depth": depth, "patch": patch, "batch_size": batch_size}
    return classification(
        "digits-vit",
        f"digits, a transformer of {depth} blocks of {width}",
        digits(),
        lambda: VisionTransformer(width, depth, patch),
        batch_size,
        options=options,
    )
