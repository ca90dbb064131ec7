"""Artifacts on disk: deterministic bytes, written whole or not at all, and read strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import CELO, CELO_ADAM, GOLDEN, spec
from safetensors.torch import save_file
from trees import write_checkpoint, write_params, write_theta

from pylo_zoo import artifact, files
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert, export
from pylo_zoo.converters import FAMILIES
from pylo_zoo.errors import ZooError


@pytest.fixture
def celo(tmp_path: Path) -> Artifact:
    return convert("celo", source=write_theta(tmp_path, "celo"))


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def round_trip(family: str, source: Path, tmp_path: Path) -> None:
    converted = convert(family, source=source)
    read = artifact.read(artifact.write(converted, tmp_path / "out"))
    assert read.config() == converted.config()
    assert read.fingerprint == converted.fingerprint
    assert export(read) == source.read_bytes()


@pytest.mark.parametrize("path", [*sorted(GOLDEN.glob("*/theta.state")), CELO, CELO_ADAM], ids=lambda p: p.parent.name)
def test_real_checkpoints_round_trip_byte_for_byte(path: Path, tmp_path: Path) -> None:
    name = path.parent.name
    family = spec(name)["family"] if path.is_relative_to(GOLDEN) else name
    round_trip(family.replace("_", "-"), path, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_synthetic_checkpoints_of_every_family_round_trip(family: str, tmp_path: Path) -> None:
    round_trip(family, write_theta(tmp_path, family), tmp_path)


@pytest.mark.parametrize("write", [write_params, write_checkpoint])
def test_google_containers_round_trip(write: Callable[[Path], Path], tmp_path: Path) -> None:
    round_trip("velo", write(tmp_path), tmp_path)


# --- writing -----------------------------------------------------------------------------------------------------


def test_two_conversions_give_the_same_bytes(tmp_path: Path) -> None:
    path = write_theta(tmp_path, "velo")
    for out in ("one", "two"):
        artifact.write(convert("velo", source=path), tmp_path / out)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    header = (tmp_path / "one" / "model.safetensors").read_bytes()[8:]
    assert json.JSONDecoder().raw_decode(header[:8000].decode("latin1"))[0]["__metadata__"] == {"format": "pt"}


def test_no_local_path_is_recorded(tmp_path: Path, celo: Artifact) -> None:
    artifact.write(celo, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    assert celo.source.uri == "file:theta.state"


def test_files_are_readable_by_others(tmp_path: Path, celo: Artifact) -> None:
    before = os.umask(0o022)
    try:
        artifact.write(celo, tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o644


def test_an_existing_artifact_needs_force(tmp_path: Path, celo: Artifact) -> None:
    out = tmp_path / "out"
    artifact.write(dataclasses.replace(celo, parity={"status": "passed"}), out)
    with pytest.raises(ZooError, match="already exists"):
        artifact.write(celo, out)
    assert artifact.read(out).parity == {"status": "passed"}
    artifact.write(celo, out, force=True)
    assert artifact.read(out).parity is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "theta.state"]


def test_an_empty_directory_needs_no_force(tmp_path: Path, celo: Artifact) -> None:
    (tmp_path / "out").mkdir()
    artifact.write(celo, tmp_path / "out")


@pytest.mark.parametrize("force", [True, False])
def test_a_directory_with_other_things_in_it_is_never_replaced(tmp_path: Path, celo: Artifact, force: bool) -> None:
    with pytest.raises(ZooError, match=r"holds files that are not part of an artifact: theta\.state"):
        artifact.write(celo, tmp_path, force=force)
    with pytest.raises(ZooError, match="is a file"):
        artifact.write(celo, tmp_path / "theta.state", force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["theta.state"]


def test_a_symbolic_link_stays_a_link(tmp_path: Path, celo: Artifact) -> None:
    artifact.write(celo, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    artifact.write(celo, tmp_path / "link", force=True, extra_files={"model.pt": b""})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.pt").exists()


@pytest.mark.parametrize("step", ["sync", "rename"])
def test_a_failure_leaves_the_old_artifact_and_nothing_else(
    tmp_path: Path, celo: Artifact, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out = tmp_path / "zoo" / "out"
    artifact.write(celo, out)
    before = digests(out)
    real_rename = Path.rename

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    def rename(path: Path, target: Path) -> Path:
        if ".new-" in path.name:
            full(path)
        return real_rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda one, other: False)
        patch.setattr(*((files, "sync", full) if step == "sync" else (Path, "rename", rename)))
        with pytest.raises(ZooError, match="No space left"):
            artifact.write(celo, out, force=True)
        with pytest.raises(ZooError, match="No space left"):
            artifact.write(celo, tmp_path / "zoo" / "other")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert digests(out) == before


def test_parity_can_be_replaced_alone(tmp_path: Path, celo: Artifact) -> None:
    out = artifact.write(celo, tmp_path / "out")
    before = digests(out)
    artifact.write_parity(out, {"status": "failed"})
    assert artifact.read(out).parity == {"status": "failed"}
    assert {**digests(out), "parity.json": ""} == {**before, "parity.json": ""}


# --- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_has_the_weights_and_no_gradients(family: str, tmp_path: Path) -> None:
    converted = convert(family, source=write_theta(tmp_path, family))
    net = converted.net()
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(tensor, converted.tensors[name]) for name, tensor in net.state_dict().items())
    assert set(converted.tensors) - set(net.state_dict()) == {
        name for name in converted.tensors if name.startswith("unused.")
    }


def test_changing_a_network_does_not_change_the_artifact(celo: Artifact) -> None:
    before = {name: tensor.clone() for name, tensor in celo.tensors.items()}
    for parameter in celo.net().parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in celo.tensors.items())


def test_the_pt_file_loads_weights_only(tmp_path: Path, celo: Artifact) -> None:
    data = artifact.state_dict_file(celo)
    (tmp_path / "model.pt").write_bytes(data)
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    celo.net().load_state_dict(loaded, strict=True)
    assert not any(name.startswith("unused.") for name in loaded)
    assert artifact.state_dict_file(celo) == data


def test_the_fingerprint_depends_on_everything_that_affects_the_update(celo: Artifact) -> None:
    other = {name: tensor.clone() for name, tensor in celo.tensors.items()}
    other["controller.step_size.bias"][0] += 1
    changed = [
        dataclasses.replace(celo, tensors=other),
        dataclasses.replace(celo, behavior=dataclasses.replace(celo.behavior, exp_mult=0.5)),
        dataclasses.replace(celo, family="celo2"),
    ]
    assert len({celo.fingerprint, *(each.fingerprint for each in changed)}) == 4
    assert dataclasses.replace(celo, name="x", defaults={"lr": 2.0}).fingerprint == celo.fingerprint


# --- reading -----------------------------------------------------------------------------------------------------

SPOILERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda c: c.update(extra=1), "unknown field 'extra'"),
    "missing key": (lambda c: c.pop("behavior"), "config.json: behavior missing"),
    "later version": (lambda c: c.update(format_version=2), "format_version 2"),
    "unknown family": (lambda c: c.update(family="adam"), "family 'adam'"),
    "family that is not a string": (lambda c: c.update(family=[]), r"family is \[\]"),
    "architecture that is not an object": (lambda c: c.update(architecture=3), "architecture is 3"),
    "unknown architecture field": (lambda c: c["architecture"].update(depth=3), "unknown field 'depth'"),
    "unknown behavior field": (lambda c: c["behavior"].update(exp_mlt=3), "Did you mean 'exp_mult'"),
    "wrong type": (lambda c: c["behavior"].update(exp_mult="big"), "exp_mult is 'big'"),
    "another architecture": (lambda c: c["architecture"].update(lstm_hidden_size=6), "of another shape"),
    "huge architecture": (lambda c: c["architecture"].update(lstm_hidden_size=10**18), "model.safetensors holds"),
    "unknown default": (lambda c: c["defaults"].update(momentum=0.9), "unknown field 'momentum'"),
    "default that is not a number": (lambda c: c["defaults"].update(lr="1"), "lr is '1'"),
    "source without a hash": (lambda c: c["source"].pop("sha256"), "sha256 missing"),
    "unknown source field": (lambda c: c["source"].update(path="/home"), "unknown field 'path'"),
    "layout that is not an object": (lambda c: c["source"].update(layout=[]), r"layout is \[\]"),
    "converter": (lambda c: c["converter"].update(version=1), "version is 1"),
}


@pytest.mark.parametrize("case", SPOILERS)
def test_an_invalid_config_is_refused(case: str, tmp_path: Path, celo: Artifact) -> None:
    artifact.write(celo, tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    content = json.loads(config.read_text())
    spoil, complaint = SPOILERS[case]
    spoil(content)
    config.write_text(json.dumps(content))
    with pytest.raises(ZooError, match=complaint):
        artifact.read(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "\ud800", '{"a":' * 10**5], ids=range(6))
def test_a_config_that_is_not_a_json_object_is_refused(text: str, tmp_path: Path, celo: Artifact) -> None:
    artifact.write(celo, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ZooError, match=r"config\.json"):
        artifact.read(tmp_path / "out")


def test_a_directory_without_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="is not an artifact"):
        artifact.read(tmp_path)


@pytest.mark.parametrize("how", ["cut", "absent", "missing", "surplus", "float64", "nan"])
def test_invalid_weights_are_refused(how: str, tmp_path: Path, celo: Artifact) -> None:
    path = artifact.write(celo, tmp_path / "out") / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in celo.tensors.items()}
    name = "controller.step_size.bias"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "absent":
        path.unlink()
    else:
        if how == "missing":
            del tensors[name]
        elif how == "surplus":
            tensors["x"] = torch.zeros(1)
        else:
            tensors[name] = torch.full((1,), float("nan") if how == "nan" else 1.0, dtype=torch.float64)
            tensors[name] = tensors[name].float() if how == "nan" else tensors[name]
        save_file(tensors, path)
    with pytest.raises(ZooError, match=r"model\.safetensors"):
        artifact.read(tmp_path / "out")
