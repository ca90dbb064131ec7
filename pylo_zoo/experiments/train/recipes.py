"""Optimizers by name, with what a run needs to build them: torch's AdamW and SGD, Muon, and every learned optimizer.

The name of a learned optimizer is a checkpoint (a registry name, a directory, ``hf://ORG/NAME``, ``random:FAMILY``) or
a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo import converters, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import UsageError, ZooError, did_you_mean
from pylo_zoo.fetch import Access, Unavailable, is_cached
from pylo_zoo.files import is_local
from pylo_zoo.optim import LearnedOptimizer, Muon, create_optimizer, optimizer_class, param_groups
from pylo_zoo.samples.random_weights import RANDOM
from pylo_zoo.weights import load, no_artifact

Factory = Callable[[nn.Module, float, float], torch.optim.Optimizer]


def _adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True)


def _sgd(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)


def _muon(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return Muon(param_groups(model), lr=lr, weight_decay=weight_decay)


@dataclass(frozen=True)
class Baseline:
    """An optimizer that is not learned.

    Attributes:
        make: builds it from a model, a learning rate and a weight decay.
        lr: default learning rate.
        grid: learning rates to try when tuning.
        about: the optimizer and its non-default arguments.
    """

    make: Factory
    lr: float
    grid: tuple[float, ...]
    about: str


BASELINES: Mapping[str, Baseline] = {
    "adamw": Baseline(_adamw, 3e-3, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "torch's AdamW, betas 0.9 and 0.95"),
    "sgd": Baseline(_sgd, 3e-2, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "torch's SGD, Nesterov momentum 0.9"),
    "muon": Baseline(_muon, 2e-2, (3e-3, 1e-2, 2e-2, 5e-2, 1e-1), "Muon for matrices, AdamW for the rest"),
}
LEARNED_GRID = (0.1, 0.3, 1.0, 3.0)
"""Multiples of a learned optimizer's default learning rate to try when tuning."""


@dataclass(frozen=True)
class Recipe:
    """An optimizer with its settings, for any model.

    Attributes:
        name: the name that the user gave.
        label: its name in tables and figures.
        lr: peak learning rate.
        grid: learning rates to try when tuning.
        schedule: learning-rate schedule.
        warmup: warmup, as a fraction of the run.
        weight_decay: weight decay of every parameter group.
        artifact: the weights of a learned optimizer; None for a baseline.
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
    def default_lr(self) -> float:
        """Its default learning rate."""
        return _default_lr(self.artifact) if self.artifact else BASELINES[self.name].lr

    @property
    def remedy(self) -> str:
        """A hint for a run that diverged."""
        lr, default = f"lr was {self.lr:g}", f"the default of {self.label} is {self.default_lr:g}"
        if self.lr > self.default_lr:
            return f"{lr}, and {default}: leave --lr out, or try --lr {self.default_lr / 3:.1g}."
        return f"{lr} ({default}): try --lr {self.lr / 3:.1g}."

    def make(self, model: nn.Module, steps: int) -> torch.optim.Optimizer:
        """Build the optimizer for ``model`` and a run of ``steps`` steps."""
        if self.artifact is None:
            return BASELINES[self.name].make(model, self.lr, self.weight_decay)
        optimizer = create_optimizer(self.artifact, model, num_steps=steps, lr=self.lr, weight_decay=self.weight_decay)
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.prepare_kernels()  # so step times do not include compilation
        return optimizer

    def with_lr(self, lr: float) -> Recipe:
        """The same recipe with another learning rate."""
        return replace(self, lr=lr)


def find_recipe(
    name: str, *, weights: str | None = None, lr: float | None = None, access: Access | None = None, **settings: Any
) -> Recipe:
    """The recipe of the optimizer ``name``.

    Args:
        name: a name in :data:`BASELINES`, a registry name, a family, an artifact directory, ``hf://ORG/NAME`` or
            ``random:FAMILY``.
        weights: the weights, if ``name`` is a family.
        lr: peak learning rate; None is the default of the baseline or the checkpoint.
        access: how to fetch.
        settings: other fields of the recipe; a None value keeps the default.

    Raises:
        ZooError: the optimizer does not exist, or its weights are unavailable.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    if name in BASELINES:
        if weights is not None:
            raise UsageError(f"{name} has no weights.", "Leave --weights out.")
        baseline = BASELINES[name]
        recipe = Recipe(name, name, baseline.lr, baseline.grid)
    else:
        recipe = _learned(name, weights, access)
    return replace(recipe, **({} if lr is None else {"lr": lr}), **settings)


def _learned(name: str, weights: str | None, access: Access | None) -> Recipe:
    is_weights = name.startswith(("hf://", RANDOM)) or Path(name).is_dir()
    if not is_weights and name not in registry.load_registry() and name not in converters.FAMILIES:
        if "/" in name or is_local(name):
            raise no_artifact(name)
        known = [*BASELINES, *registry.load_registry()]
        listing = (
            f"Optimizers: {', '.join(BASELINES)}, names from `pylo-zoo list`, an artifact directory, hf://ORG/NAME, "
            "random:FAMILY."
        )
        raise UsageError(f"Unknown optimizer {name!r}.", did_you_mean(name, known, listing))
    if weights is None and not is_weights and name not in registry.load_registry():
        raise UsageError(f"{name} is a family, and no registry entry has that name.", "Pass weights with --weights.")
    artifact = _load(weights or name, access)
    family = registry.get(name).family if name in registry.load_registry() else name
    if weights is not None and not is_weights and artifact.family != family:
        raise ZooError(
            f"{weights} belongs to the family {artifact.family}, not {family}.", f"Use --optimizer {artifact.family}."
        )
    has_schedule = optimizer_class(artifact.family).needs_loss
    lr = _default_lr(artifact)
    return Recipe(
        name=name,
        label=artifact.name if is_weights else name,
        lr=lr,
        grid=tuple(lr * factor for factor in LEARNED_GRID),
        schedule="constant" if has_schedule else "cosine",
        warmup=0.0 if has_schedule else 0.05,
        weight_decay=0.0,
        artifact=artifact,
    )


def _default_lr(artifact: Artifact) -> float:
    return float(artifact.defaults.get("lr", 1.0))


def _load(name: str, access: Access | None) -> Artifact:
    """:func:`pylo_zoo.weights.load`, with a shorter error for a registry entry that is not cached in offline mode."""
    try:
        return load(name, access=access)
    except Unavailable:
        if name not in registry.load_registry() or not (access or Access()).is_offline:
            raise
        raise Unavailable(
            f"{name} is not in the cache, and offline mode is on.",
            f"Run `pylo-zoo convert {name}` once online.",
        ) from None


def needs_download(name: str, access: Access | None = None) -> str | None:
    """The addresses to download for the optimizer ``name``, or None if all its files are local or cached.

    A directory with this name has priority, as for ``weights=``.
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
