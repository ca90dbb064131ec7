"""Replay: comparing the torch side with stored results of the original, without JAX.

``parity-vectors.safetensors`` in the artifact's directory holds the network's inputs and float64 outputs, and two whole
runs of ten steps in JAX layout with the error of the original's float32 run. It records the artifact's fingerprint, and
``parity.json`` records its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pylo_zoo import artifact as artifacts
from pylo_zoo import limits
from pylo_zoo.artifact import VECTORS, Artifact, pack_arrays, read_arrays
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.files import read_regular
from pylo_zoo.parity import controls, devices, forward, replay_file, trajectory
from pylo_zoo.parity.forward import Network
from pylo_zoo.parity.replay_file import AGAIN, Vectors
from pylo_zoo.parity.sides import one_thread
from pylo_zoo.parity.trajectory import Original
from pylo_zoo.report import bounds, reading
from pylo_zoo.report.records import Control, Leaves, Report, Settings, Statements

STORED_RUNS = 2
"""Number of whole runs that are stored; the long one is not."""
FORMAT_VERSION = 1


def pack(artifact: Artifact, network: Network, originals: Sequence[Original]) -> bytes:
    """The content of ``parity-vectors.safetensors``."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in network.inputs.items():
        arrays[f"network.inputs.{name}"] = value
    for name, value in network.outputs.items():
        arrays[f"network.outputs.{name}"] = value
    for run in originals:
        prefix = run.planned.name
        arrays[f"{prefix}.losses"] = np.asarray(run.losses, np.float64)
        for case in run.planned.cases:
            arrays[f"{prefix}.grads.{case.name}"] = np.stack([step[case.name] for step in run.grads]).astype(np.float32)
            arrays[f"{prefix}.params.{case.name}"] = np.stack([step[case.name] for step in run.truth])
    about = {
        "format_version": FORMAT_VERSION,
        "fingerprint": artifact.fingerprint,
        "network_noise": dict(network.noise),
        "visible_faults": [each.name for each in _controls(artifact, originals) if each.status == "caught"],
        "runs": [
            {
                "name": run.planned.name,
                "regime": run.planned.regime,
                "steps": run.planned.steps,
                "hyper": dict(run.hyper),
                "noise": dict(run.noise),
                "cases": [asdict(case) for case in run.planned.cases],
            }
            for run in originals
        ],
    }
    return pack_arrays(arrays, json.dumps(about, sort_keys=True))


def unpack(path: Path) -> Vectors:
    """Read ``parity-vectors.safetensors``.

    Raises:
        ZooError: the file is missing, damaged or of another version.
    """
    if not os.path.lexists(path):
        again = AGAIN.replace("verify DIR", f"verify {shlex.quote(str(path.parent))}")
        raise ZooError(f"{path} does not exist, so the proof cannot be replayed.", again)
    if path.is_file() and path.stat().st_size > replay_file.MAX_FILE_BYTES:
        raise ZooError(f"{path} is larger than {replay_file.MAX_FILE_BYTES:,} bytes.", AGAIN)
    arrays, text = read_arrays(path)
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path} is damaged: {type(error).__name__}: {error}.", AGAIN) from error
    if isinstance(about, dict) and about.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise ZooError(f"{path} has format_version {quoted(about['format_version'])}.", "Update pylo-zoo.")
    try:
        return replay_file.read(about, arrays)
    except ZooError as error:
        raise ZooError(f"{path} is damaged: {error.message}", AGAIN) from error


def replay(artifact: Artifact) -> Report:
    """Compare the artifact at ``artifact.path`` with its stored vectors, without JAX.

    Returns:
        A report with checks of the network and of whole runs, and the planted faults. It is not written to
        ``parity.json``.

    Raises:
        ZooError: the vectors are missing, damaged, or do not match the sha256 in ``parity.json``.
    """
    if artifact.path is None or artifact.parity is None:
        place = str(artifact.path or artifact.name)
        hint = f"Run `pylo-zoo verify {shlex.quote(place)}` with JAX installed."
        raise ZooError(f"{place} has no proof to replay.", hint)
    path = artifact.path / VECTORS
    fingerprint, network, originals, visible = unpack(path)
    sha256 = hashlib.sha256(read_regular(path, limits.max_bytes())).hexdigest()
    if artifact.parity.get("vectors_sha256") != sha256:
        raise ZooError(f"{path} has sha256 {sha256[:12]}…, but {artifacts.PARITY} records another.", AGAIN)
    try:
        replay_file.check_for(artifact, network.inputs, [run.hyper for run in originals])
    except ZooError as error:
        raise ZooError(f"{path} does not fit {artifact.name}: {error.message}", AGAIN) from error
    kernels = devices.kernels_of(artifact)
    fused = [each.device for each in kernels if each.compared]
    with one_thread():
        checks = [*forward.checks(artifact, network)]
        for run in originals:
            checks += trajectory.checks(artifact, run, devices=fused)
        planted = _controls(artifact, originals, visible) if all(check.passed for check in checks) else []
    contradictions = []
    if fingerprint != artifact.fingerprint:
        contradictions.append("the weights or config.json were edited after the proof")
    if change := artifact.changed_default():
        contradictions.append(f"the default {change} now")
    return Report(
        name=artifact.name,
        family=artifact.family,
        source={key: getattr(artifact.source, key) for key in ("uri", "sha256", "bytes")},
        fingerprint=artifact.fingerprint,
        leaves=Leaves(compared=0) if fingerprint != artifact.fingerprint else _leaves(artifact.parity),
        statements=Statements(contradictions),
        settings=Settings(0, bounds.MAX_ERROR, bounds.FACTOR, bounds.FLOOR),
        checks=checks,
        controls=planted,
        kernels=kernels,
    )


def _leaves(parity: Mapping[str, Any]) -> Leaves:
    return reading.read_leaves(parity["leaves"]) if parity.get("leaves") else Leaves(compared=0)


def _controls(artifact: Artifact, originals: Sequence[Original], visible: Sequence[str] | None = None) -> list[Control]:
    """Plant the faults in the ordinary whole run. With ``visible``, plant only the faults that it names."""
    run = next(run for run in originals if run.planned.regime == "ordinary")
    run = replace(run, planned=replace(run.planned, layouts=("torch",)))

    def detect(faulty: Artifact) -> controls.Detection | None:
        check = next(trajectory.checks(faulty, run, ("float64",)))
        error = check.errors[check.worst]
        if not check.passed:
            return controls.Detection("parameter", check.worst, error.error, error.allowed)
        return controls.Detection("fingerprint") if faulty.fingerprint != artifact.fingerprint else None

    def plant(fault: controls.Fault) -> Control:
        if visible is not None and fault.name not in visible:
            reason = "it does not change the parameters of whole runs"
            return Control(fault.name, fault.description, "not applicable", reason)
        return controls.plant(fault, artifact, detect)

    return [plant(fault) for fault in controls.FAULTS]
