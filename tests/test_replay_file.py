"""A damaged ``parity-vectors.safetensors`` causes one clear error before anything is computed from its numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, report_of
from trees import write_theta

from pylo_zoo import artifact
from pylo_zoo.artifact import VECTORS, Artifact, pack_arrays, read_arrays
from pylo_zoo.parity import cases, replay_file, trajectory, vectors
from pylo_zoo.parity.forward import Network, torch_forward
from pylo_zoo.parity.targets import replay_target
from pylo_zoo.parity.torch_side import TorchSide
from pylo_zoo.parity.trajectory import Original, WholeRun
from pylo_zoo.pipeline import build_artifact

Content = tuple[dict[str, np.ndarray], dict[str, Any]]
Spoil = Callable[[dict[str, np.ndarray], dict[str, Any]], object]
STEPS = 4
CASE = "tall dense"


def vectors_of(subject: Artifact) -> bytes:
    """A replay file whose original is the torch side itself, so it needs no JAX."""
    import torch

    some = tuple(case for case in cases.REDUCED if case.rule is None)
    planned = WholeRun("ordinary", "ordinary", STEPS, some, ("torch",))
    start, hyper = cases.parameters(0), trajectory.hyper_of(subject, planned)
    start = {case.name: start[case.name] for case in some}
    grads, losses = cases.gradients(0, "ordinary", STEPS), cases.losses(0, "ordinary", STEPS)
    truth = TorchSide(subject, some, start, hyper, "float64", "torch").run(grads, losses)
    run = Original(planned, hyper, start, grads, losses, truth, dict.fromkeys(start, 1e-6))
    net: Any = subject.net()
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in net.probe_shapes().items()}
    outputs = torch_forward(net.to(torch.float64), inputs)
    return vectors.pack(subject, Network(inputs, outputs, dict.fromkeys(outputs, 1e-6)), [run])


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, bytes]:
    folder = tmp_path_factory.mktemp("proven")
    converted = build_artifact(
        "elo", source=write_theta(folder, "elo", scale=0.1), out=folder / "a", verify=False
    ).artifact
    return converted, vectors_of(converted)


def write_artifact_with(subject: Artifact, data: bytes, tmp_path: Path) -> Path:
    """An artifact with this replay file and a report that names it."""
    report = {**report_of(subject, 0).to_dict(), "vectors_sha256": hashlib.sha256(data).hexdigest()}
    folder = artifact.write(replace(subject, parity=report), tmp_path / "a", extra_files={VECTORS: data})
    return folder


@pytest.fixture
def content(proven: tuple[Artifact, bytes], tmp_path: Path) -> Content:
    (tmp_path / "whole").write_bytes(proven[1])
    arrays, about = read_arrays(tmp_path / "whole")
    return arrays, json.loads(about)


def test_a_valid_file_passes(proven: tuple[Artifact, bytes], tmp_path: Path) -> None:
    report = replay_target(write_artifact_with(*proven, tmp_path))
    assert report.passed, report.statements


def test_a_default_that_changed_since_is_named(proven: tuple[Artifact, bytes], tmp_path: Path) -> None:
    subject, data = proven
    folder = write_artifact_with(subject, data, tmp_path)
    parity = json.loads((folder / "parity.json").read_text())
    artifact.write_parity(folder, {**parity, "defaults": {**subject.defaults, "lr": 123.0}})
    (contradiction,) = replay_target(folder).statements.contradictions
    assert contradiction.startswith("the default lr was 123.0 and is ")


def about(**values: Any) -> Spoil:
    return lambda arrays, about: about.update(values)


def run(**values: Any) -> Spoil:
    return lambda arrays, about: about["runs"][0].update(values)


def case(**values: Any) -> Spoil:
    return lambda arrays, about: about["runs"][0]["cases"][0].update(values)


def hyper(**values: Any) -> Spoil:
    return lambda arrays, about: about["runs"][0]["hyper"].update(values)


def array(name: str, change: Callable[[np.ndarray], Any]) -> Spoil:
    return lambda arrays, about: arrays.update({name: change(arrays[name])})


def without(name: str) -> Spoil:
    return lambda arrays, about: arrays.pop(name)


def lacking(key: str) -> Spoil:
    return lambda arrays, about: about["runs"][0].pop(key)


def twice(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    about["runs"] *= 2


def with_nan(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value.flat[0] = np.nan
    return value


GRADS, PARAMS, LOSSES = f"ordinary.grads.{CASE}", f"ordinary.params.{CASE}", "ordinary.losses"
FEATURES, MLP = "network.inputs.features", "network.outputs.mlp"
SPOILED: dict[str, tuple[Spoil, str]] = {
    "no runs": (about(runs=[]), r"runs is \[\]"),
    "runs that are a number": (about(runs=5), "runs is 5"),
    "a run that is a text": (about(runs=["x"]), r"runs\[0\] is 'x'"),
    "too many runs": (lambda arrays, about: about.update(runs=about["runs"] * 100), "runs is "),
    "a run twice": (twice, "two runs have the same name"),
    "no ordinary run": (run(regime="spikes"), "regime ordinary"),
    "unknown regime": (run(regime="x"), "regime is 'x'"),
    "a billion steps": (run(steps=10**9), "steps is 1000000000, not an integer from 1 to"),
    "no steps": (run(steps=0), "steps is 0"),
    "negative steps": (run(steps=-1), "steps is -1"),
    "steps of 400 digits": (run(steps=10**400), "steps is a number of 401 digits"),
    "steps that are true": (run(steps=True), "steps is True"),
    "more steps than arrays": (run(steps=STEPS + 1), "has the shape"),
    "no steps field": (lacking("steps"), "steps missing"),
    "no cases": (run(cases=[]), r"cases is \[\]"),
    "a huge shape": (case(shape=[10**9, 10**9]), r"shape\[0\] is 1000000000"),
    "a large shape": (case(shape=[10**4, 10**4]), "shape is "),
    "a negative shape": (case(shape=[-1]), r"shape\[0\] is -1"),
    "a shape of many axes": (case(shape=[1] * 65), "shape is "),
    "a shape of texts": (case(shape=["x"]), r"shape\[0\] is 'x'"),
    "another layout": (case(torch="x"), "torch is 'x'"),
    "an invalid layout": (case(torch="torch-stacked"), "torch is 'torch-stacked'"),
    "another rule": (case(rule=[]), r"rule is \[\]"),
    "an unknown field of a case": (case(extra=1), "unknown field 'extra'"),
    "unknown hyper": (hyper(unknown=1), r"hyper has \["),
    "missing hyper": (lambda arrays, about: about["runs"][0]["hyper"].pop("lr"), r"hyper has \["),
    "hyper of a wrong type": (hyper(lr="x"), "hyper.lr is 'x'"),
    "infinite hyper": (hyper(lr=float("inf")), "hyper.lr is inf"),
    "hyper of 400 digits": (hyper(lr=10**400), "hyper.lr is a number of 401 digits"),
    "hyper that is a list": (run(hyper=[]), r"hyper is \[\]"),
    "noise of an unknown parameter": (run(noise={"x": 1.0}), "noise is "),
    "negative noise": (
        lambda arrays, about: about["runs"][0]["noise"].update({CASE: -1}),
        "noise.tall dense is -1",
    ),
    "noise that is NaN": (lambda arrays, about: about["runs"][0]["noise"].update({CASE: float("nan")}), "is nan"),
    "noise of the network": (about(network_noise=[]), r"network_noise is \[\]"),
    "faults that are not a list": (about(visible_faults=5), "visible_faults is 5"),
    "an invalid fingerprint": (about(fingerprint=5), "fingerprint is 5"),
    "an unknown field": (about(more=1), "unknown field 'more'"),
    "another version": (about(format_version=10**400), "format_version a number of 401 digits"),
    "a missing gradient": (without(GRADS), "'ordinary.grads.tall dense' is missing"),
    "a missing parameter": (without(PARAMS), "is missing"),
    "missing losses": (without(LOSSES), "is missing"),
    "missing inputs": (without(FEATURES), "network's inputs have the shapes"),
    "missing outputs": (without(MLP), "network_noise is "),
    "empty gradients": (array(GRADS, lambda a: a[:0]), "has the shape"),
    "empty parameters": (array(PARAMS, lambda a: a[:0]), "is empty"),
    "too many parameters": (array(PARAMS, lambda a: np.concatenate([a, a])), "steps, not 4"),
    "one parameter missing in a step": (array(PARAMS, lambda a: a[:2]), "different numbers of steps"),
    "no losses": (array(LOSSES, lambda a: a[:0]), "has the shape"),
    "gradients in float64": (array(GRADS, lambda a: a.astype(np.float64)), "is float64, not float32"),
    "parameters in float32": (array(PARAMS, lambda a: a.astype(np.float32)), "is float32, not float64"),
    "integer parameters": (array(PARAMS, lambda a: a.astype(np.int64)), "is int64, not float64"),
    "transposed gradients": (array(GRADS, lambda a: a.transpose(0, 2, 1).copy()), "has the shape"),
    "NaN in gradients": (array(GRADS, with_nan), "contains NaN or infinity"),
    "NaN in parameters": (array(PARAMS, with_nan), "contains NaN or infinity"),
    "NaN in losses": (array(LOSSES, with_nan), "contains NaN or infinity"),
    "NaN in outputs": (array(MLP, with_nan), "contains NaN or infinity"),
    "inputs of another shape": (array(FEATURES, lambda a: a[:1]), "network's inputs have the shapes"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_damaged_file_is_refused(
    case: str, proven: tuple[Artifact, bytes], content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, reason = SPOILED[case]
    spoil(*content)
    arrays, described = content
    folder = write_artifact_with(proven[0], pack_arrays(arrays, json.dumps(described)), tmp_path)
    error = refused(capsys, "verify", folder, "--replay")
    assert "bug in pylo-zoo" not in error
    import re

    assert re.search(reason, error), error


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 100, b"\xff" * 8, (10**6).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"],
    ids=range(5),
)
def test_a_file_that_is_not_safetensors_is_refused(
    data: bytes, proven: tuple[Artifact, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "verify", write_artifact_with(proven[0], data, tmp_path), "--replay")
    assert "bug in pylo-zoo" not in error


@pytest.mark.parametrize("text", ["", "5", "[]", "null", "{", '{"a":' * 10_000, "9" * 5_000, "{}"], ids=range(8))
def test_a_malformed_description_is_refused(
    text: str, proven: tuple[Artifact, bytes], content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(
        capsys, "verify", write_artifact_with(proven[0], pack_arrays(content[0], text), tmp_path), "--replay"
    )
    assert "is damaged" in error


def test_a_file_beyond_the_limit_is_not_opened(
    proven: tuple[Artifact, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_file, "MAX_FILE_BYTES", 100)
    assert "larger than 100 bytes" in refused(capsys, "verify", write_artifact_with(*proven, tmp_path), "--replay")


def test_the_path_need_not_be_utf8(proven: tuple[Artifact, bytes], tmp_path: Path) -> None:
    folder = write_artifact_with(*proven, tmp_path)
    other = folder.with_name(os.fsdecode(b"\xff"))
    folder.rename(other)
    assert replay_target(other).passed
