"""One tree in every container, with every wrapper and every way to join names; other content is named in the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pylo_files
import pytest
import torch
from safetensors.numpy import save_file
from trees import Leaves, encode, nested, theta, write_theta

from pylo_zoo import convert as library
from pylo_zoo import formats
from pylo_zoo.convert import convert
from pylo_zoo.converters import FAMILIES, NAMINGS
from pylo_zoo.errors import ZooError
from pylo_zoo.pipeline import build_artifact

WRAPPERS = ("params", "theta")
Write = Callable[[Path, Leaves, str | None, Mapping[str, Any]], Path]


def joined(leaves: Leaves, wrapper: str | None, sep: str = "/") -> dict[str, np.ndarray]:
    prefix = f"{wrapper}{sep}" if wrapper else ""
    return {prefix + sep.join(path): np.ascontiguousarray(leaf) for path, leaf in leaves.items()}


def wrapped(tree: Any, wrapper: str | None, extra: Mapping[str, Any]) -> Any:
    return {wrapper: tree, **extra} if wrapper else tree


def as_msgpack(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    path.write_bytes(encode(wrapped(nested(leaves), wrapper, extra)))
    return path


def as_pickle(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    import pickle

    path.write_bytes(pickle.dumps(wrapped(nested(leaves), wrapper, extra)))
    return path


def as_npz(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    np.savez(
        path.with_suffix(".npz"),
        allow_pickle=True,
        **joined(leaves, wrapper),
        **{key: np.asarray(extra[key]) for key in extra},
    )
    return path.with_suffix(".npz")


def as_dotted_npz(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    np.savez(path.with_suffix(".npz"), allow_pickle=True, **joined(leaves, wrapper, "."))
    return path.with_suffix(".npz")


def as_safetensors(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    save_file(joined(leaves, wrapper) | {key: np.asarray(extra[key]) for key in extra}, path)
    return path


def as_dotted_safetensors(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    save_file(joined(leaves, wrapper, "."), path)
    return path


def tensors(tree: Any) -> Any:
    return {key: tensors(child) for key, child in tree.items()} if isinstance(tree, dict) else torch.tensor(tree)


def as_torch(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    torch.save(wrapped(tensors(nested(leaves)), wrapper, extra), path)
    return path


def as_flat_torch(path: Path, leaves: Leaves, wrapper: str | None, extra: Mapping[str, Any]) -> Path:
    torch.save(wrapped(tensors(joined(leaves, None)), wrapper, extra), path)
    return path


WRITERS: dict[str, tuple[Write, str]] = {
    "msgpack": (as_msgpack, "flax-msgpack"),
    "pickle": (as_pickle, "pickle"),
    "npz": (as_npz, "npz"),
    "dotted npz": (as_dotted_npz, "npz"),
    "safetensors": (as_safetensors, "safetensors"),
    "dotted safetensors": (as_dotted_safetensors, "safetensors"),
    "torch": (as_torch, "torch"),
    "flat torch": (as_flat_torch, "torch"),
}


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
@pytest.mark.parametrize("container", WRITERS)
def test_a_tree_is_detected(container: str, wrapper: str | None, tmp_path: Path) -> None:
    write, format = WRITERS[container]
    for family in FAMILIES:
        leaves = theta(family)
        read = formats.read(write(tmp_path / f"{family}.file", leaves, wrapper, {}))
        assert (read.format, read.naming, read.layout.get("wrapper")) == (format, "jax", wrapper), family
        assert {path: leaf.tobytes() for path, leaf in read.leaves.items()} == {
            path: leaf.tobytes() for path, leaf in leaves.items()
        }


@pytest.mark.parametrize("container", ["msgpack", "pickle", "npz", "safetensors", "torch", "flat torch"])
def test_plain_values_next_to_the_tree(container: str, tmp_path: Path) -> None:
    extra = {"step": np.int64(3)} if container in ("npz", "safetensors", "msgpack") else {"step": 3, "name": "x"}
    read = formats.read(WRITERS[container][0](tmp_path / "file", theta("elo"), "params", extra))
    assert read.leaves.keys() == theta("elo").keys()
    assert read.layout["wrapper"] == "params"


@pytest.mark.parametrize("container", ["msgpack", "pickle", "npz", "safetensors", "torch", "flat torch"])
def test_arrays_next_to_the_tree_are_refused(container: str, tmp_path: Path) -> None:
    moments = np.ones(3, np.float32)
    extra = {"ema": torch.ones(3) if "torch" in container else moments}
    path = WRITERS[container][0](tmp_path / "file", theta("elo"), "params", extra)
    with pytest.raises(ZooError, match="both params and ema"):
        formats.read(path)


@pytest.mark.parametrize(
    "extra", [{}, {"step": 3}, {"gen_id": "5620"}, {"step": np.array(3), "lr": 0.5, "done": True, "none": None}]
)
def test_a_wrapped_theta_state_is_exported_byte_for_byte(extra: dict[str, Any], tmp_path: Path) -> None:
    path = as_msgpack(tmp_path / "theta.state", theta("celo2"), "params", extra)
    result = build_artifact("celo2", source=path, out=tmp_path / "out", verify=False)
    data, identical = library.export_file(tmp_path / "out", tmp_path / "back.state")
    assert identical
    assert data == path.read_bytes()
    assert result.artifact.fingerprint == convert("celo2", source=write_theta(tmp_path, "celo2")).fingerprint


@pytest.mark.parametrize("family", ["celo", "celo2", "elo"])
@pytest.mark.parametrize("container", ["safetensors", "torch", "dotted npz"])
def test_conversion_proof_and_cache(container: str, family: str, tmp_path: Path) -> None:
    path = WRITERS[container][0](tmp_path / "x.file", theta(family, scale=0.1), "params", {})
    result = build_artifact(family, source=path, out=tmp_path / "out", verify=False)
    assert result.report.leaves.passed
    assert result.artifact.fingerprint == convert(family, source=write_theta(tmp_path, family, scale=0.1)).fingerprint
    kept = library.cached_source(result.artifact.source.sha256)
    assert kept is not None
    assert formats.read(kept).sha256 == result.artifact.source.sha256
    assert family in library.inspect(path).families


@pytest.mark.parametrize("family", [name for name in NAMINGS["pylo"] if name != "velo"])
@pytest.mark.parametrize("wrapper", [None, "params", "state_dict"])
def test_pylo_names_are_kept(family: str, wrapper: str | None, tmp_path: Path) -> None:
    result = pylo_files.FILES[family](theta(family))
    prefix = f"{wrapper}." if wrapper else ""
    save_file({prefix + name: tensor for name, tensor in result.items()}, tmp_path / "x.safetensors")
    torch.save(wrapped(tensors(dict(result)), wrapper, {}), tmp_path / "x.pt")
    for name, format in (("x.safetensors", "pylo-safetensors"), ("x.pt", "pylo-torch")):
        read = formats.read(tmp_path / name)
        assert (read.format, read.naming) == (format, "pylo")
        assert read.leaves.keys() == {(each,) for each in result}


# --- what is refused, with a one-sentence reason -----------------------------------------------------------------


def bf16_npz(path: Path) -> None:
    import ml_dtypes

    np.savez(path.with_suffix(".npz"), allow_pickle=True, **{"nn/~/w0": np.ones((2, 3), ml_dtypes.bfloat16)})
    path.with_suffix(".npz").rename(path)


def dotted_npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), allow_pickle=True, **pylo_files.network(theta("elo")))
    path.with_suffix(".npz").rename(path)


def mixed(path: Path) -> None:
    save_file({"nn/~/w0": np.ones(3, np.float32), "nn.~.b0": np.ones(3, np.float32)}, path)


def integer_keys(path: Path) -> None:
    path.write_bytes(msgpack.packb({"nn": {0: {1: b""}}}) or b"")


def integer_keys_pickled(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({"nn": {0: np.ones(3, np.float32)}}))


def integer_keys_in_torch(path: Path) -> None:
    torch.save({"nn": {0: torch.ones(3)}}, path)


def lists_pickled(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({"nn": [np.ones(3, np.float32)]}))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "bfloat16 npz": (bf16_npz, "has the dtype V2, numpy's ambiguous dtype for bfloat16"),
    "torch's names in an npz": (dotted_npz, "the name network.input.weight has dots"),
    "dots and slashes": (mixed, "some of its names are joined with dots and some with slashes"),
    "integer keys": (integer_keys, "a key is int ("),
    "integer keys, pickled": (integer_keys_pickled, "key"),
    "integer keys in torch": (integer_keys_in_torch, "key"),
    "lists, pickled": (lists_pickled, "list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_content(case: str, tmp_path: Path) -> None:
    write, complaint = WRONG[case]
    write(tmp_path / "file")
    with pytest.raises(ZooError) as error:
        formats.read(tmp_path / "file")
    assert complaint in error.value.message
    assert len(error.value.message) + len(error.value.hint) < 220
