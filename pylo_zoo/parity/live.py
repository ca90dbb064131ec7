"""Compares the reference with the group's own package, if it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from pylo_zoo import config, converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import cases
from pylo_zoo.report.records import Check, Error

STEPS = 5


def live(artifact: Artifact, theta: Mapping[str, Any], seed: int) -> Check | str:
    """Compare the reference with the original optimizer over a short ordinary run in float32.

    Errors are those of :func:`pylo_zoo.parity.originals.check_reference`. An original that disagrees fails the proof.

    Returns:
        The check, or the reason why it did not run: the package cannot be imported, or no standalone original exists.
    """
    from pylo_zoo.parity.originals import ORIGINALS, TOLERANCE, check_reference

    original = ORIGINALS.get(artifact.family)
    if original is None:
        return f"the reference compared with an original: {artifact.family} has no standalone original"
    if find_spec(original.package) is None:
        return f"the reference compared with {original.package}: the package is not installed"
    hyper = converters.get(artifact.family).parity_hyper
    start = cases.parameters(seed)
    names = [case.name for case in cases.CASES if case.rule is None]  # originals route by rank only
    try:
        check = check_reference(
            artifact.family,
            theta,
            architecture=config.to_dict(artifact.architecture),
            behavior=config.to_dict(artifact.behavior),
            hyper={key: value for key, value in hyper.items() if key not in original.unsupported},
            params={name: np.float32(start[name]) for name in names},
            grads=[
                {name: np.float32(step[name]) for name in names} for step in cases.gradients(seed, "ordinary", STEPS)
            ],
            losses=cases.losses(seed, "ordinary", STEPS),
        )
    except ZooError as error:
        return f"the reference compared with {original.package}: {error.message}"
    errors = {name: Error(float(np.nan_to_num(error, nan=np.inf)), TOLERANCE) for name, error in check.errors.items()}
    return Check("original", "float32", "", f"{check.run.original} {check.run.version}", STEPS, errors)
