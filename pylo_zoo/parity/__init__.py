"""Parity: does the torch side compute what the JAX original computes?

Three levels, each recomputable: every leaf of the source accounted for bit for bit; the meta-network's forward pass on
random inputs; whole trajectories of the optimizer over a table of shapes, in both layouts. The JAX side reads the
original file itself, where it is flax's through flax, and never a weight of the artifact.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pylo_zoo import config, converters, formats
from pylo_zoo.artifact import Artifact, write_parity
from pylo_zoo.convert import contradictions, original
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, fetch, is_uri
from pylo_zoo.parity import cases, forward, leaves, trajectory
from pylo_zoo.parity.report import FORWARD_TOLERANCE, TRAJECTORY_TOLERANCE, Check, Report, Statements
from pylo_zoo.weights import load

SEED = 0
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def jax_is_missing() -> bool:
    """Whether the reference cannot be run here."""
    return find_spec("jax") is None or find_spec("flax") is None


def verify(artifact: Artifact, source: Path) -> Report:
    """Prove, or disprove, that ``artifact`` is the checkpoint ``source`` in torch.

    Args:
        artifact: the torch side.
        source: the original checkpoint file.

    Returns:
        The report; without JAX the first level alone, as "not_run" with the reason; likewise for
        a family without a reference.

    Raises:
        ZooError: ``source`` cannot be read, or is not the file that the artifact was made of.
    """
    read = formats.read(source)
    if read.sha256 != artifact.source.sha256:
        raise ZooError(
            f"{source} is not the file that {artifact.name} was converted from "
            f"(sha256 {read.sha256[:12]}…, not {artifact.source.sha256[:12]}…).",
            "Give the original with --source, or convert this one.",
        )
    report = without_jax(artifact, read, reason="jax and flax are not installed")
    if converters.get(artifact.family).reference is None:
        return replace(report, reason=f"there is no JAX reference of the family {artifact.family}")
    if jax_is_missing():
        return report
    if nonfinite := artifact.source.layout.get("nonfinite"):
        reason = f"the checkpoint holds NaN or infinite values ({', '.join(nonfinite[:4])}), which no bound compares"
        return replace(report, reason=reason)
    theta = read_theta(artifact, read)
    return replace(
        report,
        checks=[*_forward_checks(artifact, theta), *_trajectory_checks(artifact, theta)],
        environment=_environment(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reason=None,
    )


def without_jax(artifact: Artifact, read: formats.Source, reason: str) -> Report:
    """What can be checked without the reference: every leaf, and what is said of the behaviour; else "not_run"."""
    return Report(
        name=artifact.name,
        family=artifact.family,
        source={"uri": artifact.source.uri, "sha256": read.sha256, "bytes": read.bytes},
        fingerprint=artifact.fingerprint,
        leaves=leaves.check_leaves(artifact, read),
        statements=Statements(contradictions(artifact, read)),
        reason=reason,
    )


def verify_target(target: str | Path, source: str | Path | None = None, *, access: Access | None = None) -> Report:
    """:func:`verify` an artifact's directory, whose ``parity.json`` is replaced, or a registry entry.

    Args:
        target: directory or registry name.
        source: the original checkpoint file, or its address; by default the copy that the conversion kept.
        access: how to fetch.

    Raises:
        ZooError: as :func:`verify`, or the original is not at hand.
    """
    artifact = load(target, proven=False, access=access)
    if isinstance(source, str) and is_uri(source):
        path = fetch(source, sha256=artifact.source.sha256, bytes=artifact.source.bytes, access=access)
    else:
        path = Path(source) if source is not None else original(artifact.source.sha256)
    if path is None:
        raise ZooError(
            f"The original of {artifact.name} ({artifact.source.uri}, sha256 {artifact.source.sha256}) is not at hand.",
            "Give it with --source FILE.",
        )
    report = verify(artifact, path)
    if artifact.path is not None and report.status != "not_run":
        write_parity(artifact.path, report.to_dict())
    return report


def read_theta(artifact: Artifact, original: formats.Source) -> dict[str, Any]:
    """The theta tree of the original file; of the artifact, only what its record says was done to the leaves.

    A flax checkpoint is read by flax itself, apart from :mod:`pylo_zoo.formats`. Of the other formats the reader is the
    one that the conversion used, and so is the table that takes PyLO's names back to JAX's: what these two get wrong,
    the forward pass and the trajectories cannot show. Tests hold them against files and mappings written by hand.
    """
    if original.format not in formats.WRITABLE:
        found = leaves.source_leaves(artifact, original)
        if original.naming != "jax":
            renamed = converters.get(artifact.family, original.naming)
            tensors = converters.to_torch(renamed, found, artifact.architecture)
            found = converters.to_jax(converters.get(artifact.family), tensors, artifact.architecture)
        return leaves.nest(found)
    from flax import serialization

    tree: Any = serialization.msgpack_restore(original.path.read_bytes())
    tree = tree.get("params", tree.get("0", tree))
    if "cast" in artifact.source.layout:
        return leaves.nest({path: np.asarray(leaf).astype(np.float32) for path, leaf in leaves.flatten(tree).items()})
    return tree


def x64() -> AbstractContextManager[Any]:
    """JAX with float64 at hand, as each of its versions spells it."""
    import jax
    from jax import experimental

    enable: Any = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return enable(True)


def _reference(artifact: Artifact, theta: Mapping[str, Any], dtype: str) -> Any:
    from pylo_zoo.reference import build

    family = converters.get(artifact.family)
    assert family.reference is not None
    return build(
        family.load(family.reference),
        theta,
        architecture=config.to_dict(artifact.architecture),
        behavior=config.to_dict(artifact.behavior),
        hyper=family.parity_hyper,
        dtype=dtype,
    )


def _forward_checks(artifact: Artifact, theta: Mapping[str, Any]) -> Iterator[Check]:
    inputs = forward.random_inputs(artifact.net(), SEED)
    for name, dtype in DTYPES.items():
        ours = forward.torch_forward(artifact.net().to(dtype), inputs)
        with x64():
            theirs = {
                key: np.asarray(value) for key, value in _reference(artifact, theta, name).forward(inputs).items()
            }
        if ours.keys() != theirs.keys():
            raise RuntimeError(f"the two sides name different outputs: {sorted(ours)} and {sorted(theirs)}")
        errors = {key: (_relative(ours[key], theirs[key]), FORWARD_TOLERANCE[name]) for key in theirs}
        yield Check("network", name, "random inputs", errors)


def _trajectory_checks(artifact: Artifact, theta: Mapping[str, Any]) -> Iterator[Check]:
    losses = cases.losses(SEED)
    for name, dtype in DTYPES.items():
        start = {key: np.asarray(value, name) for key, value in cases.parameters(SEED).items()}
        for regime in cases.REGIMES:
            grads = [
                {key: np.asarray(value, name) for key, value in step.items()} for step in cases.gradients(SEED, regime)
            ]
            with x64():
                reference = _reference(artifact, theta, name)
                theirs = trajectory.jax_trajectory(reference, start, grads, losses)
            steps = trajectory.finite_steps(theirs)
            for layout in ("torch", "jax"):
                ours = trajectory.torch_trajectory(artifact, layout, dtype, start, grads, losses)
                errors = trajectory.errors(ours, theirs, TRAJECTORY_TOLERANCE[name])
                variant = f"{layout}, {regime}" if steps == cases.STEPS else f"{layout}, {regime}, {steps} steps"
                yield Check("trajectory", name, variant, errors)


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        raise RuntimeError(f"the two sides give different shapes: {ours.shape} and {theirs.shape}")
    error = np.abs(ours.astype(np.float64) - theirs) / max(np.abs(theirs).max(), np.finfo(np.float64).tiny)
    return float(error.max()) if np.isfinite(error).all() else float("inf")


def _environment() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "jax", "flax", "numpy")}
    return {**packages, "python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
