"""Orbax checkpoint directories, written by orbax."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import nested, theta, write_theta

from pylo_zoo import convert as library
from pylo_zoo import formats
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.formats import orbax as reader
from pylo_zoo.parity.leaves import flatten
from pylo_zoo.parity.theta import read_theta
from pylo_zoo.pipeline import build_artifact

ocp = pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of orbax and tensorstore


def standard(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def pytree(path: Path, tree: Any) -> Path:
    """One folder per array, as older versions of orbax write it."""
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(path, tree)
    return path


def managed(path: Path, tree: Any) -> Path:
    with ocp.CheckpointManager(path) as manager:
        manager.save(7, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return path / "7"


@pytest.mark.parametrize("write", [standard, pytree, managed])
def test_orbax_checkpoints_are_read(write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    source = write(tmp_path / "saved", nested(theta("velo")))
    read = formats.read(source)
    assert (read.format, read.naming, read.layout["exact"]) == ("orbax", "jax", False)
    assert read.leaves.keys() == theta("velo").keys()
    original = convert("velo", source=write_theta(tmp_path, "velo"))
    artifact = convert("velo", source=source)
    assert artifact.fingerprint == original.fingerprint
    assert library.inspect(source).families == ("velo",)


def test_a_wrapped_tree_of_other_dtypes(tmp_path: Path) -> None:
    jnp = pytest.importorskip("jax.numpy")
    tree = {"params": {"a": jnp.ones(3, jnp.bfloat16), "b": np.ones((2, 3), np.float64)}, "step": np.array(3, np.int32)}
    read = formats.read(standard(tmp_path / "saved", tree))
    assert read.dtypes == {("a",): "bfloat16", ("b",): "float64"}
    assert read.layout["wrapper"] == "params"


def test_a_source_directory_is_kept(tmp_path: Path) -> None:
    source = standard(tmp_path / "saved", nested(theta("celo2", scale=0.1)))
    result = build_artifact("celo2", source=source, out=tmp_path / "out", verify=False)
    assert result.report.leaves.passed
    kept = library.cached_source(result.artifact.source.sha256)
    assert kept is not None
    shutil.rmtree(source)
    assert formats.read(kept).sha256 == result.artifact.source.sha256
    restored = flatten(read_theta(result.artifact, formats.read(kept)))
    assert {path: leaf.tobytes() for path, leaf in restored.items()} == {
        path: leaf.tobytes() for path, leaf in theta("celo2", scale=0.1).items()
    }


def test_without_orbax_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", lambda *args, **kwargs: pytest.fail("the array was read"))
    with pytest.raises(ZooError, match=r"has 1,073,741,824 values"):
        formats.read(source)
    array.write_text(json.dumps({**described, "chunks": [2**30]}))
    with pytest.raises(ZooError, match=r"has 1,073,741,824 values"):
        formats.read(source)


@pytest.mark.parametrize("victim", ["_METADATA", "a/.zarray", "a/0"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe"])
def test_a_damaged_directory_is_one_error(victim: str, damage: bytes, tmp_path: Path) -> None:
    source = pytree(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    (source / victim).write_bytes(damage)
    with pytest.raises(ZooError):
        formats.read(source)


@pytest.mark.parametrize("value", ["text", np.zeros((0, 3), np.float32), np.ones(2, np.complex64)])
def test_arrays_of_other_values_are_refused(value: Any, tmp_path: Path) -> None:
    try:
        source = pytree(tmp_path / "saved", {"a": np.ones(3, np.float32), "b": value})
    except ValueError:
        pytest.skip("this orbax cannot write it")
    with pytest.raises(ZooError):
        formats.read(source)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    source = standard(tmp_path / "saved", {"a": np.ones(3, np.float32)})
    (source / "d" / "more").symlink_to("/etc/hostname")
    with pytest.raises(ZooError, match="symbolic link"):
        formats.read(source)


# --- arrays that claim more than they contain ----------------------------------------------------------------------


def described(source: Path, **changes: Any) -> None:
    (array,) = source.rglob(".zarray")
    array.write_text(json.dumps({**json.loads(array.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shape": [1 << 23], "chunks": [1]}, "have 8,388,608 chunks"),
        ({"shape": [1] * 9, "chunks": [1] * 9}, "9 axes"),
        ({"shape": [1 << 25], "fill_value": 1.0}, "has 33,554,432 values"),
        ({"shape": [1 << 30], "chunks": [1 << 30], "fill_value": 0.0}, "has 1,073,741,824 values"),
        ({"shape": [0]}, "shape"),
        ({"compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0}}, "compressed by blosc"),
    ],
)
def test_declared_sizes_are_bounded_before_reading(
    changes: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pytree(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    described(source, **changes)
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", lambda *args, **kwargs: pytest.fail("the array was read"))
    with pytest.raises(ZooError, match=complaint):
        formats.read(source)


def test_blosc_inside_a_database_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The array's description may be in orbax's database and may spell the word with an escape."""
    tensorstore = pytest.importorskip("tensorstore")
    source = standard(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": source.as_uri() + "/"}).result()
    text = store.read("a/.zarray").result().value
    blosc = b'"\\u0062losc","cname":"lz4","clevel":5,"shuffle":0'
    store.write("a/.zarray", text.replace(b'"zstd","level":1', blosc)).result()
    assert blosc in store.read("a/.zarray").result().value
    with pytest.raises(ZooError, match="compressed by blosc"):
        formats.read(source)


MEASURED = """
import resource, sys
import orbax.checkpoint, tensorstore
from pylo_zoo import formats
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    formats.read(sys.argv[1])
except formats.ZooError as error:
    print(error.message)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_chunk_that_unpacks_to_more_than_its_array_is_refused(tmp_path: Path) -> None:
    """A gigabyte of zeros for an array of four values; tensorstore stops at the array's size."""
    source = pytree(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    described(source, compressor={"id": "zlib", "level": 1})
    packer = zlib.compressobj(1)
    (source / "a" / "0").write_bytes(b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush())
    done = subprocess.run([sys.executable, "-c", MEASURED, source], capture_output=True, text=True, check=True)
    message, mebibytes = done.stdout.splitlines()
    assert "orbax cannot read it" in message
    assert int(mebibytes) < 100


@pytest.mark.parametrize("name", ["_METADATA", "a/.zarray"])
def test_a_large_description_is_refused(name: str, tmp_path: Path) -> None:
    source = pytree(tmp_path / "saved", {"a": np.ones(4, np.float32)})
    (source / name).write_bytes(b"[" + b"[]," * 1_500_000 + b"[]]")
    with pytest.raises(ZooError, match="the limit is 4,194,304"):
        formats.read(source)


# --- what current flax and orbax write ---------------------------------------------------------------------------


def by_flax(path: Path, tree: Any) -> Path:
    """Google's ``ParameterCheckpoint`` as current flax saves it by default."""
    struct = pytest.importorskip("flax.struct")
    checkpoints = pytest.importorskip("flax.training.checkpoints")

    @struct.dataclass
    class ParameterCheckpoint:
        params: Any
        gen_id: str
        step: int

    checkpoints.save_checkpoint(str(path), ParameterCheckpoint(tree, "5620", 7), step=0)
    return path / "checkpoint_0"


def version_1(path: Path, tree: Any) -> Path:
    """The tree is in ``path/state``."""
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    v1.save_pytree(path, tree)
    return path


def another_item(path: Path, tree: Any) -> Path:
    with ocp.CheckpointManager(path) as manager:
        manager.save(7, args=ocp.args.Composite(theta=ocp.args.StandardSave(tree), about=ocp.args.JsonSave({"a": 1})))
        manager.wait_until_finished()
    return path / "7"


@pytest.mark.parametrize("write", [by_flax, version_1, another_item])
def test_checkpoints_of_newer_versions(write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    source = write(tmp_path / "saved", nested(theta("velo")))
    original = convert("velo", source=write_theta(tmp_path, "velo"))
    for place in {source, tmp_path / "saved"}:  # the root of a single step is equivalent to the step
        read = formats.read(place)
        assert read.leaves.keys() == theta("velo").keys()
        assert read.layout.get("wrapper") == ("params" if write is by_flax else None)
        assert read.layout.get("beside", []) == (["gen_id", "step"] if write is by_flax else [])
        assert convert("velo", source=place).fingerprint == original.fingerprint


def test_the_root_of_several_steps_lists_them(tmp_path: Path) -> None:
    root = tmp_path / "saved"
    with ocp.CheckpointManager(root) as manager:
        for step in (3, 7, 10):
            manager.save(step, args=ocp.args.StandardSave({"a": np.ones(3, np.float32)}))
        manager.wait_until_finished()
    with pytest.raises(ZooError, match=r"saved: it contains 3 checkpoints: 3, 7, 10\.") as error:
        formats.read(root)
    assert str(root / "10") in error.value.hint
    shutil.move(root / "3", root / "3.orbax-checkpoint-tmp-1")  # what a killed process leaves
    shutil.rmtree(root / "7")
    assert formats.read(root).leaves.keys() == {("a",)}


def test_several_items_of_a_step_are_listed(tmp_path: Path) -> None:
    tree = {"a": np.ones(3, np.float32)}
    with ocp.CheckpointManager(tmp_path / "saved") as manager:
        args = ocp.args.Composite(theta=ocp.args.StandardSave(tree), ema=ocp.args.StandardSave(tree))
        manager.save(7, args=args)
        manager.wait_until_finished()
    with pytest.raises(ZooError, match=r"7: it contains 2 checkpoints: ema, theta\."):
        formats.read(tmp_path / "saved" / "7")


def test_a_text_inside_the_tree_is_refused(tmp_path: Path) -> None:
    source = pytree(tmp_path / "saved", {"params": {"a": np.ones(3, np.float32), "name": "x"}})
    with pytest.raises(ZooError, match="name contains str"):
        formats.read(source)


def metadata_cut(path: Path) -> None:
    (path / "_METADATA").write_text('{"x')


def chunks_cut(path: Path) -> None:
    for chunk in path.rglob("d/*"):
        chunk.write_bytes(chunk.read_bytes()[:20])


def record_cut(path: Path) -> None:
    (path / "manifest.ocdbt").unlink()
    (path / "_CHECKPOINT_METADATA").write_text("")


@pytest.mark.parametrize("damage", [metadata_cut, chunks_cut, record_cut])
def test_a_damaged_directory_is_reported_in_two_lines(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """orbax logs what it could not read, and its threads print that their event loop is closed."""
    path = standard(tmp_path / "saved", nested(theta("elo")))
    damage(path)
    code = "from pylo_zoo.cli import main; main()"
    command = [sys.executable, "-c", code, "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: saved: orbax cannot read")
    assert hint == "Hint: Save or copy the whole checkpoint again."
