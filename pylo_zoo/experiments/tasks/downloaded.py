"""Tasks whose data other packages download: torchvision's images and texts from the Hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo.errors import UsageError, ZooError
from pylo_zoo.experiments.tasks import text
from pylo_zoo.experiments.tasks.base import Task
from pylo_zoo.experiments.tasks.images import Images, VisionTransformer, classification

DATA_ROOT = "~/.cache/pylo-zoo/data"


def torchvision(
    *,
    dataset: str = "MNIST",
    root: str = DATA_ROOT,
    model: str = "cnn",
    width: int = 16,
    depth: int = 3,
    batch_size: int = 128,
) -> Task:
    """Image classification on a data set that torchvision downloads (MNIST, FashionMNIST, CIFAR10, SVHN …).

    Args:
        dataset: name of its class in ``torchvision.datasets``.
        root: directory of the data.
        model: ``cnn`` or ``vit`` (patches of 4).
        width: channels of the first convolution, or width of the tokens.
        depth: number of convolutions or blocks. Each convolution doubles the channels and halves the image size.
        batch_size: images per step.
    """
    sets = _package("torchvision.datasets", "torchvision")
    make_set = getattr(sets, dataset, None)
    if make_set is None:
        raise UsageError(f"Unknown torchvision data set {dataset!r}.", "Use a class name from torchvision.datasets.")
    folder = Path(root).expanduser()
    parts = []
    for train in (True, False):
        try:
            try:
                parts.append(make_set(folder, train=train, download=True))
            except TypeError:  # some data sets have `split` instead of `train`
                parts.append(make_set(folder, split="train" if train else "test", download=True))
        except Exception as error:  # downloads raise many types
            raise ZooError(
                f"{dataset} is unavailable: {' '.join(str(error).split())}.",
                f"Check the network, or put the data into {folder}.",
            ) from error
    images = [_pixels(part) for part in parts]
    mean, scale = images[0].mean(), images[0].std()
    labels = [torch.as_tensor(getattr(part, "targets", getattr(part, "labels", None))).long() for part in parts]
    data = Images((images[0] - mean) / scale, labels[0], (images[1] - mean) / scale, labels[1])
    channels, side, classes = images[0].shape[1], images[0].shape[2], int(labels[0].max()) + 1

    def net() -> nn.Module:
        if model == "vit":
            return VisionTransformer(width, depth, 4, side, channels, classes)
        layers: list[nn.Module] = []
        in_channels = channels
        for layer in range(depth):
            out_channels = width * 2**layer
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=1 if layer == 0 else 2),
                nn.GroupNorm(1, out_channels),
                nn.ReLU(),
            ]
            in_channels = out_channels
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes))

    if model not in ("cnn", "vit") or (model == "vit" and (side % 4 or width % 4)):
        raise ZooError(
            f"The model {model!r} of width {width} does not fit images of {side}×{side}.",
            "Use cnn, or vit if 4 divides the side and the width.",
        )
    options = {"dataset": dataset, "model": model, "width": width, "depth": depth, "batch_size": batch_size}
    source = f"torchvision.datasets.{dataset}: see its page for the license"
    return classification(
        "torchvision", f"{dataset}, {model}", data, net, batch_size, source, options=options, steps=1000
    )


def _pixels(part: Any) -> torch.Tensor:
    """Pixels ``[n, channels, side, side]`` in [0, 1]."""
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
    """A character language model on a text data set from the Hub, which the package ``datasets`` downloads.

    Args:
        dataset: ``ORG/NAME``.
        column: name of the text column.
        split: split of the data set.
        rows: number of rows to use.
        width, depth, heads, context, batch_size: as in the task chars.
    """
    datasets = _package("datasets", "datasets")
    try:
        table = datasets.load_dataset(dataset, split=f"{split}[:{rows}]")
        corpus = "\n\n".join(map(str, table[column]))
    except Exception as error:  # downloads raise many types
        raise ZooError(
            f"{dataset} is unavailable: {' '.join(str(error).split())}.", "Check the name, the column and the network."
        ) from error
    sizes = {"width": width, "depth": depth, "heads": heads, "context": context, "batch_size": batch_size}
    return text.text_task(corpus, "hub-text", f"{dataset} on the Hub: see its card for the license", **sizes)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ZooError(f"This task needs {package}, which is not installed.", f"Run pip install {package}.") from error
