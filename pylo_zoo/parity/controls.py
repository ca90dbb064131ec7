"""Negative controls: plant faults in the torch side, and check that the comparison finds each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pylo_zoo.artifact import Artifact
from pylo_zoo.formats import Source
from pylo_zoo.optim import optimizer_class
from pylo_zoo.parity import forward, trajectory
from pylo_zoo.parity.explain import first_difference
from pylo_zoo.parity.faults import FAULTS, Fault, matrices, substituted
from pylo_zoo.parity.forward import Network
from pylo_zoo.parity.leaves import check_leaves
from pylo_zoo.parity.steps import ReferenceRun, compare
from pylo_zoo.parity.trajectory import Original
from pylo_zoo.report.records import Check, Control

STEPS = 3
"""Number of steps of a run in which each fault is planted."""


class Detection(NamedTuple):
    """The first sign of a fault: quantity, parameter, error and bound."""

    by: str
    case: str = ""
    error: float | None = None
    allowed: float | None = None


Comparison = Callable[[Artifact], "Detection | None"]
"""Compares an artifact with the original and returns the first difference, or None."""
ALREADY_WRONG = "the torch side is already wrong"
"""The reason why no fault is planted in an artifact that disagrees with the original."""


def run(
    artifact: Artifact, source: Source, references: Mapping[str, ReferenceRun], *, right: bool
) -> Iterator[Control]:
    """Plant each fault, and check that the leaves or single float64 steps show it.

    Args:
        artifact: the torch side without a fault.
        source: the original file.
        references: the reference's side, by regime.
        right: whether the artifact agrees with the original. If not, no fault is planted.
    """
    for fault in FAULTS:
        if not right:
            yield Control(fault.name, fault.description, "not applicable", ALREADY_WRONG)
            continue
        if fault.regime not in references:
            yield Control(fault.name, fault.description, "not applicable", f"this family has no run {fault.regime!r}")
            continue
        reference = references[fault.regime].first(STEPS)
        if fault.needs and not any(quantity == fault.needs for _, quantity in reference.ledger.keys):
            yield Control(fault.name, fault.description, "not applicable", f"this family has no {fault.needs}")
            continue

        def detect(faulty: Artifact, reference: ReferenceRun = reference) -> Detection | None:
            difference = first_difference([compare(faulty, reference, "float64", "torch")])
            if difference is None:
                return None if check_leaves(faulty, source).passed else Detection("leaves")
            link = next(link for link in difference.chain if link.quantity == difference.quantity)
            return Detection(difference.quantity, difference.case, link.error, link.allowed)

        yield plant(fault, artifact, detect)


def plant(fault: Fault, artifact: Artifact, detect: Comparison) -> Control:
    """Plant ``fault``, and report whether ``detect`` finds a difference."""
    if fault.data is not None:
        faulty = fault.data(artifact)
        if faulty is None:
            return Control(fault.name, fault.description, "not applicable", "it cannot occur in this checkpoint")
        detection = detect(faulty)
    else:
        with substituted(fault.code, optimizer_class(artifact.family).__module__) as calls:
            detection = detect(artifact)
        if not calls:
            unused = fault.code[0][0].__name__
            return Control(fault.name, fault.description, "not applicable", f"this family does not use {unused}")
    if detection is None:
        return Control(fault.name, fault.description, "missed", "nothing")
    return Control(fault.name, fault.description, "caught", *detection)


# --- each level alone --------------------------------------------------------------------------------------------


def _nan(artifact: Artifact, name: str) -> Artifact:
    changed = artifact.tensors[name].clone()
    changed.view(-1)[int(changed.abs().argmax())] = torch.nan
    return replace(artifact, tensors={**artifact.tensors, name: changed})


def _scaled(artifact: Artifact, name: str) -> Artifact:
    changed = artifact.tensors[name].clone()
    changed.view(-1)[int(changed.abs().argmax())] *= 1.01
    return replace(artifact, tensors={**artifact.tensors, name: changed})


WEIGHT_FAULTS: Sequence[tuple[str, str, Callable[[Artifact, str], Artifact]]] = (
    ("weight", "one weight is off by 1 %", _scaled),
    ("NaN", "one weight is NaN", _nan),
)
"""Faults that each level must show alone: name, description, and a function that changes the named weight."""
LEVELS = ("leaves", "network", "single steps", "whole runs")
SHORT = 3
"""Number of steps of a whole run in which these faults are planted."""


def by_level(
    artifact: Artifact,
    source: Source,
    network: Network,
    reference: ReferenceRun,
    original: Original,
    step_check: Callable[[Any], Check],
    *,
    right: bool,
) -> Iterator[Control]:
    """Plant faults that every level must show alone, which proves that no level accepts everything.

    Args:
        artifact: the torch side without a fault.
        source: the original file.
        network: the original's outputs.
        reference: the reference's single steps in the ordinary regime.
        original: the reference's whole run in the ordinary regime.
        step_check: turns a comparison of single steps into a check.
        right: whether the artifact agrees with the original. If not, no fault is planted.
    """
    short = _first_steps(original)

    def checks(level: str, faulty: Artifact) -> Iterator[Check]:
        if level == "network":
            yield next(iter(forward.checks(faulty, network)))
        elif level == "single steps":
            yield step_check(compare(faulty, reference.first(1), "float64", "torch"))
        else:
            yield from trajectory.checks(faulty, short, ("float64",))

    def detect(level: str, faulty: Artifact) -> Detection | None:
        if level == "leaves":
            return None if check_leaves(faulty, source).passed else Detection("leaves")
        failed = next((check for check in checks(level, faulty) if not check.passed), None)
        if failed is None:
            return None
        error = failed.errors[failed.worst]
        by = failed.broken[0] if error.passed and failed.broken else failed.worst
        return Detection(by, "", error.error, error.allowed)

    for level in LEVELS:
        for name, description, change in WEIGHT_FAULTS:
            control = f"{name}, by {level}", f"{description}; {level} alone must show it"
            if not right:
                yield Control(*control, "not applicable", ALREADY_WRONG)
                continue
            detections = (detect(level, change(artifact, tensor)) for tensor in matrices(artifact))
            first = next((each for each in detections if each is not None), None)  # a weight may have no effect
            yield Control(*control, "missed", "nothing") if first is None else Control(*control, "caught", *first)


def _first_steps(original: Original) -> Original:
    planned = replace(original.planned, steps=min(SHORT, original.planned.steps), layouts=("torch",))
    n = planned.steps
    return replace(
        original, planned=planned, grads=original.grads[:n], losses=original.losses[:n], truth=original.truth[: n + 1]
    )
