"""Classifiers of handwritten digits: the 1,797 grayscale images of 8×8 that scikit-learn includes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pylo_zoo.errors import UsageError, ZooError
from pylo_zoo.experiments.tasks.base import Batch, Metrics, Task, batch_indices, initialize

SIDE, CLASSES = 8, 10
TEST_EVERY = 5
DATA = "scikit-learn's digits: UCI's Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0"


@dataclass(frozen=True)
class Images:
    """Centered images ``[n, channels, side, side]`` and labels ``[n]``, for training and held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Images:
    """Load the digits; every fifth is held out.

    Raises:
        ZooError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ZooError(
            "The digits data set needs scikit-learn, which is not installed.", "Run pip install 'pylo-zoo[train]'."
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
    """The task of classifying ``data`` with the network that ``make`` builds."""

    def batch(seed: int, step: int) -> Batch:
        indices = batch_indices(len(data.labels), batch_size, seed, step)
        return data.images[indices], data.labels[indices]

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
        lambda seed: initialize(make(), seed),
        batch,
        loss,
        evaluate,
        higher_is_better=True,
        data=source,
        **more,  # pyright: ignore[reportArgumentType]
    )


def mlp(*, width: int = 64, depth: int = 2, batch_size: int = 64) -> Task:
    """A fully connected ReLU network.

    Args:
        width: width of the hidden layers.
        depth: number of hidden layers.
        batch_size: images per step.
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
    """3×3 convolutions with group norm and global average pooling.

    Args:
        width: channels of the first layer; each later layer doubles them.
        depth: number of convolutions.
        batch_size: images per step.
    """

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        in_channels = 1
        for layer in range(depth):
            channels = width * 2**layer
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.ReLU()]
            in_channels = channels
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, CLASSES))

    options = {"width": width, "depth": depth, "batch_size": batch_size}
    return classification(
        "digits-cnn", f"digits, {depth} convolutions from {width} channels", digits(), make, batch_size, options=options
    )


class VisionTransformer(nn.Module):
    """A small vision transformer (arXiv 2010.11929): learned positions, pre-norm blocks, mean over the tokens.

    Args:
        width: width of the tokens, shared by four heads.
        depth: number of blocks.
        patch: side of the patches.
        side: side of the images.
        channels: channels of the images.
        classes: number of classes.
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
        width: width of the tokens, divisible by 4.
        depth: number of blocks.
        patch: side of the patches, a divisor of 8.
        batch_size: images per step.
    """
    if width % 4 or SIDE % patch:
        raise UsageError(
            f"A vision transformer cannot have width {width} and patches of {patch}.",
            "Use a width divisible by 4, and a patch of 1, 2, 4 or 8.",
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
