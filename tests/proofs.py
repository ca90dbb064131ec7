"""Parity runs that several tests share; each process computes them once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from trees import write_theta

from pylo_zoo import formats, parity
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.parity import cases, completeness, forward, plan, steps, trajectory, vectors
from pylo_zoo.parity.theta import read_theta

SCALE = 0.1
"""A scale of random weights at which their runs stay finite."""


def corrupted(artifact: Artifact, tensor: str, factor: float) -> Artifact:
    """``artifact`` with one element of one weight multiplied by ``factor``."""
    changed = artifact.tensors[tensor].clone()
    changed.view(-1)[changed.abs().argmax()] *= factor
    return replace(artifact, tensors={**artifact.tensors, tensor: changed})


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
    """The planned single-step runs by name."""
    return {run.name: run for run in plan.plan(random_weights(family)[0])}


@functools.cache
def reference(family: str, run: str) -> steps.ReferenceRun:
    """The reference's side of one run."""
    return steps.run_reference(random_weights(family)[0], theta(family), runs(family)[run], seed=0)


# --- a quick proof -----------------------------------------------------------------------------------------------

QUICK = ("ordinary", "zeros", "zero parameters", plan.LONG_RUN, plan.BELOW)
"""The runs that the planted faults need."""


@functools.cache
def _quick_reference(family: str, name: str) -> steps.ReferenceRun:
    run = runs(family)[name]
    reduced = run if name == plan.LONG_RUN else replace(run, cases=cases.FEW, steps=min(run.steps, 3))
    return steps.run_reference(random_weights(family)[0], theta(family), reduced, seed=0)


def quick_references(family: str) -> dict[str, steps.ReferenceRun]:
    """The reference runs of :data:`QUICK` that the family has, by name."""
    return {name: _quick_reference(family, name) for name in QUICK if name in runs(family)}


@functools.cache
def _quick_original(family: str) -> trajectory.Original:
    planned = trajectory.WholeRun("ordinary", "ordinary", 3, cases.FEW, ("torch",))
    return trajectory.original(random_weights(family)[0], theta(family), planned, seed=0)


@functools.cache
def _quick_network(family: str) -> forward.Network:
    return forward.probe(random_weights(family)[0], theta(family), seed=0)


def quick_proof(family: str, artifact: Artifact | None = None) -> parity.Report:
    """A proof with few parameters, runs and steps; each process computes the reference's side once."""
    references = quick_references(family).values()
    original, network = _quick_original(family), _quick_network(family)
    random_artifact, source = random_weights(family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "plan", lambda artifact: [each.run for each in references])
        patch.setattr(steps, "run_reference", lambda artifact, theta, run, seed: _quick_reference(family, run.name))
        patch.setattr(trajectory, "WHOLE_RUNS", (original.planned,))
        patch.setattr(trajectory, "original", lambda *arguments: original)
        patch.setattr(forward, "probe", lambda *arguments: network)
        patch.setattr(completeness, "check", lambda *arguments: None)
        patch.setattr(vectors, "pack", lambda *arguments: b"vectors")
        return parity.verify(artifact or random_artifact, source)
