"""Builds an optimizer from its name, for configuration files and command lines."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError, did_you_mean, quoted
from pylo_zoo.optim.adafac import AdafacLO
from pylo_zoo.optim.celo_adam import CeloAdam
from pylo_zoo.optim.checks import require
from pylo_zoo.optim.contract import ZooOptimizer
from pylo_zoo.optim.groups import param_groups
from pylo_zoo.optim.muon import Muon
from pylo_zoo.registry import load_registry
from pylo_zoo.weights import RANDOM, load

CLASS_NAMES = {cls.__name__.lower(): weights for cls, weights in ((AdafacLO, "mulo"), (CeloAdam, "celo-adam"))}
"""Lower-case class names that differ from their checkpoint's name, with that name."""


def create_optimizer(
    name: str | Path | Artifact | type[ZooOptimizer],
    model_or_params: Any,
    groups: Iterable[Any] | None = None,
    *,
    num_steps: int | None = None,
    **options: Any,
) -> ZooOptimizer:
    """Build the optimizer ``name``, for loops and configuration files that name one.

    Args:
        name: ``"muon"``; a checkpoint as for ``weights=`` (a registry name such as ``"celo2"``, an artifact or its
            directory, ``hf://ORG/NAME``, ``random:FAMILY``); or a class or its name. Upper case and underscores do not
            matter: ``"CELO2_base"`` is ``"celo2-base"``.
        model_or_params: a model, whose parameters :func:`~pylo_zoo.optim.param_groups` sorts; or parameters or groups
            as every optimizer accepts them.
        groups: your own groups of the model's parameters (:func:`~pylo_zoo.optim.param_groups`).
        num_steps: planned number of steps, for optimizers that need it; the others ignore it.
        options: other arguments of the optimizer, such as ``lr`` and ``weight_decay``; the default is the checkpoint's.
            ``weights`` replaces the checkpoint by another one of its family.

    Raises:
        ZooError: the name is unknown, the weights are unavailable, or an argument is invalid.
        TypeError: an argument's name is unknown.
    """
    if name is Muon or (isinstance(name, str) and _plain(name) == "muon"):
        return Muon(_groups(model_or_params, groups), **options)
    artifact = load(options.pop("weights", None) or _checkpoint(name))
    converter = converters.get(artifact.family)
    cls: Any = converter.load(converter.optimizer)
    if isinstance(name, type) and not issubclass(name, cls):
        raise ZooError(
            f"{name.__name__} cannot run {artifact.name!r}: it is a {artifact.family} checkpoint.",
            f"Use {cls.__name__}.",
        )
    if cls.needs_loss:
        require(num_steps is not None, f"{cls.__name__} needs num_steps.", "Pass the planned number of steps.")
        options["num_steps"] = num_steps
    parameters = _groups(model_or_params, groups, learned="*" if converter.learns_all else ())
    return cls(parameters, **{"weights": artifact, **artifact.defaults, **options})


def _groups(model_or_params: Any, groups: Iterable[Any] | None, **options: Any) -> Any:
    if isinstance(model_or_params, nn.Module):
        return param_groups(model_or_params, groups, **options)
    require(groups is None, "groups were passed without a model.", "Pass the model, or only the groups.")
    return model_or_params


def _checkpoint(name: str | Path | Artifact | type[ZooOptimizer]) -> str | Path | Artifact:
    """The checkpoint that ``name`` refers to."""
    if isinstance(name, type):
        return inspect.signature(name).parameters["weights"].default
    if not isinstance(name, str) or name.startswith(("hf://", RANDOM)) or Path(name).is_dir():
        return name
    known, plain = load_registry(), _plain(name)
    for candidate in (name, plain, CLASS_NAMES.get(plain)):
        if candidate is not None and candidate in known:
            return candidate
    if "/" in name:
        return name
    listing = "Use muon, a name from `pylo-zoo list`, an artifact's directory, hf://ORG/NAME or random:FAMILY."
    raise ZooError(f"Unknown optimizer {quoted(name)}.", did_you_mean(name, ["muon", *known], listing))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
