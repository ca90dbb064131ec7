"""What the shell offers for a word that is being typed. Nothing here may load torch: it runs at each press of Tab."""

from __future__ import annotations


def names(incomplete: str) -> list[str]:
    """Names of the registry."""
    from pylo_zoo.registry import load_registry

    return [name for name in load_registry() if name.startswith(incomplete)]


def names_or_families(incomplete: str) -> list[str]:
    """Names of the registry, then families that are none of them."""
    from pylo_zoo.converters import FAMILIES

    known = names(incomplete)
    return known + [name for name in FAMILIES if name.startswith(incomplete) and name not in known]


TASKS = ("digits-mlp", "digits-cnn", "digits-vit", "chars", "diabetes", "quadratic", "torchvision", "hub-text")
"""Those of pylo_zoo.tasks, which would load torch; a test holds the two together."""
BASELINES = ("adamw", "sgd", "muon")


def tasks(incomplete: str) -> list[str]:
    """Names of tasks."""
    return [name for name in TASKS if name.startswith(incomplete)]


def optimizers(incomplete: str) -> list[str]:
    """Baselines, and names of the registry."""
    return [name for name in BASELINES if name.startswith(incomplete)] + names(incomplete)
