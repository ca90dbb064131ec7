"""``pylo-zoo export`` and ``inspect``: their output, what they refuse, and the files that they leave."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, digests, refused, run
from trees import encode, nested, theta, write_params, write_theta

from pylo_zoo import artifact
from pylo_zoo import convert as library
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- export ------------------------------------------------------------------------------------------------------


@pytest.fixture
def artifact_directory(capsys: Capture, tmp_path: Path) -> Path:
    """An artifact's directory."""
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo"), "--no-verify", "-q") == 0
    capsys.readouterr()
    return Path("zoo/elo")


def test_export_reports_what_it_wrote(artifact_directory: Path, capsys: Capture) -> None:
    assert run("export", artifact_directory, "--out", "new/x.state", "--json") == 0
    data = Path("theta.state").read_bytes()
    output = {"file": "new/x.state", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "identical": True}
    assert json.loads(capsys.readouterr().out) == output


def test_export_replaces_only_with_force(artifact_directory: Path, capsys: Capture) -> None:
    Path("x").write_text("mine")
    assert "already exists" in refused(capsys, "export", artifact_directory, "--out", "x")
    assert Path("x").read_text() == "mine"
    assert run("export", artifact_directory, "--out", "x", "--force") == 0
    capsys.readouterr()
    assert Path("x").read_bytes() == Path("theta.state").read_bytes()
    assert "is a directory" in refused(capsys, "export", artifact_directory, "--out", "zoo", "--force")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "parity.json", "link"])
def test_export_never_replaces_a_file_of_an_artifact(artifact_directory: Path, capsys: Capture, name: str) -> None:
    Path("link").symlink_to(artifact_directory / "config.json")
    out = name if name == "link" else artifact_directory / name
    before = digests(artifact_directory)
    assert "is a file of the artifact" in refused(capsys, "export", artifact_directory, "--out", out, "--force")
    assert "is a file of the artifact" in refused(capsys, "verify", artifact_directory, "--markdown", out)
    assert digests(artifact_directory) == before


def test_export_refuses_an_artifact_whose_weights_were_changed(artifact_directory: Path, capsys: Capture) -> None:
    loaded = artifact.read(artifact_directory)
    tensors = {name: tensor.clone() for name, tensor in loaded.tensors.items()}
    tensors["mlp.layers.0.bias"][0] *= 1.001
    artifact.write(dataclasses.replace(loaded, tensors=tensors), artifact_directory, force=True)
    assert "has changed since its conversion" in refused(capsys, "export", artifact_directory, "--out", "x")
    assert not Path("x").exists()


def test_export_refuses_a_source_that_flax_did_not_write(tmp_path: Path) -> None:
    data = bytearray(encode(nested(theta("elo"))))
    assert data[1:4] == b"\xa2nn"
    data[1:2] = b"\xd9\x02"  # the same content with a longer header
    (tmp_path / "theta.state").write_bytes(bytes(data))
    converted = convert("elo", source="theta.state")
    with pytest.raises(ZooError, match="exact bytes cannot be rebuilt"):
        library.export(converted)


def test_export_refuses_other_directories(capsys: Capture) -> None:
    assert "is not an artifact" in refused(capsys, "export", ".", "--out", "x")


# --- inspect -----------------------------------------------------------------------------------------------------


def test_inspect_shows_everything_in_80_columns(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = write_params(tmp_path)
    assert run("inspect", path.name) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    for word in ("flax-params", hashlib.sha256(path.read_bytes()).hexdigest(), "lstm_hidden_size  5", "33 leaves"):
        assert word in out
    assert "rnn_params/rnn/linear/w" in out
    assert "10 × 20" in out
    assert "use_bugged_loss_features" in out
    assert "Ready to convert" in out
    assert "pylo-zoo convert velo --source params" in out
    assert not Path("zoo").exists()


def test_inspect_prints_json(capsys: Capture, tmp_path: Path) -> None:
    assert run("inspect", write_theta(tmp_path, "adafac-mlp"), "--json") == 0
    output = json.loads(capsys.readouterr().out)
    assert output["families"] == ["adafac-mlp", "mulo"]
    assert output["architecture"] == {"hidden_size": 4, "hidden_layers": 1}
    assert output["leaves"][0] == {"path": "adafactor_decays", "shape": [3], "dtype": "float32"}
    assert (output["problems"], output["exact"], output["matched"], output["config"]) == ([], True, None, None)


def broken_tree(leaves: dict[tuple[str, ...], np.ndarray]) -> None:
    del leaves["rnn_params", "linear", "w"]


def not_a_number(leaves: dict[tuple[str, ...], np.ndarray]) -> None:
    leaves["rnn_params", "linear", "w"][0, 0] = math.nan


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (broken_tree, "nearest family velo: leaves missing (1): rnn_params/linear/w [30, 5]"),
        (not_a_number, "leaves with NaN or infinite values (1): rnn_params/linear/w"),
    ],
)
def test_inspect_reports_what_would_stop_a_conversion(
    spoil: Callable[[Any], None], complaint: str, capsys: Capture, tmp_path: Path
) -> None:
    leaves = theta("velo")
    spoil(leaves)
    (tmp_path / "theta.state").write_bytes(encode(nested(leaves)))
    assert run("inspect", "theta.state", "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == [complaint]
    with pytest.raises(ZooError):
        convert("velo", source="theta.state")


def test_inspect_finds_a_gin_file_that_contradicts_the_tree(capsys: Capture, tmp_path: Path) -> None:
    assert run("inspect", write_params(tmp_path, gin="HyperV2.with_p = False"), "--json") == 0
    assert "another update rule" in json.loads(capsys.readouterr().out)["problems"][0]


def test_inspect_refuses_what_it_cannot_read(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "x.pickle").write_bytes(b"\x80\x04\x95")
    assert "x.pickle: the pickle is truncated" in refused(capsys, "inspect", "x.pickle")


def test_inspect_of_an_artifacts_files(artifact_directory: Path, capsys: Capture) -> None:
    for name, what in (("model.safetensors", "the weights file"), ("config.json", "the description")):
        error = refused(capsys, "inspect", artifact_directory / name)
        assert f"{name} is {what} of the artifact zoo/elo." in error
        assert "Run `pylo-zoo info zoo/elo`" in error


def test_inspect_lists_the_leaves_sorted(capsys: Capture, tmp_path: Path) -> None:
    assert run("inspect", write_theta(tmp_path, "elo"), "--json") == 0
    paths = [leaf["path"].split("/") for leaf in json.loads(capsys.readouterr().out)["leaves"]]
    assert paths == sorted(paths)


@pytest.mark.parametrize("words", [("inspect",), ("convert", "velo", "--source")])
def test_a_local_text_file_needs_no_download(words: tuple[str, ...], capsys: Capture) -> None:
    Path("README.md").write_text("# Notes\n")
    error = refused(capsys, *words, "README.md")
    assert "a text file that begins with '# Notes'" in error
    assert "Pass the checkpoint's own file, such as theta.state." in error


def test_a_directory_without_a_checkpoint_is_called_that_first(capsys: Capture) -> None:
    Path("place").mkdir()
    Path("place/link").symlink_to("/etc/hostname")
    assert "place is a directory without an orbax checkpoint" in refused(capsys, "inspect", "place")
