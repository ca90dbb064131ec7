"""Optimizers by name, with all that a run needs to make one: AdamW and SGD of torch, Muon, and every learned one.

A learned optimizer is named by a checkpoint (of the registry, a directory, ``hf://ORG/NAME``) or by its family.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo import converters, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Unavailable, is_cached
from pylo_zoo.optim import LearnedOptimizer, Muon, optimizer_class, param_groups
from pylo_zoo.samples.random_weights import RANDOM
from pylo_zoo.weights import load

Maker = Callable[[nn.Module, float, float], torch.optim.Optimizer]


def _adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True)


def _sgd(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)


def _muon(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return Muon(param_groups(model), lr=lr, weight_decay=weight_decay)


@dataclass(frozen=True)
class Baseline:
    """An optimizer that nobody has meta-trained.

    Attributes:
        make: of a model, a learning rate and a weight decay.
        lr: where to start, unless the task knows better.
        grid: what to try where it is tuned.
        about: what it is, with what is not torch's default.
    """

    make: Maker
    lr: float
    grid: tuple[float, ...]
    about: str


BASELINES: Mapping[str, Baseline] = {
    "adamw": Baseline(_adamw, 3e-3, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "torch's AdamW, betas 0.9 and 0.95"),
    "sgd": Baseline(_sgd, 3e-2, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "torch's SGD, Nesterov momentum 0.9"),
    "muon": Baseline(_muon, 2e-2, (3e-3, 1e-2, 2e-2, 5e-2, 1e-1), "Muon for matrices, AdamW for the rest"),
}
LEARNED_GRID = (0.1, 0.3, 1.0, 3.0)
"""Multiples of a learned optimizer's own learning rate, where it is tuned."""


@dataclass(frozen=True)
class Recipe:
    """An optimizer that can be made for any model.

    Attributes:
        name: as it was asked for.
        label: for tables and figures.
        lr: peak learning rate.
        grid: learning rates to try where it is tuned.
        schedule: of the learning rate, unless somebody says otherwise.
        warmup: share of the run.
        weight_decay: of every parameter group.
        artifact: of a learned optimizer; None for a baseline.
    """

    name: str
    label: str
    lr: float
    grid: tuple[float, ...]
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    artifact: Artifact | None = None

    @property
    def needs_loss(self) -> bool:
        """Whether each step needs the training loss."""
        return self.artifact is not None and optimizer_class(self.artifact.family).needs_loss

    @property
    def own_lr(self) -> float:
        """The learning rate that it has where nobody says otherwise."""
        return _own_lr(self.artifact) if self.artifact else BASELINES[self.name].lr

    @property
    def remedy(self) -> str:
        """What to do about a run that diverged."""
        own, lr = f"{self.label}'s own is {self.own_lr:g}", f"lr was {self.lr:g}"
        if self.lr > self.own_lr:
            return f"{lr}, and {own}: leave --lr out, or try --lr {self.own_lr / 3:.1g}."
        return f"{lr} ({own}): try a third of it, --lr {self.lr / 3:.1g}."

    def make(self, model: nn.Module, steps: int) -> torch.optim.Optimizer:
        """The optimizer for ``model`` and a run of ``steps``."""
        if self.artifact is None:
            return BASELINES[self.name].make(model, self.lr, self.weight_decay)
        cls = optimizer_class(self.artifact.family)
        everything: dict[str, Any] = {"learned": "*"} if self.artifact.family == "celo2-base" else {}
        arguments: dict[str, Any] = {
            **self.artifact.defaults,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "weights": self.artifact,
            **({"num_steps": steps} if cls.needs_loss else {}),
        }
        optimizer = cls(param_groups(model, **everything), **arguments)
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.prepare_kernels()  # no step's time has a compiler's in it
        return optimizer

    def tuned(self, lr: float) -> Recipe:
        """The same with another learning rate."""
        return replace(self, lr=lr)


def find_recipe(
    name: str, *, weights: str | None = None, lr: float | None = None, access: Access | None = None, **settings: Any
) -> Recipe:
    """The recipe of the optimizer called ``name``.

    Args:
        name: of :data:`BASELINES`, a registry entry, a family, an artifact's directory, ``hf://ORG/NAME`` or
            ``random:FAMILY``.
        weights: of a learned optimizer, where ``name`` is a family.
        lr: peak learning rate; by default the baseline's or the checkpoint's own.
        access: how to fetch.
        settings: other fields of the recipe, None for what is to stay.

    Raises:
        ZooError: the optimizer does not exist, or its weights are unavailable.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    if name in BASELINES:
        if weights is not None:
            raise ZooError(f"{name} has no weights.", "Leave --weights out.")
        baseline = BASELINES[name]
        recipe = Recipe(name, name, baseline.lr, baseline.grid)
    else:
        recipe = _learned(name, weights, access)
    return replace(recipe, **({} if lr is None else {"lr": lr}), **settings)


def _learned(name: str, weights: str | None, access: Access | None) -> Recipe:
    place = name.startswith(("hf://", RANDOM)) or Path(name).is_dir()
    if not place and name not in registry.load_registry() and name not in converters.FAMILIES:
        known = [*BASELINES, *registry.load_registry()]
        near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
        listing = f"Optimizers: {', '.join(BASELINES)}, every name of `pylo-zoo list`, an artifact's directory, hf://ORG/NAME."
        raise ZooError(f"There is no optimizer {name!r}.", f"Did you mean {near[0]!r}? {listing}" if near else listing)
    if weights is None and not place and name not in registry.load_registry():
        raise ZooError(f"{name} is a family, and no registry entry has that name.", "Give its weights with --weights.")
    artifact = _loaded(weights or name, access)
    family = registry.get(name).family if name in registry.load_registry() else name
    if weights is not None and not place and artifact.family != family:
        raise ZooError(
            f"{weights} is of the family {artifact.family}, not {family}.", f"Use --optimizer {artifact.family}."
        )
    plans = optimizer_class(artifact.family).needs_loss  # it lets its steps fall by itself
    lr = _own_lr(artifact)
    return Recipe(
        name=name,
        label=name if not place else artifact.name,
        lr=lr,
        grid=tuple(lr * factor for factor in LEARNED_GRID),
        schedule="constant" if plans else "cosine",
        warmup=0.0 if plans else 0.05,
        weight_decay=0.0,
        artifact=artifact,
    )


def _own_lr(artifact: Artifact) -> float:
    return float(artifact.defaults.get("lr", 1.0))


def _loaded(name: str, access: Access | None) -> Artifact:
    """As :func:`pylo_zoo.weights.load`; a registry entry that must not be fetched is a short error."""
    try:
        return load(name, access=access)
    except Unavailable:
        if name not in registry.load_registry() or not (access or Access()).is_offline:
            raise
        raise Unavailable(
            f"{name} is not in the cache, and offline mode is on.",
            f"Run `pylo-zoo convert {name}` once where there is network; `pylo-zoo info {name}` has the addresses.",
        ) from None


def needs_download(name: str, access: Access | None = None) -> str | None:
    """The addresses that have to be fetched for the optimizer ``name``; None if the package or the cache has all files.

    A directory of that name comes first, as it does for ``weights=``.
    """
    entry = registry.load_registry().get(name)
    if name in BASELINES or entry is None or Path(name).is_dir():
        return None
    if entry.artifact is not None:
        return entry.artifact.uri
    missing = [
        source.uri
        for source in entry.sources
        if source.path is None and not is_cached(source.uri, source.sha256, access or Access())
    ]
    return ", ".join(missing) or None
