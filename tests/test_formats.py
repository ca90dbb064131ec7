"""Reading checkpoints in every supported form, byte for byte, and rejecting everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from golden_data import CELO, CELO_ADAM, GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import array_payload, encode, nested, theta, write_checkpoint, write_params

from pylo_zoo import formats, limits
from pylo_zoo.errors import ZooError
from pylo_zoo.formats import flax_msgpack, gin

LEAF = np.arange(6, dtype=np.float32).reshape(2, 3)
ONE = {"a": {"b": LEAF}}


def read(tmp_path: Path, data: bytes, name: str = "theta.state") -> formats.Source:
    path = tmp_path / name
    path.write_bytes(data)
    return formats.read(path)


def with_payload(payload: bytes, code: int = 1) -> bytes:
    return msgpack.packb({"a": msgpack.ExtType(code, payload)}) or b""


# --- supported forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*sorted(GOLDEN.glob("*/theta.state")), CELO, CELO_ADAM], ids=lambda p: p.parent.name)
def test_a_real_file_can_be_rebuilt_from_leaves_and_layout(path: Path) -> None:
    source = formats.read(path)
    assert source.layout["exact"]
    assert formats.write(source.leaves, source.layout) == path.read_bytes()


def test_leaves_equal_those_that_flax_reads(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    leaves = theta("celo")
    data = serialization.to_bytes(nested(leaves))
    assert data == encode(nested(leaves))
    source = read(tmp_path, data)
    assert {path: leaf.tobytes() for path, leaf in source.leaves.items()} == {
        path: leaf.tobytes() for path, leaf in leaves.items()
    }


def test_the_order_of_keys_is_kept(tmp_path: Path) -> None:
    data = encode({"z": {"b": LEAF, "a": LEAF}, "m": LEAF})
    source = read(tmp_path, data)
    assert list(source.leaves) == [("z", "b"), ("z", "a"), ("m",)]
    assert formats.write(dict(reversed(source.leaves.items())), source.layout) == data


@pytest.mark.parametrize("step", [3, 70_000, np.int64(3), np.int32(-1), np.array(3, np.int32)], ids=repr)
@pytest.mark.parametrize("keys", [("params", "gen_id", "step"), ("gen_id", "params", "step")], ids="-".join)
def test_googles_container(tmp_path: Path, keys: tuple[str, ...], step: Any) -> None:
    values = {"params": ONE, "gen_id": "0b6e" * 9, "step": step}
    data = encode({key: values[key] for key in keys})
    source = read(tmp_path, data, "params")
    assert (source.format, list(source.leaves), source.config) == ("flax-params", [("a", "b")], None)
    assert source.layout["exact"]
    assert formats.write(source.leaves, source.layout) == data


def test_the_gin_file_next_to_params_is_read(tmp_path: Path) -> None:
    source = formats.read(write_params(tmp_path))
    assert source.config is not None
    assert source.config_bytes == (tmp_path / "config.gin").read_bytes()
    assert gin.bindings(source.config, "HyperV2")["param_inits"] == 3


def test_a_gin_file_next_to_another_format_is_ignored(tmp_path: Path) -> None:
    write_params(tmp_path)
    assert read(tmp_path, encode(ONE)).config is None


def test_googles_three_tuples(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    source = formats.read(path)
    assert source.format == "flax-checkpoint"
    assert source.leaves.keys() == theta("velo").keys()
    assert formats.write(source.leaves, source.layout) == path.read_bytes()


def test_bytes_that_flax_would_not_write_are_read_but_not_marked_exact(tmp_path: Path) -> None:
    long_key = b"\x81\xd9\x01a" + (msgpack.packb(msgpack.ExtType(1, array_payload([1], "float32", b"abcd"))) or b"")
    source = read(tmp_path, long_key)
    assert list(source.leaves) == [("a",)]
    assert source.layout["exact"] is False


# --- what is refused ---------------------------------------------------------------------------------------------

FLOATS = array_payload([2], "float32", bytes(8))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "truncated": (encode(ONE)[:-1], "not a complete"),
    "trailing bytes": (encode(ONE) + b"\x00", "1 byte after its flax msgpack data"),
    "negative shape": (with_payload(array_payload([-1], "float32", bytes(4))), r"shape \[-1\]"),
    "empty axis": (with_payload(array_payload([0, 10**18], "float32", b"")), "shape"),
    "boolean axis": (with_payload(array_payload([True], "float32", bytes(4))), "shape"),
    "shape beyond the data": (with_payload(array_payload([2**40], "float32", bytes(4))), "bytes instead of"),
    "object dtype": (with_payload(array_payload([1], "object", bytes(8))), "dtype 'object'"),
    "structured dtype": (with_payload(array_payload([1], "f4,f4", bytes(8))), "dtype"),
    "too many axes": (with_payload(array_payload([1] * 9, "float32", bytes(4))), "9 axes"),
    "payload with one field": (with_payload(msgpack.packb([1]) or b""), "not stored as"),
    "payload that is not msgpack": (with_payload(b"\xc1"), "not stored as"),
    "complex number": (with_payload(FLOATS, code=2), "extension code 2"),
    "unknown extension": (with_payload(FLOATS, code=77), "extension code 77"),
    "numpy scalar as a leaf": (with_payload(array_payload([], "float32", bytes(4)), code=3), "not an array"),
    "number as a leaf": (encode({"a": 1.5}), "a contains float"),
    "list": (encode({"a": [LEAF]}), "contains a list"),
    "empty map": (encode({"a": {}}), "empty map"),
    "number as a key": (encode({1: LEAF}), r"a key is int \(1\), not a string"),
    "bytes as a key": (encode({b"a": LEAF}), "a key is bytes"),
    "terminal escape in a key": (encode({"\x1b[2J": LEAF}), "control characters"),
    "the same key twice": (b"\x82" + encode({"a": LEAF})[1:] * 2, "'a' is repeated"),
    "two leaves with one name": (encode({"a/b": LEAF, "a": {"b": LEAF}}), "two leaves are called a/b"),
    "nested too deeply": (b"\x81\xa1a" * 40 + encode(ONE), "nested too deeply"),
    "nested far too deeply": (b"\x81\xa1a" * 100_000 + encode(ONE), "nested too deeply"),
    "arrays that claim too much memory": (b"\x81\xa1a" + b"\xdd\xff\xff\xff\xff" * 1000, "contains a list"),
    "a map that claims too much memory": (b"\xdf\xff\xff\xff\xff", "a map of 4,294,967,295 entries"),
    "text step": (encode({"params": ONE, "gen_id": "", "step": None}), "step is neither"),
    "float step": (encode({"params": ONE, "gen_id": "", "step": np.float32(1)}), "step is neither"),
    "pickle": (b"\x80\x04\x95\x00", "pickle is truncated"),
    "zip": (b"PK\x03\x04\x00", "zip archive that is neither"),
    "safetensors": (b"\x40" + bytes(7) + b'{"a": 1}', "safetensors"),
    "empty file": (b"", "is an empty file"),
    "a theta that is an array": (encode(LEAF), "not a checkpoint of a known format"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_else_is_refused(tmp_path: Path, case: str) -> None:
    data, complaint = HOSTILE[case]
    with pytest.raises(ZooError, match=complaint) as error:
        read(tmp_path, data)
    assert error.value.hint


def test_a_file_beyond_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(ONE)
    monkeypatch.setenv(limits.VARIABLE, str(len(data)))
    read(tmp_path, data)
    monkeypatch.setenv(limits.VARIABLE, str(len(data) - 1))
    with pytest.raises(ZooError, match="larger than"):
        read(tmp_path, data)


@pytest.mark.parametrize("name", ["absent", "."])
def test_paths_that_are_not_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ZooError, match=r"does not exist|is a directory"):
        formats.read(tmp_path / name)


SAMPLE = encode({"params": nested(theta("adafac-mlp")), "gen_id": "x", "step": np.int64(7)})


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 400))
def test_a_mutated_file_is_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(SAMPLE)
    for at, byte in changes:
        data[at % 200 if byte % 2 else at] = byte  # half of them near the start, where the structure is dense
    try:
        decoded = flax_msgpack.decode(bytes(data[: len(data) - cut]), "mutated")
    except ZooError:
        return
    again = flax_msgpack.decode(flax_msgpack.encode(decoded.leaves, decoded.layout), "again")
    assert again.layout == decoded.layout
    assert all(again.leaves[path].tobytes() == leaf.tobytes() for path, leaf in decoded.leaves.items())


# --- layouts from a config.json ------------------------------------------------------------------------------------

SPOILERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown container": lambda layout: layout.update(container="zip"),
    "container that is not a string": lambda layout: layout.update(container=[1]),
    "no leaves": lambda layout: layout.pop("leaves"),
    "leaves that are not paths": lambda layout: layout.update(leaves=[7]),
    "empty path": lambda layout: layout["leaves"].append([]),
    "a leaf twice": lambda layout: layout["leaves"].append(layout["leaves"][0]),
    "another leaf": lambda layout: layout["leaves"].append(["x"]),
    "no header": lambda layout: layout.pop("header"),
    "keys with one missing": lambda layout: layout["keys"].pop(),
    "a key twice": lambda layout: layout.update(keys=["params", "params", "gen_id"]),
    "a scalar without a dtype": lambda layout: layout["header"].update(step={"ext": 3, "value": 1}),
    "a scalar beyond its dtype": lambda layout: layout["header"].update(step={"ext": 3, "dtype": "int8", "value": 999}),
}


@pytest.mark.parametrize("case", SPOILERS)
def test_a_malformed_layout_is_refused(tmp_path: Path, case: str) -> None:
    source = formats.read(write_params(tmp_path))
    SPOILERS[case](source.layout)
    with pytest.raises(ZooError):
        formats.write(source.leaves, source.layout)


# --- gin -----------------------------------------------------------------------------------------------------------


def test_gin_reads_operative_configurations() -> None:
    text = rb"""import learned_optimization.research.general_lopt.hyper_v2
from __gin__ import dynamic_registration
# Macros:
lr = 3e-4
LossNormalizer.values = (  # a comment within
    1.0,
    -2,
)
Trainer.name = \
    'a # b'
Trainer.learned_opt = @scope/HyperV2()
Trainer.lr = %lr
Trainer.nested = [{'a': None}, @run]
a/b/module.hyper_v2.HyperV2.mix_layers = True
"""
    config = gin.parse(text)
    assert config == {
        "lr": 3e-4,
        "LossNormalizer.values": (1.0, -2),
        "Trainer.name": "a # b",
        "Trainer.learned_opt": "@scope/HyperV2()",
        "Trainer.lr": "%lr",
        "Trainer.nested": "[{'a':None},@run]",
        "a/b/module.hyper_v2.HyperV2.mix_layers": True,
    }
    assert isinstance(config["Trainer.lr"], gin.Reference)
    assert gin.bindings(config, "HyperV2") == {"mix_layers": True}
    assert gin.bindings(config, "V2") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HyperV2.x = 1\ns/HyperV2.x = 2", {"x": 2}),
        ("s/HyperV2.x = 2\nHyperV2.x = 1\nHyperV2.y = 3", {"x": 2, "y": 3}),
        ("s/HyperV2.x = 2\nt/HyperV2.x = 2", {"x": 2}),
        ("m.HyperV2.x = 1\nNotHyperV2.x = 2\nHyperV2x.x = 2", {"x": 1}),
    ],
)
def test_gin_scopes(text: str, expected: dict[str, Any]) -> None:
    assert gin.bindings(gin.parse(text.encode()), "HyperV2") == expected


def test_gin_scopes_that_disagree_are_refused() -> None:
    with pytest.raises(ZooError, match="different values"):
        gin.bindings(gin.parse(b"s/HyperV2.x = 1\nt/HyperV2.x = 2"), "HyperV2")


@pytest.mark.parametrize(
    "text",
    [
        b"HyperV2.x = (1,",
        b"HyperV2.x = 'a",
        b"HyperV2.x =",
        b"HyperV2.x",
        b"HyperV2.x 1",
        b"= 1",
        b"HyperV2.x = open('f')",
        b"HyperV2.x = 1\nHyperV2.x = 2",
        b"HyperV2:\n  x = 1",
        b"include 'other.gin'",
        b"HyperV2.x = 1e999",
        b"HyperV2.x = b'bytes'",
        b"HyperV2.x = {1, 2}",
        b"Hyper$V2.x = 1",
        b"HyperV2.x = 1\xff",
        b"HyperV2.x = \x00",
        b"HyperV2.x = " + b"[" * 5000 + b"]" * 5000,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_unsupported_gin_is_refused(text: bytes) -> None:
    with pytest.raises(ZooError, match=r"config\.gin, line \d"):
        gin.parse(text)
