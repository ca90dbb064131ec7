"""PyLO's torch files: the same artifact as from the JAX original, with sizes checked before torch allocates."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pylo_files
import pytest
import torch
from commands import Capture, refused, run
from hostile import mutated, read, read_or_refuse, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from trees import encode, nested, theta, write_theta

from pylo_zoo import artifact, formats, registry
from pylo_zoo import convert as library
from pylo_zoo.convert import convert
from pylo_zoo.converters import FAMILIES, NAMINGS
from pylo_zoo.converters.base import leaf_shapes
from pylo_zoo.errors import ZooError
from pylo_zoo.parity.leaves import check_leaves, flatten
from pylo_zoo.parity.theta import read_theta
from pylo_zoo.pipeline import build_artifact

OFFSETS = ("momentum_decays", "rms_decays", "adafactor_decays")


def decays() -> dict[str, list[float]]:
    return {name: theta("mulo")[name,].tolist() for name in OFFSETS}


def settings_of(family: str) -> dict[str, Any]:
    """Fields that PyLO's file of ``family`` lacks."""
    return decays() if family == "mulo" else {}


@pytest.mark.parametrize("family", NAMINGS["pylo"])
def test_the_artifact_equals_that_of_the_jax_original(family: str, tmp_path: Path) -> None:
    original = convert(family, source=write_theta(tmp_path, family))
    path = pylo_files.write(tmp_path, family, theta(family))
    converted = convert(family, source=path, settings=settings_of(family))
    assert (converted.architecture, converted.behavior) == (original.architecture, original.behavior)
    assert converted.tensors.keys() == original.tensors.keys()
    for name, tensor in original.tensors.items():
        assert converted.tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert converted.fingerprint == original.fingerprint
    assert converted.source.format == "pylo-safetensors"
    assert family in library.inspect(path).families
    result = library.inspect(path)
    assert result.problems == ()
    assert any("lacks adafactor_decays" in note for note in result.notes) == ("mulo" in result.families)


def test_the_published_sizes_match_the_tables() -> None:
    """No published file is in the repository, but the registry has their sizes: names and shapes must match these."""
    velo, pylo = theta_of_shapes("velo"), registry.get("velo-pylo").sources
    assert len(save(pylo_files.velo_rnn(velo))) == pylo[0].bytes
    assert len(save(pylo_files.network(theta_of_shapes("mulo")))) == registry.get("mulo").weights.bytes
    mlp = pylo_files.velo_mlp(velo)
    used = {name: tensor for name, tensor in mlp.items() if name.partition(".")[0].endswith("_")}
    assert pylo[1].bytes is not None
    assert len(save(used)) < pylo[1].bytes <= len(save(mlp)), "some scratch memory, and at most one copy"


def theta_of_shapes(family: str) -> dict[tuple[str, ...], np.ndarray]:
    released = FAMILIES[family].released
    return {path: np.zeros(shape, np.float32) for path, shape in leaf_shapes(FAMILIES[family], released).items()}


# --- torch.save --------------------------------------------------------------------------------------------------


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tensors(family: str = "elo") -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in pylo_files.FILES[family](theta(family)).items()}


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "a dict": lambda tensors_by_name: tensors_by_name,
    "a state_dict under its key": lambda tensors_by_name: {"state_dict": tensors_by_name, "epoch": 3},
    "parameters": lambda tensors_by_name: {
        name: torch.nn.Parameter(tensor) for name, tensor in tensors_by_name.items()
    },
    "views": lambda tensors_by_name: {
        name: torch.stack([tensor, tensor], -1)[..., 1] for name, tensor in tensors_by_name.items()
    },
    "transposed": lambda tensors_by_name: {
        name: tensor.t().contiguous().t() for name, tensor in tensors_by_name.items()
    },
    "one storage": lambda tensors_by_name: dict(
        zip(
            tensors_by_name,
            views(torch.cat([tensor.flatten() for tensor in tensors_by_name.values()]), tensors_by_name),
            strict=True,
        )
    ),
}


def views(flat: torch.Tensor, like: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like.values(), strict=True)]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_files_of_torch_save(wrapping: str, tmp_path: Path) -> None:
    value = WRAPPINGS[wrapping](tensors())
    data = saved(value)
    source = read(tmp_path, data)
    assert (source.format, source.naming) == ("pylo-torch", "pylo")
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded)
    assert {path[0] for path in source.leaves} == set(loaded)
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(source.leaves[name,], tensor.detach().numpy())
    assert (
        convert("elo", source=tmp_path / "checkpoint").fingerprint
        == convert("elo", source=write_theta(tmp_path, "elo")).fingerprint
    )


def test_a_modules_state_dict(tmp_path: Path) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    source = read(tmp_path, saved(state))
    assert {path[0]: leaf.tolist() for path, leaf in source.leaves.items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([0.0, 1.0, 300.0]).to(dtype)
    for data in (saved({"a": tensor}), _safetensors({"a": tensor})):
        source = read(tmp_path, data)
        assert source.dtypes["a",] == str(dtype).removeprefix("torch.")
        assert source.leaves["a",].tolist() == tensor.tolist()


def _safetensors(values: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save as save_torch

    return save_torch(values)


# --- what is refused ---------------------------------------------------------------------------------------------


def repacked(data: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """torch's archive with its members changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def in_program(old: bytes, new: bytes) -> bytes:
    """A saved tensor of three floats with ``old`` replaced in its pickle."""

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("data.pkl"):
            assert old in content
            return content.replace(old, new)
        return content

    return repacked(saved({"a": torch.ones(3)}), change)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("ran", "w")


def lying_header(shape: list[int], offsets: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def with_directory_size(size: int, *, moved: bool = False) -> bytes:
    """torch's archive with another directory size in its 64-bit end record, or with that record elsewhere."""
    data = saved({"a": torch.ones(3)})
    at = data.rindex(b"PK\x06\x06")
    if moved:
        return data[:at] + b"x" + data[at:]
    return data[: at + 40] + struct.pack("<Q", size) + data[at + 48 :]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a call": (saved({"a": Attack()}), "uses '"),
    "a storage with a claimed size of 4 GiB": (in_program(b"K\x03tq", b"J\0\0\0\x40tq"), "instead of 4294967296"),
    "a shape of 4 GiB": (in_program(b"K\x03\x85", b"J\0\0\0\x40\x85"), "larger than its storage"),
    "a negative shape": (in_program(b"K\x03\x85", b"J\xff\xff\xff\xff\x85"), "shape"),
    "an empty axis": (in_program(b"K\x03\x85", b"K\0\x85"), "shape"),
    "a stride beyond the storage": (in_program(b"K\x01\x85", b"M\xff\xff\x85"), "larger than its storage"),
    "a negative stride": (in_program(b"K\x01\x85", b"J\xff\xff\xff\xff\x85"), "shape"),
    "another storage": (in_program(b"torch\nFloatStorage", b"torch\nDoubleStorage"), "instead of 24"),
    "an unknown storage": (in_program(b"torch\nFloatStorage", b"torch\nQInt8Storage"), "uses 'torch.QInt8Storage'"),
    "a tensor of no axes repeated": (saved({"a": torch.ones(1).expand(2**20)}), "larger than its storage"),
    "big-endian": (
        repacked(saved({"a": torch.ones(3)}), lambda name, data: b"big" if name.endswith("byteorder") else data),
        "little-endian machine",
    ),
    "a bomb": (
        repacked(
            saved({"a": torch.ones(3)}),
            lambda name, data: bytes(100_000_000) if name.endswith("data/0") else data,
            zipfile.ZIP_DEFLATED,
        ),
        "unpacks to",
    ),
    "a missing storage": (
        repacked(saved({"a": torch.ones(3)}), lambda name, data: b"" if name.endswith("data/0") else data),
        "0 bytes instead of 12",
    ),
    "only a tensor": (saved(torch.ones(3)), "not a dict of named tensors"),
    "a number": (saved({"a": torch.ones(3), "step": 3}), "step is not a tensor"),
    "an old torch file": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03.", "before version 1.6"),
    "a directory that claims too much memory": (with_directory_size(2**40), "members is too large"),
    "a directory elsewhere": (with_directory_size(1, moved=True), "does not end like"),
    "truncated": (saved({"a": torch.ones(3)})[:-3], "does not end like"),
    "safetensors, truncated": (save({"a": np.ones(3, np.float32)})[:-1], "not a complete safetensors"),
    "safetensors, trailing bytes": (save({"a": np.ones(3, np.float32)}) + b"x", "not a complete safetensors"),
    "safetensors, a shape of 4 GiB": (lying_header([2**30], [0, 2**32]), "not a complete safetensors"),
    "safetensors, a wrong shape": (lying_header([2**30], [0, 4]), "not a complete safetensors"),
    "safetensors, an empty axis": (save({"a": np.ones((0, 3), np.float32)}), "shape"),
    "safetensors, no tensors": (save({}), "has no arrays"),
    "safetensors, a header that claims too much memory": (
        struct.pack("<Q", 2**40) + b"{}",
        "not a checkpoint of a known format",
    ),
    "safetensors, an escape in a name": (save({"a\x1b": np.ones(3, np.float32)}), "control characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_else_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, complaint = HOSTILE[case]
    assert complaint in refusal(tmp_path, data).message
    assert not Path("ran").exists()


SAMPLES = [saved(tensors()), save(pylo_files.network(theta("elo")))]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([0, 0, 0, 1, 300]),
)
def test_a_mutated_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp(), mutated(data, changes, cut))


# --- safetensors and formats with similar beginnings -------------------------------------------------------------


@pytest.mark.parametrize("low", [0x80, 0x88, 0xDE, 0xDF])
def test_a_safetensors_file_is_recognized_with_any_first_byte(low: int, tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    size = 0x0200 + low
    data = struct.pack("<Q", size) + header.ljust(size) + bytes(4)
    assert read(tmp_path, data).format == "pylo-safetensors"


# --- VeLO's two files --------------------------------------------------------------------------------------------


def test_one_of_velos_two_files_is_refused(capsys: Capture, tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "velo", theta("velo"))
    for name in ("VeLO_RNN", "VeLO_MLP"):
        error = refused(capsys, "convert", "velo", "--source", path / name / "model.safetensors")
        assert "Pass a directory with both" in error


def test_files_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "velo", theta("velo"))
    (path / "copy.safetensors").write_bytes((path / "VeLO_MLP" / "model.safetensors").read_bytes())
    with pytest.raises(ZooError, match="two leaves are called"):
        formats.read(path)


def test_a_link_in_a_directory_is_refused(tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "velo", theta("velo"))
    (path / "more.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(ZooError, match="symbolic link"):
        formats.read(path)


def test_a_directory_is_kept_and_found_again(tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "velo", theta("velo", scale=0.1))
    converted = build_artifact("velo", source=path, out=tmp_path / "out", verify=False).artifact
    kept = library.cached_source(converted.source.sha256)
    assert kept is not None
    assert sorted(file.relative_to(kept).as_posix() for file in kept.rglob("*.*")) == [
        "VeLO_MLP/model.safetensors",
        "VeLO_RNN/model.safetensors",
    ]
    assert formats.read(kept).sha256 == converted.source.sha256
    assert converted.source.layout["ignored"]
    (kept / "VeLO_MLP" / "model.safetensors").write_bytes(b"spoilt")
    assert library.cached_source(converted.source.sha256) is None


# --- μLO's learned decays ----------------------------------------------------------------------------------------


def test_missing_decays_come_from_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pylo_files.write(tmp_path, "mulo", theta("mulo"))
    entry = registry.get("mulo")
    source = dataclasses.replace(entry.weights, bytes=None, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    entry = dataclasses.replace(entry, sources=(source,))
    entries = {**registry.load_registry(), "mulo": entry}
    monkeypatch.setattr(registry, "load_registry", lambda path=None: entries)
    converted = convert("mulo", source=path)
    assert entry.learned_decays is not None
    expected = np.array(entry.learned_decays.momentum, np.float32)
    np.testing.assert_array_equal(converted.tensors["momentum_decays"].numpy(), expected)
    assert converted.source.layout["supplied"]["rms_decays"] == [float(np.float32(0.01079706))]
    assert library.inspect(path).families[0] == "mulo"
    with pytest.raises(ZooError, match="but the registry has"):
        convert("mulo", source=path, settings={"rms_decays": [0.5]})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "lacks the learned decays adafactor_decays, momentum_decays, rms_decays"),
        ({"rms_decays": [0.1]}, "lacks the learned decays adafactor_decays, momentum_decays,"),
        ({**decays(), "rms_decays": [0.1, 0.2]}, r"rms_decays \[2\] instead of \[1\]"),
        ({**decays(), "rms_decays": 0.1}, "must be a list of numbers"),
        ({**decays(), "rms_decays": ["x"]}, "must be a list of numbers"),
        ({**decays(), "rms_decays": [float("nan")]}, r"rms_decays is \[nan\]"),
    ],
)
def test_decays_of_an_unknown_file_are_required(settings: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=complaint):
        convert("mulo", source=pylo_files.write(tmp_path, "mulo", theta("mulo")), settings=settings)


def test_decays_in_the_file_cannot_be_given_again(tmp_path: Path) -> None:
    result = pylo_files.network(theta("mulo")) | {name: theta("mulo")[name,] for name in OFFSETS}
    (tmp_path / "x").write_bytes(save(result))
    assert convert("mulo", source=tmp_path / "x").tensors["rms_decays"].tolist() == decays()["rms_decays"]
    with pytest.raises(ZooError, match="x already contains momentum_decays"):
        convert("mulo", source=tmp_path / "x", settings=decays())


@pytest.mark.parametrize("family", NAMINGS["pylo"])
def test_parity_gets_the_jax_tree_of_the_file(family: str, tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, family, theta(family))
    converted = convert(family, source=path, settings=settings_of(family))
    result = flatten(read_theta(converted, formats.read(path)))
    assert {key: leaf.tobytes() for key, leaf in result.items()} == {
        key: leaf.tobytes() for key, leaf in theta(family).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["velo", "mulo"])
def test_parity_passes(family: str, tmp_path: Path) -> None:
    pytest.importorskip("jax")
    path = pylo_files.write(tmp_path, family, theta(family, scale=0.1))
    result = build_artifact(family, source=path, out=tmp_path / "out", settings=settings_of(family))
    assert result.report.passed
    assert result.report.leaves.compared == (26 - 6 if family == "velo" else 6 + 3)


def test_a_wrong_weight_fails_level_one(tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "velo", theta("velo"))
    converted = convert("velo", source=path)
    changed = {**converted.tensors, "controller.lstm.weight": converted.tensors["controller.lstm.weight"] * 1.001}
    result = check_leaves(dataclasses.replace(converted, tensors=changed), formats.read(path))
    assert result.differing == ["lstm.linear.weight"]
    assert check_leaves(converted, formats.read(path)).passed


def test_export_writes_the_jax_tree_and_not_a_pylo_file(capsys: Capture, tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "velo", theta("velo"))
    out = tmp_path / "out"
    assert run("convert", "velo", "--source", path, "--out", out, "--no-verify", "-q") == 0
    capsys.readouterr()
    assert "exact bytes cannot be rebuilt" in refused(capsys, "export", out, "--out", tmp_path / "x")
    assert run("export", out, "--theta", "--out", tmp_path / "x", "--json") == 0
    assert json.loads(capsys.readouterr().out)["identical"] is False
    assert (tmp_path / "x").read_bytes() == encode(nested(theta("velo")))
    assert artifact.read(out).source.format == "pylo-safetensors"


@pytest.mark.parametrize("family", ["celo", "celo-adam", "adafac-mlp"])
def test_families_that_pylo_does_not_publish(family: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=f"PyLO has none for {family}"):
        convert(family, source=pylo_files.write(tmp_path, "elo", theta("elo")))
