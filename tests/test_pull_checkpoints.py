"""Repositories of other publishers: JAX and PyLO checkpoints are converted; files that could run code are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import published
import pylo_files
import pytest
from hub_double import HubDouble
from safetensors.numpy import save
from trees import encode, nested, theta

import pylo_zoo
from pylo_zoo import weights
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, lockfile

URI = "hf://org/theirs"
PYLOS_CONFIG = json.dumps({"hidden_size": 6, "model_type": "velo"}).encode()


pytestmark = pytest.mark.usefixtures("in_an_empty_directory")


def state(family: str = "elo", **how: Any) -> bytes:
    return encode(nested(theta(family, **{"scale": 0.1, **how})))


def pylos(family: str) -> bytes:
    return save(pylo_files.FILES[family](theta(family, scale=0.1)))


@pytest.mark.parametrize(
    ("family", "files"),
    [
        ("celo", {"theta.state": state("celo"), "config.json": b"{}", "README.md": b"# Celo"}),
        ("velo", {"theta.state": state("velo")}),
        ("celo-adam", {"nested.state": state("celo-adam")}),
        ("elo", {"theta.state": state(), "old.pickle": b"cos\nsystem\n"}),
        ("elo", {"theta.state": state(), "other.state": state(seed=1)}),
    ],
    ids=["celo", "velo", "another name", "a pickle next to it", "two"],
)
def test_a_checkpoint_is_converted(
    family: str, files: dict[str, bytes], hub: HubDouble, access: Access, messages: list[str], zoo_home: Path
) -> None:
    repo = hub.create("org/theirs", files)
    checkout = weights.pull("org/theirs", access=access)
    converted, name = checkout.artifact, next(iter(files))
    assert (converted.family, converted.source.license, converted.parity) == (family, "unknown", None)
    assert converted.source.uri == f"{URI}/{name}@{repo.head}"
    assert converted.source.sha256 == hashlib.sha256(files[name]).hexdigest()
    pin = lockfile.read_all(zoo_home / "zoo.lock").repositories[URI]
    assert (pin.commit, pin.files) == (repo.head, {name: converted.source.sha256})
    first, last = messages
    assert first == f"{URI} is {repo.head[:12]}: recorded in {zoo_home / 'zoo.lock'}."
    assert last.endswith("its parity was not checked.")
    taken = {request.path.rpartition("/")[2] for request in hub.requests("GET", "/resolve/")}
    assert taken <= {name, "config.json"}
    # the second time no request is sent, whatever was published since
    repo.commit({name: state("elo", seed=5)})
    count = len(hub.log)
    assert pylo_zoo.load(URI).fingerprint == converted.fingerprint
    assert weights.pull(URI, access=dataclasses.replace(access, offline=True)).directory == checkout.directory
    assert messages[2].startswith(f"Offline: using {URI} at the recorded commit")
    assert len(hub.log) == count
    assert weights.pull(URI, access=access).directory == checkout.directory
    assert f"{URI} has moved to {repo.head[:12]}" in messages[4]


def test_a_checkpoint_in_a_cache_that_cannot_be_written(
    hub: HubDouble, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("org/theirs", {"theta.state": state()})
    checkout = weights.pull("org/theirs", access=access)

    def full(*anything: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "touch", "write_bytes", "rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, full)
    monkeypatch.setattr(os, "mkdir", full)
    assert weights.pull("org/theirs", access=access).directory == checkout.directory
    assert pylo_zoo.load(URI).fingerprint == checkout.artifact.fingerprint


def test_a_branch_that_moves(hub: HubDouble, access: Access) -> None:
    repo = hub.create("org/theirs", {"theta.state": state()})
    repo.branches["v1"] = first = repo.head
    repo.commit({"theta.state": state(seed=1)})
    old, new = (pylo_zoo.load(uri, access=access) for uri in (f"{URI}@v1", URI))
    assert old.source.uri.endswith(first)
    assert new.source.uri.endswith(repo.head)
    repo.branches["v1"] = repo.head
    assert pylo_zoo.load(f"{URI}@v1", access=access).fingerprint == old.fingerprint
    updating = dataclasses.replace(access, update_lock=True)
    assert pylo_zoo.load(f"{URI}@v1", access=updating).fingerprint == new.fingerprint
    assert pylo_zoo.load(f"{URI}@{first}", access=access).fingerprint == old.fingerprint


def test_a_repository_of_the_registry(hub: HubDouble, access: Access, messages: list[str]) -> None:
    """``amoudgl/celo`` is in the registry with its hash, and no other file is accepted as it."""
    hub.create("amoudgl/celo", {"theta.state": state("celo")})
    with pytest.raises(FetchError, match="not the expected file"):
        pylo_zoo.load("hf://amoudgl/celo", access=access)
    assert messages == ["hf://amoudgl/celo is the registry entry celo; converting it."]
    mulo = hub.create("btherien/mulo", {"model.safetensors": pylos("mulo"), "config.json": PYLOS_CONFIG})
    with pytest.raises(FetchError, match=r"is not the expected file: size|has [\d,]+ bytes"):
        pylo_zoo.load("hf://btherien/mulo", access=access)
    with pytest.raises(ZooError, match="fits several families: elo, mulo"):
        pylo_zoo.load(f"hf://btherien/mulo@{mulo.head}", access=access)


def test_velo_in_two_repositories(hub: HubDouble, access: Access) -> None:
    """PyLO's VeLO has a registry entry that either repository leads to; one file alone is not a checkpoint."""
    leaves = theta("velo", scale=0.1)
    rnn = hub.create("Pauljanson002/VeLO_RNN", {"model.safetensors": save(pylo_files.velo_rnn(leaves))})
    hub.create("Pauljanson002/VeLO_MLP", {"model.safetensors": save(pylo_files.velo_mlp(leaves))})
    for half in ("RNN", "MLP"):
        with pytest.raises(FetchError, match=r"has [\d,]+ bytes, not 9,119,908|size \d+, not 9119908"):
            pylo_zoo.load(f"hf://Pauljanson002/VeLO_{half}", access=access)
    with pytest.raises(ZooError, match=r"fits no family|VeLO_MLP"):
        pylo_zoo.load(f"hf://Pauljanson002/VeLO_RNN@{rnn.head}", access=access)


@pytest.mark.parametrize(
    ("family", "name", "fits"),
    [
        ("celo2", "theta.state", ["celo2", "celo2-base", "elo-celo2"]),
        ("celo2-base", "model.safetensors", ["celo2", "celo2-base", "elo-celo2"]),
        ("elo-celo2", "model.safetensors", ["celo2", "celo2-base", "elo-celo2"]),
        ("elo", "model.safetensors", ["elo", "mulo"]),
    ],
)
def test_several_families_with_one_tree(
    family: str, name: str, fits: list[str], hub: HubDouble, access: Access
) -> None:
    data = state(family) if name == "theta.state" else pylos(family)
    repo = hub.create("org/theirs", {name: data, "config.json": PYLOS_CONFIG})
    for _ in range(2):
        with pytest.raises(ZooError, match=f"fits several families: {', '.join(fits)}") as error:
            pylo_zoo.load(URI, access=access)
        assert f"`pylo-zoo convert FAMILY --source {URI}/{name}@{repo.head}`" in error.value.hint
    artifact = convert(family, source=f"{URI}/{name}@{repo.head}", access=access)
    assert (artifact.family, artifact.source.uri) == (family, f"{URI}/{name}@{repo.head}")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model.bin": b"x", "pytorch_model.bin": b"x"},
        {"model.pt": b"x", "weights.pth": b"x", "theta.pkl": b"x", "theta.pickle": b"x", "config.json": b"{}"},
        {"a.state": b"x", "b.safetensors": b"x"},
        {"params/x": b"x", "README.md": b"# x", "theta.npz": b"x"},
    ],
    ids=["empty", "bin", "pickles", "two candidates", "others"],
)
def test_a_repository_without_a_checkpoint(
    files: dict[str, bytes], hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.create("org/theirs", files)
    with pytest.raises(ZooError, match="has no artifact, and no file is clearly a checkpoint") as error:
        pylo_zoo.load(URI, access=access)
    assert error.value.hint == "Name the file: `pylo-zoo convert FAMILY --source hf://org/theirs/FILE`."
    assert hub.requests(".*", "/resolve/") == []
    assert not (zoo_home / "zoo.lock").exists()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("name", ["theta.state", "params", "model.safetensors", "x.checkpoint"])
@pytest.mark.parametrize("kind", ["harmful", "plain"])
def test_a_pickle_with_another_suffix(kind: str, name: str, hub: HubDouble, access: Access, tmp_path: Path) -> None:
    tree = {**nested(theta("elo")), **({"x": Harmful()} if kind == "harmful" else {})}
    hub.create("org/theirs", {name: pickle.dumps(tree)})
    for _ in range(2):
        with pytest.raises(ZooError, match="is a pickle file") as error:
            weights.pull("org/theirs", access=access)
        assert error.value.hint
    assert not (tmp_path / "evil").exists()


def test_a_hostile_checkpoint_name_in_the_lock_file(hub: HubDouble, access: Access, zoo_home: Path) -> None:
    repo = hub.create("org/theirs", {"theta.state": state()})
    for name in ("../../evil", "/etc/passwd", "theta.state?x", "a\nb"):
        pin = lockfile.RepositoryPin(repo.head, {name: "0" * 64}, lockfile.today())
        lockfile.record_repository(zoo_home / "zoo.lock", URI, pin)
        with pytest.raises(FetchError):
            pylo_zoo.load(URI, access=access)
    assert hub.log == []


def test_an_artifact_takes_precedence_over_a_checkpoint(hub: HubDouble, access: Access) -> None:
    repo = hub.create("org/theirs", {**published.files(), "theta.state": state(seed=3)})
    assert weights.pull("org/theirs", access=access).commit == repo.head
    repo.commit({}, delete=["model.safetensors"])
    assert pylo_zoo.load(f"{URI}@{repo.head}", access=access).source.format == "flax-msgpack"
