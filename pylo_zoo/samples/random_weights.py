"""Random weights in a family's published sizes: ``weights="random:celo2"`` runs its code without a checkpoint.

A model does not train with them. They are for testing scripts, timing steps and verifying the code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pylo_zoo import __version__, converters
from pylo_zoo.artifact import Artifact, Converter, SourceRecord
from pylo_zoo.converters.base import tensor_shapes

RANDOM = "random:"
"""Prefix of the names of random weights: ``random:FAMILY``."""
SCALE = 0.02
"""Standard deviation of the weights, which is small enough for finite steps."""


def random_artifact(family_name: str, **behavior: Any) -> Artifact:
    """Random weights, the same at every call. ``behavior`` replaces fields of the family's behavior.

    Raises:
        ZooError: the family is unknown.
    """
    family = converters.get(family_name)
    generator = torch.Generator().manual_seed(0)
    shapes = sorted(tensor_shapes(family, family.released).items())
    return Artifact(
        family=family.name,
        name=f"{RANDOM}{family.name}",
        architecture=family.released,
        behavior=replace(family.behavior(), **behavior),
        defaults={},
        source=SourceRecord(f"{RANDOM}{family.name}", "0" * 64, 0, "MIT", "random"),
        converter=Converter(__version__),
        tensors={name: SCALE * torch.randn(shape, generator=generator) for name, shape in shapes},
    )
