"""Pickles: every kind that numpy, jax, haiku and flax write is read, and none can run code."""

from __future__ import annotations

import collections
import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import mutated, read, read_or_refuse, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import Leaves, nested, theta

from pylo_zoo import formats
from pylo_zoo.errors import ZooError

PROTOCOLS = (2, 3, 4, 5)
LEAF = np.arange(6, dtype=np.float32).reshape(2, 3)


def same(source: formats.Source, leaves: Leaves) -> bool:
    return source.leaves.keys() == leaves.keys() and all(
        source.leaves[path].tobytes() == leaf.tobytes() and source.leaves[path].shape == leaf.shape
        for path, leaf in leaves.items()
    )


def numpy_1(data: bytes) -> bytes:
    """A pickle as numpy 1 would have written it: the same calls in its older core module."""
    replaced = data.replace(b"cnumpy._core.", b"cnumpy.core.")
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        replaced = replaced.replace(bytes((0x8C, len(new))) + new, bytes((0x8C, len(old))) + old)
    return replaced.replace(b"\x95" + struct.pack("<Q", len(data) - 11), b"") if replaced != data else replaced


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", ["elo", "velo"])
def test_dicts_of_arrays(protocol: int, family: str, tmp_path: Path) -> None:
    leaves = theta(family)
    data = pickle.dumps(nested(leaves), protocol)
    source = read(tmp_path, data)
    assert (source.format, source.naming, source.layout["exact"]) == ("pickle", "jax", False)
    assert same(source, leaves)
    if protocol < 4:  # otherwise the frame lengths would be wrong
        assert b"numpy.core" in numpy_1(data)
        assert same(read(tmp_path, numpy_1(data)), leaves)


@pytest.mark.parametrize("protocol", [4, 5])
def test_the_names_of_numpy_1_in_one_frame(protocol: int, tmp_path: Path) -> None:
    data = numpy_1(pickle.dumps({"a": LEAF}, protocol))
    assert b"numpy.core" in data
    assert same(read(tmp_path, data), {("a",): LEAF})


ARRAYS: dict[str, Any] = {
    "fortran order": np.asfortranarray(LEAF),
    "not contiguous": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3],
    "big-endian": LEAF.astype(">f4"),
    "scalar": np.float32(3),
    "no axes": np.array(3, np.float32),
    "float64": LEAF.astype(np.float64),
    "float16": LEAF.astype(np.float16),
    "int64": LEAF.astype(np.int64),
    "bool": LEAF > 1,
    "read-only": np.broadcast_to(np.float32(1), (2, 3)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_kind_of_array(kind: str, protocol: int, tmp_path: Path) -> None:
    array = ARRAYS[kind]
    source = read(tmp_path, pickle.dumps({"a": array}, protocol))
    result = source.leaves["a",]
    np.testing.assert_array_equal(result, array)
    assert (result.shape, source.dtypes["a",]) == (array.shape, array.dtype.newbyteorder("=").name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_are_widened_exactly(name: str, protocol: int, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name))
    count = 2 ** (8 * dtype.itemsize)
    array = np.arange(count, dtype=f"u{dtype.itemsize}").view(dtype)  # every possible value
    source = read(tmp_path, pickle.dumps({"a": array}, protocol))
    assert source.dtypes["a",] == name
    np.testing.assert_array_equal(source.leaves["a",], array.astype(np.float32))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_jax_arrays(protocol: int, tmp_path: Path) -> None:
    jnp = pytest.importorskip("jax.numpy")
    data = pickle.dumps({"a": jnp.asarray(LEAF), "b": jnp.ones(3, jnp.bfloat16)}, protocol)
    source = read(tmp_path, data)
    np.testing.assert_array_equal(source.leaves["a",], LEAF)
    assert source.dtypes["b",] == "bfloat16"
    if protocol < 4:
        older = data.replace(
            b"cjax._src.array\n_reconstruct_array\n", b"cjax._src.device_array\nreconstruct_device_array\n"
        )
        assert older != data
        np.testing.assert_array_equal(read(tmp_path, older).leaves["a",], LEAF)


def flat_mapping(module: str) -> type:
    """A class with haiku's name and pickling method."""

    class FlatMapping(dict[str, Any]):
        def __reduce__(self) -> tuple[Any, ...]:
            return type(self), (dict(self),)

    FlatMapping.__module__, FlatMapping.__qualname__ = module, "FlatMapping"
    return FlatMapping


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = pytest.importorskip("flax.core").FrozenDict({"b": {"c": LEAF}})
    ordered = collections.OrderedDict(z=LEAF, a=collections.OrderedDict(b=LEAF))
    name = "haiku._src.data_structures"
    for parent in ("haiku", "haiku._src"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    module = types.ModuleType(name)
    flat = module.FlatMapping = flat_mapping(name)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, name, module)
    tree = {"frozen": frozen, "ordered": ordered, "haiku": flat({"~": flat({"w0": LEAF})})}
    source = read(tmp_path, pickle.dumps(tree, protocol))
    paths = [("frozen", "b", "c"), ("ordered", "z"), ("ordered", "a", "b"), ("haiku", "~", "w0")]
    assert same(source, dict.fromkeys(paths, LEAF))


def test_shared_arrays_are_read_at_each_place(tmp_path: Path) -> None:
    source = read(tmp_path, pickle.dumps({"a": LEAF, "b": {"c": LEAF}}))
    assert same(source, {("a",): LEAF, ("b", "c"): LEAF})


@pytest.mark.parametrize("extra", [{}, {"step": 3, "name": "x", "seed": np.int64(1), "none": None}])
@pytest.mark.parametrize("key", ["params", "theta"])
def test_a_wrapped_theta_is_detected(key: str, extra: dict[str, Any], tmp_path: Path) -> None:
    source = read(tmp_path, pickle.dumps({**extra, key: nested(theta("elo"))}))
    assert same(source, theta("elo"))
    assert source.layout["wrapper"] == key
    assert source.layout.get("beside", []) == list(extra)


@pytest.mark.parametrize(
    "other", [{"optimizer": {"m": LEAF}}, {"theta": {"a": LEAF}}, {"states": (LEAF,)}, {"m": LEAF}]
)
def test_an_ambiguous_wrapper_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    error = refusal(tmp_path, pickle.dumps({"params": {"a": LEAF}, **other}))
    assert "stands beside" in error.message


# --- what is refused ---------------------------------------------------------------------------------------------


class Reduced:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args, state) if state is not None else (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def program(body: bytes, protocol: int = 4) -> bytes:
    return bytes((0x80, protocol)) + body + b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(value: str) -> bytes:
    module, _, attribute = value.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


FROZEN = name("flax.core.frozen_dict.FrozenDict")
RECONSTRUCT = name("numpy.core.multiarray._reconstruct") + name("numpy.ndarray")


def array(shape: bytes, dtype: bytes, data: bytes = b"C\x04abcd") -> bytes:
    """A dict of one array, as protocol 3 stores it."""
    header = RECONSTRUCT + b"K\0\x85C\x01b\x87R"
    return program(b"}" + text("a") + header + b"(K\x01" + shape + dtype + b"\x89" + data + b"tbs")


F4 = (
    name("numpy.dtype")
    + text("f4")
    + b"\x89\x88\x87R(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
)
NESTED = program(b"}" + (text("a") + b"}") * 40 + b"s" * 40)
CYCLE = program(b"}q\0" + text("a") + b"h\0s")


def nested_references() -> bytes:
    """Ten nested dicts, each of which holds the previous one ten times: 10^10 values for a full traversal."""
    levels = [b"}q\0"]
    for level in range(10):
        items = b"".join(text(key) + b"h" + bytes((level,)) for key in "abcdefghij")
        levels.append(b"}(" + items + b"uq" + bytes((level + 1,)))
    return program(b"}(" + b"".join(text(f"level {i}") + level for i, level in enumerate(levels)) + b"u")


HOSTILE: dict[str, tuple[bytes, str]] = {
    "call of eval": (program(b"}" + text("a") + name("os.system") + text("1") + b"\x85Rs"), "mentions 'os.system'"),
    "numpy's own loader": (program(name("numpy.load") + text("x") + b"\x85R"), "mentions 'numpy.load'"),
    "a dotted attribute": (
        b"\x80\x04" + b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        "mentions 'numpy.ndarray.__class__'",
    ),
    "call of a result": (program(name("numpy.dtype") + text("f4") + b"\x85R)R"), "calls something"),
    "INST": (program(b"(ios\nsystem\n"), "opcode INST"),
    "OBJ": (program(b"(" + name("numpy.dtype") + b"o"), "opcode OBJ"),
    "NEWOBJ_EX": (program(name("numpy.dtype") + b")}\x92"), "opcode NEWOBJ_EX"),
    "EXT1": (program(b"\x82\x01"), "opcode EXT1"),
    "EXT4": (program(b"\x84\x01\0\0\0"), "opcode EXT4"),
    "PERSID": (program(b"Pabc\n"), "opcode PERSID"),
    "BINPERSID": (program(b"NQ"), "outside itself"),
    "NEXT_BUFFER": (program(b"\x97", 5), "opcode NEXT_BUFFER"),
    "an unknown opcode": (program(b"\xff"), "opcode b'"),
    "text numbers": (program(b"I1\n"), "opcode INT"),
    "BUILD on a class": (program(FROZEN + b"}" + text("x") + b"K\x01sb"), "sets the state"),
    "BUILD twice": (program(F4 + b")b"), "sets the state"),
    "BUILD on a dict": (program(b"}}" + text("x") + b"K\x01sb"), "sets the state"),
    "BUILD on a frozen dict": (
        program(FROZEN + b"}" + text("a") + b"K\x01s\x85R}" + text("x") + b"K\x01sb"),
        "frozen dict is changed",
    ),
    "a shape of 4 GiB": (array(b"J\0\0\0\x40\x85", F4), "instead of 4294967296"),
    "a negative shape": (array(b"J\xff\xff\xff\xff\x85", F4), "shape"),
    "an empty axis": (array(b"K\0\x85", F4, b"C\0"), "shape"),
    "numpy's reconstruct with a size": (
        program(b"}" + text("a") + RECONSTRUCT + b"J\0\0\0\x40\x85C\x01b\x87Rs"),
        "not stored as version",
    ),
    "an array without its state": (
        program(b"}" + text("a") + RECONSTRUCT + b"K\0\x85C\x01b\x87Rs"),
        "not stored as version",
    ),
    "an object array": (pickle.dumps({"a": np.array([{}, {}])}), "dtype 'O8'"),
    "a structured array": (pickle.dumps({"a": np.zeros(2, "f4,f4")}), "dtype 'V8'"),
    "a text array": (pickle.dumps({"a": np.array(["x"])}), "dtype 'U1'"),
    "a date array": (pickle.dumps({"a": np.zeros(2, "M8[s]")}), "dtype 'M8'"),
    "a complex array": (pickle.dumps({"a": np.zeros(2, "c8")}), "dtype 'c8'"),
    "bytes beyond the file": (program(b"B\xff\xff\xff\x7f"), "claims more bytes"),
    "8-byte length": (program(b"\x8e" + b"\xff" * 7 + b"\x7f"), "claims more bytes"),
    "8-byte length of a bytearray": (program(b"\x96" + b"\0\0\0\0\x01\0\0\0", 5), "claims more bytes"),
    "8-byte length of a text": (program(b"\x8d" + b"\xff" * 8), "claims more bytes"),
    "a frame beyond the file": (program(b"\x95" + b"\xff" * 7 + b"\x7fN"), "frame claims"),
    "a memo index that claims too much memory": (program(b"Nr\xff\xff\xff\x7f"), "holds NoneType"),
    "a long number": (program(b"\x8a\xff" + b"\x01" * 255), "takes 255 bytes"),
    "a very long number": (program(b"\x8b\xff\xff\0\0" + b"\x01" * 65535), "opcode LONG4"),
    "many opcodes": (program(b"}" * 100_000), "more than 50,000 opcodes"),
    "many marks": (program(b"(" * 100_000), "more than 50,000 opcodes"),
    "a cycle": (CYCLE, "nested too deeply, or hold each other"),
    "billion laughs": (nested_references(), "nested too deeply, or hold each other"),
    "nested too deeply": (NESTED, "nested too deeply"),
    "the same key twice": (program(b"}(" + text("a") + b"N" + text("a") + b"Nu"), "'a' stands twice"),
    "a number as a key": (pickle.dumps({1: LEAF}), "a key is int"),
    "an unhashable key": (program(b"}]Ns"), "a key is list"),
    "terminal escape in a key": (pickle.dumps({"\x1b[2J": LEAF}), "control characters"),
    "two leaves with one name": (pickle.dumps({"a/b": LEAF, "a": {"b": LEAF}}), "two leaves are called a/b"),
    "a list": (pickle.dumps({"a": [LEAF]}), "a holds list"),
    "a number": (pickle.dumps({"a": 1.5}), "a holds float"),
    "an empty dict": (pickle.dumps({}), "empty map"),
    "only an array": (pickle.dumps(LEAF), "the top holds an array"),
    "nothing": (program(b""), "does not end where"),
    "two values": (program(b"}}"), "does not end where"),
    "an open mark": (program(b"(}"), "does not end where"),
    "bytes after the end": (pickle.dumps({"a": LEAF}) + b"x", "does not end where"),
    "pop of nothing": (program(b"R"), "takes what is not there"),
    "tuple without a mark": (program(b"t"), "takes what is not there"),
    "an unknown memo entry": (program(b"h\x05"), "has not had"),
    "odd items": (program(b"}(" + text("a") + b"u"), "items of what is no dict"),
    "append to a dict": (program(b"}Na"), "appends to what is no list"),
    "a text that is not UTF-8": (program(b"X\x01\0\0\0\xff"), "not UTF-8"),
    "a name that does not end": (program(b"c" + b"a" * 2000), "does not end"),
    "protocol 6": (b"\x80\x06}.", "no checkpoint of a known format"),
    "no protocol": (b"}.", "is a text file that begins with"),
    "old torch": (formats.OLD_TORCH + b"x", "before version 1.6"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_else_is_refused(case: str, tmp_path: Path) -> None:
    data, complaint = HOSTILE[case]
    assert complaint in refusal(tmp_path, data).message


def test_a_small_file_for_which_numpy_would_allocate_gigabytes() -> None:
    data, _ = HOSTILE["a shape of 4 GiB"]
    assert len(data) < 300


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_code_runs(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps({"a": Reduced(open, str(mark), "w")}, protocol)
    error = refusal(tmp_path, data)
    assert "mentions" in error.message
    assert not mark.exists()
    with pickle.loads(data)["a"]:  # the file is a working attack
        assert mark.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reduced(np.dtype, "f4", False, True, state=(3, "<", None, ("x",), {"x": 1}, -1, -1, 0)),
        lambda: collections.OrderedDict,
        lambda: Reduced(collections.OrderedDict, [("a", 1)]),
    ],
)
def test_known_names_used_in_unknown_ways(make: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(ZooError):
        read(tmp_path, pickle.dumps({"a": make()}))


# --- mutations of real files -------------------------------------------------------------------------------------

SAMPLES = [pickle.dumps(nested(theta("elo")), protocol) for protocol in PROTOCOLS]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([0, 0, 1, 300]),
)
def test_a_mutated_pickle_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp(), mutated(data, changes, cut))
