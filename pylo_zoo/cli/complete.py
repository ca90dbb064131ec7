"""Shell completion. It runs at each press of Tab, so it must not import torch."""

from __future__ import annotations


def names(incomplete: str) -> list[str]:
    """Registry names."""
    from pylo_zoo.registry import load_registry

    return [name for name in load_registry() if name.startswith(incomplete)]


def names_or_families(incomplete: str) -> list[str]:
    """Registry names, then the families that are not also registry names."""
    from pylo_zoo.converters import FAMILIES

    known = names(incomplete)
    return known + [name for name in FAMILIES if name.startswith(incomplete) and name not in known]


TASKS = ("digits-mlp", "digits-cnn", "digits-vit", "chars", "diabetes", "quadratic", "torchvision", "hub-text")
"""A copy of the names in pylo_zoo.experiments.tasks, which imports torch; a test compares the two."""
BASELINES = ("adamw", "sgd", "muon")


def tasks(incomplete: str) -> list[str]:
    """Task names."""
    return [name for name in TASKS if name.startswith(incomplete)]


def optimizers(incomplete: str) -> list[str]:
    """Baselines and registry names."""
    return [name for name in BASELINES if name.startswith(incomplete)] + names(incomplete)
