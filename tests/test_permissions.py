"""Weights that are not float32 or not finite: refused, or accepted with a flag and recorded."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pylo_files
import pytest
from commands import Capture, refused, run
from trees import Leaves, encode, nested, theta

from pylo_zoo import artifact
from pylo_zoo import convert as library
from pylo_zoo.convert import ConversionPolicy, convert
from pylo_zoo.errors import ZooError
from pylo_zoo.pipeline import build_artifact

CAST, NONFINITE = ConversionPolicy(cast="float32"), ConversionPolicy(nonfinite=True)


def flax(leaves: Leaves) -> bytes:
    return encode(nested(leaves))


def pickled(leaves: Leaves) -> bytes:
    return pickle.dumps(nested(leaves))


def npz(leaves: Leaves) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"/".join(path): leaf for path, leaf in leaves.items()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


WRITERS: list[Callable[[Leaves], bytes]] = [flax, pickled, npz]


def in_dtype(name: str, scale: float = 1.0) -> Leaves:
    if name.startswith(("bfloat", "float8")):
        dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    else:
        dtype = np.dtype(name)
    return {path: (scale * leaf).astype(dtype) for path, leaf in theta("elo").items()}


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "checkpoint"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("writer", WRITERS)
def test_other_floats_are_cast_with_permission(dtype: str, writer: Callable[[Leaves], bytes], tmp_path: Path) -> None:
    leaves = in_dtype(dtype)
    if writer is npz and dtype.startswith(("bfloat", "float8")):
        pytest.skip("numpy cannot save this dtype")
    path = write(tmp_path, writer(leaves))
    with pytest.raises(ZooError, match=rf"not float32 \(6\): .* {dtype}.*--cast float32"):
        convert("elo", source=path)
    converted = convert("elo", source=path, allowed=CAST)
    assert converted.source.layout["cast"] == {"to": "float32", "from": [dtype]}
    expected = leaves["nn", "~", "w1"].astype(np.float32).T
    np.testing.assert_array_equal(converted.tensors["mlp.layers.1.weight"].numpy(), expected)
    with pytest.raises(ZooError, match=f"was cast from {dtype}" if writer is flax else "cannot be rebuilt"):
        library.export(converted)
    assert library.export(converted, theta=True)


@pytest.mark.parametrize("writer", [flax, *(pytest.param(other, marks=pytest.mark.slow) for other in (pickled, npz))])
def test_a_cast_artifact_is_compared_with_the_cast_original(writer: Callable[[Leaves], bytes], tmp_path: Path) -> None:
    pytest.importorskip("jax")
    path = write(tmp_path, writer(in_dtype("float64", scale=0.1)))
    result = build_artifact("elo", source=path, out=tmp_path / "out", allowed=CAST)
    assert result.report.passed
    assert artifact.read(tmp_path / "out").source.layout["cast"]["from"] == ["float64"]


def test_flax_itself_writes_bf16_and_parity_reads_it(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    path = write(tmp_path, serialization.to_bytes(nested(in_dtype("bfloat16", scale=0.1))))
    assert build_artifact("elo", source=path, out=tmp_path / "out", allowed=CAST).report.passed


def test_pylos_file_is_proven(tmp_path: Path) -> None:
    """Here because the compiled reference of this file's family is reused."""
    pytest.importorskip("jax")
    path = pylo_files.write(tmp_path, "elo", theta("elo", scale=0.1))
    assert build_artifact("elo", source=path, out=tmp_path / "out").report.passed


def test_a_permission_that_is_not_needed_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, flax(theta("elo")))
    converted = convert("elo", source=path, allowed=ConversionPolicy(cast="float32", nonfinite=True))
    assert converted.source.layout == convert("elo", source=path).source.layout


def test_integers_are_never_cast(tmp_path: Path) -> None:
    path = write(tmp_path, flax({key: leaf.astype(np.int32) for key, leaf in theta("elo").items()}))
    with pytest.raises(ZooError, match="int32"):
        convert("elo", source=path, allowed=CAST)


def test_a_cast_that_overflows_is_not_finite(tmp_path: Path) -> None:
    leaves = in_dtype("float64")
    leaves["nn", "~", "b0"][0] = 1e300
    path = write(tmp_path, flax(leaves))
    with pytest.raises(ZooError, match=r"infinite values \(1\): nn/~/b0.*--allow-nonfinite"):
        convert("elo", source=path, allowed=CAST)


def test_only_float32_is_cast_to() -> None:
    with pytest.raises(ZooError, match="cannot be cast to float16"):
        ConversionPolicy(cast="float16")


def not_finite(value: float = math.nan) -> Leaves:
    leaves = theta("elo")
    leaves["nn", "~", "b1"][2] = value
    return leaves


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("writer", WRITERS)
def test_nan_and_infinities(value: float, writer: Callable[[Leaves], bytes], tmp_path: Path) -> None:
    path = write(tmp_path, writer(not_finite(value)))
    with pytest.raises(ZooError, match=r"infinite values \(1\): nn/~/b1.*--allow-nonfinite"):
        convert("elo", source=path)
    result = build_artifact("elo", source=path, out=tmp_path / "out", allowed=NONFINITE)
    assert result.artifact.source.layout["nonfinite"] == ["nn/~/b1"]
    assert result.report.leaves.passed
    assert result.report.status == "not_run"
    read = artifact.read(tmp_path / "out")
    assert read.fingerprint == result.artifact.fingerprint
    if writer is flax:
        assert library.export(read) == path.read_bytes()


def test_an_artifact_with_nan_without_permission_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, flax(not_finite()))
    build_artifact("elo", source=path, out=tmp_path / "out", allowed=NONFINITE)
    config = tmp_path / "out" / "config.json"
    values: dict[str, Any] = json.loads(config.read_text())
    del values["source"]["layout"]["nonfinite"]
    config.write_text(json.dumps(values))
    with pytest.raises(ZooError, match="NaN or infinite"):
        artifact.read(tmp_path / "out")


# --- the command line --------------------------------------------------------------------------------------------


def test_the_flags(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leaves = in_dtype("float64")
    leaves["nn", "~", "b1"][2] = math.nan
    write(tmp_path, pickled(leaves))
    words = ["convert", "elo", "--source", "checkpoint", "-q"]
    assert "--cast float32 --allow-nonfinite" in refused(capsys, *words)
    assert "convert with --allow-nonfinite (in Python" in refused(capsys, *words, "--cast", "float32")
    assert run(*words, "--cast", "float32", "--allow-nonfinite") == 0
    assert artifact.read("zoo/elo").source.layout["nonfinite"] == ["nn/~/b1"]
    assert run(*words, "--cast", "int8") == 2
    capsys.readouterr()
    assert "NaN or infinite values" in refused_with_output(capsys, "verify", "zoo/elo")


def refused_with_output(capsys: Capture, *argv: object) -> str:
    assert run(*argv) == 1
    return capsys.readouterr().err


def test_inspect_names_the_required_flags(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, npz(in_dtype("float64")))
    assert run("inspect", "checkpoint") == 0
    out = capsys.readouterr().out
    assert "pylo-zoo convert elo --source checkpoint --cast float32" in out
    assert "float64" in out
    assert run("inspect", "checkpoint", "--json") == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["format"], output["needs"], output["families"]) == ("npz", ["--cast float32"], ["elo"])
    assert output["problems"]
