"""The reference held against the group's own package, where this machine has it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from pylo_zoo import config, converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.parity import cases
from pylo_zoo.parity.report import Check, Error

STEPS = 5


def live(artifact: Artifact, theta: Mapping[str, Any], seed: int) -> Check | str:
    """The reference against the original optimizer itself, over a short ordinary run in float32.

    Returns:
        The check, or why there is none: the package is not importable, or there is no original that stands alone.

    Its errors are those of :func:`pylo_zoo.parity.originals.check_reference`, past a floor of four roundings of the
    parameter, and an original that runs and disagrees fails the proof.
    """
    from pylo_zoo.parity.originals import ORIGINALS, TOLERANCE, check_reference

    original = ORIGINALS.get(artifact.family)
    if original is None:
        return f"the reference against an original: none of {artifact.family} stands alone"
    if find_spec(original.package) is None:
        return f"the reference against {original.package}, which is not installed here"
    given = {
        key: value for key, value in converters.get(artifact.family).parity_hyper.items() if key not in original.only
    }
    start = cases.parameters(seed)
    names = [case.name for case in cases.CASES if case.rule is None]  # originals route by rank alone
    try:
        found = check_reference(
            artifact.family,
            theta,
            architecture=config.to_dict(artifact.architecture),
            behavior=config.to_dict(artifact.behavior),
            hyper=given,
            params={name: np.float32(start[name]) for name in names},
            grads=[
                {name: np.float32(step[name]) for name in names} for step in cases.gradients(seed, "ordinary", STEPS)
            ],
            losses=cases.losses(seed, "ordinary", STEPS),
        )
    except ZooError as error:
        return f"the reference against {original.package}: {error.message}"
    errors = {name: Error(float(np.nan_to_num(error, nan=np.inf)), TOLERANCE) for name, error in found.errors.items()}
    return Check("original", "float32", "", f"{found.run.original} {found.run.version}", STEPS, errors)
