"""Parity runs that several tests look at, made once a process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from trees import write_theta

from pylo_zoo import formats, parity
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.parity import plan, steps
from pylo_zoo.parity.theta import read_theta

SCALE = 0.1
"""Of random weights: their runs stay finite."""


def corrupted(made: Artifact, tensor: str, factor: float) -> Artifact:
    """``made`` with one element of one weight multiplied by ``factor``."""
    changed = made.tensors[tensor].clone()
    changed.view(-1)[changed.abs().argmax()] *= factor
    return replace(made, tensors={**made.tensors, tensor: changed})


@functools.cache
def random_weights(family: str) -> tuple[Artifact, Path]:
    """An artifact of random weights, and the file that it was converted from."""
    source = write_theta(Path(mkdtemp(prefix="pylo-zoo-test-")), family, scale=SCALE)
    return convert(family, source=source), source


@functools.cache
def proof(family: str) -> parity.Report:
    """The whole proof of random weights."""
    return parity.verify(*random_weights(family))


@functools.cache
def theta(family: str) -> Mapping[str, Any]:
    """The original's meta-parameters."""
    artifact, source = random_weights(family)
    return read_theta(artifact, formats.read(source))


@functools.cache
def runs(family: str) -> dict[str, steps.Run]:
    """The planned runs of single steps by name."""
    return {run.name: run for run in plan.plan(random_weights(family)[0])}


@functools.cache
def walk(family: str, run: str) -> steps.Walk:
    """The reference's side of one of them."""
    return steps.walk(random_weights(family)[0], theta(family), runs(family)[run], seed=0)
