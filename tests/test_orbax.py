"""Orbax checkpoint directories, written by orbax itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import nested, theta, write_theta

from pylo_zoo import convert as library
from pylo_zoo import formats
from pylo_zoo.convert import convert, make
from pylo_zoo.errors import ZooError
from pylo_zoo.formats import orbax as reader
from pylo_zoo.parity.leaves import flatten
from pylo_zoo.parity.theta import read_theta

ocp = pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.filterwarnings("ignore")  # orbax's and tensorstore's own


def standard(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def pytree(path: Path, tree: Any) -> Path:
    """One folder an array, as older versions of orbax write it."""
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(path, tree)
    return path


def managed(path: Path, tree: Any) -> Path:
    with ocp.CheckpointManager(path) as manager:
        manager.save(7, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return path / "7"


@pytest.mark.parametrize("write", [standard, pytree, managed])
def test_what_orbax_writes(write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    source = write(tmp_path / "saved", nested(theta("velo")))
    read = formats.read(source)
    assert (read.format, read.naming, read.layout["exact"]) == ("orbax", "jax", False)
    assert read.leaves.keys() == theta("velo").keys()
    original = convert("velo", source=write_theta(tmp_path, "velo"))
    made = convert("velo", source=source)
    assert made.fingerprint == original.fingerprint
    assert library.inspect(source).families == ("velo",)


def test_wrapped_and_of_another_dtype(tmp_path: Path) -> None:
    jnp = pytest.importorskip("jax.numpy")
    tree = {"params": {"a": jnp.ones(3, jnp.bfloat16), "b": np.ones((2, 3), np.float64)}, "step": np.array(3, np.int32)}
    read = formats.read(standard(tmp_path / "saved", tree))
    assert read.dtypes == {("a",): "bfloat16", ("b",): "float64"}
    assert read.layout["wrapper"] == "params"


def test_it_is_kept(tmp_path: Path) -> None:
    source = standard(tmp_path / "saved", nested(theta("celo2", scale=0.1)))
    made = make("celo2", source=source, out=tmp_path / "out", verify=False)
    assert made.report.leaves.passed
    kept = library.cached_source(made.artifact.source.sha256)
    assert kept is not None
    shutil.rmtree(source)
    assert formats.read(kept).sha256 == made.artifact.source.sha256
    theirs = flatten(read_theta(made.artifact, formats.read(kept)))
    assert {path: leaf.tobytes() for path, leaf in theirs.items()} == {
        path: leaf.tobytes() for path, leaf in theta("celo2", scale=0.1).items()
    }


def test_without_orbax_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = standard(tmp_path / "saved", {"a": np.ones(3, np.float32)})
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    with pytest.raises(ZooError, match=r"pylo-zoo\[orbax\]"):
        formats.read(source)


def test_a_shape_that_claims_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pytree(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    (array,) = source.rglob(".zarray")
    described = json.loads(array.read_text())
    array.write_text(json.dumps({**described, "shape": [2**30]}))
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(ZooError, match=r"claim 1,073,741,824 values"):
        formats.read(source)
    array.write_text(json.dumps({**described, "chunks": [2**30]}))
    with pytest.raises(ZooError, match=r"claim 1,073,741,824 values"):
        formats.read(source)


@pytest.mark.parametrize("victim", ["_METADATA", "a/.zarray", "a/0"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe"])
def test_a_damaged_directory_is_one_error(victim: str, damage: bytes, tmp_path: Path) -> None:
    source = pytree(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    (source / victim).write_bytes(damage)
    with pytest.raises(ZooError):
        formats.read(source)


@pytest.mark.parametrize("value", ["text", np.zeros((0, 3), np.float32), np.ones(2, np.complex64)])
def test_what_is_no_array_of_numbers_is_refused(value: Any, tmp_path: Path) -> None:
    try:
        source = pytree(tmp_path / "saved", {"a": np.ones(3, np.float32), "b": value})
    except ValueError:
        pytest.skip("orbax does not write it")
    with pytest.raises(ZooError):
        formats.read(source)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    source = standard(tmp_path / "saved", {"a": np.ones(3, np.float32)})
    (source / "d" / "more").symlink_to("/etc/hostname")
    with pytest.raises(ZooError, match="symbolic link"):
        formats.read(source)
