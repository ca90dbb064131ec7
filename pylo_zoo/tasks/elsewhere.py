"""Tasks whose data has to be downloaded by other packages: torchvision's images, texts of the Hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo.errors import ZooError
from pylo_zoo.tasks import text
from pylo_zoo.tasks.base import Task
from pylo_zoo.tasks.images import Images, VisionTransformer, classification

PLACE = "~/.cache/pylo-zoo/data"


def torchvision(
    *,
    dataset: str = "MNIST",
    root: str = PLACE,
    model: str = "cnn",
    width: int = 16,
    depth: int = 3,
    batch_size: int = 128,
) -> Task:
    """A data set of images that torchvision knows by name (MNIST, FashionMNIST, CIFAR10, SVHN …), downloaded by it.

    Args:
        dataset: its class in ``torchvision.datasets``.
        root: where it lies, or is downloaded to.
        model: ``cnn`` or ``vit`` (patches of 4).
        width: channels of the first convolution, or of the tokens.
        depth: convolutions, each twice as wide and half as high as the one before, or blocks.
        batch_size: images a step.
    """
    sets = _package("torchvision.datasets", "torchvision")
    make_set = getattr(sets, dataset, None)
    if make_set is None:
        raise ZooError(f"torchvision has no data set {dataset!r}.", "Names are those of torchvision.datasets.")
    folder = Path(root).expanduser()
    parts = []
    for train in (True, False):
        try:
            try:
                parts.append(make_set(folder, train=train, download=True))
            except TypeError:  # those that are split by name
                parts.append(make_set(folder, split="train" if train else "test", download=True))
        except Exception as error:  # whatever its downloads raise
            raise ZooError(
                f"{dataset} is unavailable: {' '.join(str(error).split())}.",
                f"It is downloaded by torchvision, into {folder}; check the network, or put it there.",
            ) from error
    images = [_pictures(part) for part in parts]
    mean, scale = images[0].mean(), images[0].std()
    labels = [torch.as_tensor(getattr(part, "targets", getattr(part, "labels", None))).long() for part in parts]
    data = Images((images[0] - mean) / scale, labels[0], (images[1] - mean) / scale, labels[1])
    channels, side, classes = images[0].shape[1], images[0].shape[2], int(labels[0].max()) + 1

    def net() -> nn.Module:
        if model == "vit":
            return VisionTransformer(width, depth, 4, side, channels, classes)
        layers: list[nn.Module] = []
        before = channels
        for layer in range(depth):
            after = width * 2**layer
            layers += [
                nn.Conv2d(before, after, 3, padding=1, stride=1 if layer == 0 else 2),
                nn.GroupNorm(1, after),
                nn.ReLU(),
            ]
            before = after
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    if model not in ("cnn", "vit") or (model == "vit" and (side % 4 or width % 4)):
        raise ZooError(
            f"There is no {model!r} for images of {side}×{side}.", "Models: cnn, and vit where 4 divides the side."
        )
    options = {"dataset": dataset, "model": model, "width": width, "depth": depth, "batch_size": batch_size}
    source = f"torchvision.datasets.{dataset}: see its page for the licence"
    return classification(
        "torchvision", f"{dataset}, {model}", data, net, batch_size, source, options=options, steps=1000
    )


def _pictures(part: Any) -> torch.Tensor:
    """Pixels ``[n, channels, side, side]`` from 0 to 1."""
    pixels = torch.as_tensor(part.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    return pixels.float() / 255


def hub_text(
    *,
    dataset: str = "roneneldan/TinyStories",
    column: str = "text",
    split: str = "train",
    rows: int = 20_000,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    context: int = 128,
    batch_size: int = 32,
) -> Task:
    """The characters of a text data set on the Hub, downloaded by the package ``datasets``.

    Args:
        dataset: ``ORG/NAME``.
        column: that holds the text.
        split: of the data set.
        rows: how many are taken.
        width, depth, heads, context, batch_size: as of the task chars.
    """
    datasets = _package("datasets", "datasets")
    try:
        found = datasets.load_dataset(dataset, split=f"{split}[:{rows}]")
        corpus = "\n\n".join(map(str, found[column]))
    except Exception as error:  # whatever its downloads raise
        raise ZooError(
            f"{dataset} is unavailable: {' '.join(str(error).split())}.", "Check the name, the column and the network."
        ) from error
    sizes = {"width": width, "depth": depth, "heads": heads, "context": context, "batch_size": batch_size}
    return text.over(corpus, "hub-text", f"{dataset} on the Hub: see its card for the licence", **sizes)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ZooError(f"This task needs {package}, which is not installed.", f"pip install {package}") from error
