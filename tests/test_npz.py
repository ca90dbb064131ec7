"""``.npz`` archives: joined names, real numpy files, and archives that claim more than they contain."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import mutated, read, read_or_refuse, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import theta

from pylo_zoo.converters import FAMILIES, candidates
from pylo_zoo.errors import ZooError

LEAF = np.arange(6, dtype=np.float32).reshape(2, 3)


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(arrays: dict[str, Any], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_joined_names(family: str, compressed: bool, tmp_path: Path) -> None:
    leaves = theta(family)
    source = read(tmp_path, npz({"/".join(path): leaf for path, leaf in leaves.items()}, compressed=compressed))
    assert (source.format, source.layout["exact"]) == ("npz", False)
    assert source.leaves.keys() == leaves.keys()  # rnn/linear is one key
    assert all(source.leaves[path].tobytes() == leaf.tobytes() for path, leaf in leaves.items())
    assert family in candidates(source.leaves)


@pytest.mark.parametrize("array", [np.asfortranarray(LEAF), LEAF.astype(">f8"), np.array(2, np.int16), LEAF[0] > 1])
def test_every_kind_of_array(array: np.ndarray, tmp_path: Path) -> None:
    source = read(tmp_path, npz({"a": array}))
    np.testing.assert_array_equal(source.leaves["a",], array)
    assert source.dtypes["a",] == array.dtype.newbyteorder("=").name


def two_members_of_one_name() -> bytes:
    return archive({"a.npy": npy(LEAF), "b.npy": npy(LEAF)}).replace(b"b.npy", b"a.npy")


def with_size(data: bytes, size: int) -> bytes:
    """``data`` with another unpacked size in its central directory."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<I", size) + data[at + 28 :]


def flagged(data: bytes) -> bytes:
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 8] + b"\x01" + data[at + 9 :]


GOOD = npz({"a": LEAF})
F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a bomb": (
        archive({"a.npy": npy(np.zeros(50_000_000, np.float32))}, zipfile.ZIP_DEFLATED),
        "unpacks to 200,000,128",
    ),
    "a wrong size": (with_size(archive({"a.npy": npy(LEAF)}, zipfile.ZIP_DEFLATED), 60_000_000), "another size"),
    "a wrong small size": (with_size(archive({"a.npy": npy(LEAF)}), 10), "not a complete zip"),
    "a shape of 4 GiB": (archive({"a.npy": header(F4 % "1073741824,", bytes(4))}), "instead of 4294967296"),
    "a shape beyond numbers": (
        archive({"a.npy": header(F4 % ("9" * 30 + ","), bytes(4))}),
        "header that numpy does not",
    ),
    "a negative shape": (archive({"a.npy": header(F4 % "-1,", bytes(4))}), "header that numpy does not"),
    "an empty axis": (archive({"a.npy": header(F4 % "0, 3", b"")}), "shape"),
    "an expression": (archive({"a.npy": header(F4 % "9**9**9,", bytes(4))}), "header that numpy does not"),
    "an object array": (npz({"a": np.array([{}, {}])}), "dtype '|O'"),
    "a structured array": (npz({"a": np.zeros(2, "f4,f4")}), "dtype [("),
    "a text array": (npz({"a": np.array(["x"])}), "dtype '<U1'"),
    "bf16 as numpy saves it": (npz({"a": np.zeros(2, "V2")}), "dtype V2, as numpy saves bfloat16"),
    "a name that leads outside": (archive({"a.npy": npy(LEAF), "../b.npy": npy(LEAF)}), "lead outside"),
    "an absolute name": (archive({"a.npy": npy(LEAF), "/b.npy": npy(LEAF)}), "lead outside"),
    "another system's name": (archive({"a.npy": npy(LEAF), "C:\\b.npy": npy(LEAF)}), "lead outside"),
    "an empty part": (archive({"a//b.npy": npy(LEAF)}), "empty part"),
    "an escape in a name": (archive({"a\x1b.npy": npy(LEAF)}), "it has a member called"),
    "a directory": (archive({"a.npy": npy(LEAF), "b/": b""}), "it has a member called 'b/'"),
    "two members with one name": (two_members_of_one_name(), "two of its members"),
    "a member that is not an array": (archive({"a.npy": npy(LEAF), "b.txt": b"x"}), "b.txt is no array"),
    "an empty member": (archive({"a.npy": b""}), "no array as numpy writes it"),
    "a pickle as a member": (archive({"a.npy": b"\x80\x04N."}), "no array as numpy writes it"),
    "another compression": (archive({"a.npy": npy(LEAF)}, zipfile.ZIP_BZIP2), "compressed in a way"),
    "encrypted": (flagged(archive({"a.npy": npy(LEAF)})), "encrypted"),
    "truncated": (GOOD[:-1], "does not end as"),
    "trailing bytes": (GOOD + b"x", "does not end as"),
    "no members": (GOOD[:-22] + b"PK\x05\x06" + bytes(18), "data between its members"),
    "a directory that claims too much memory": (GOOD[:-10] + b"\xff\xff\xff\xff" + GOOD[-6:], "far too many members"),
    "another zip": (archive({"hello.txt": b"x"}), "neither torch's nor numpy's"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_else_is_refused(case: str, tmp_path: Path) -> None:
    data, complaint = HOSTILE[case]
    assert complaint in refusal(tmp_path, data).message


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([0, 0, 0, 0, 1, 300]),
)
def test_a_mutated_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, compressed: bool, changes: list[tuple[int, int]], cut: int
) -> None:
    data = npz({"/".join(path): leaf for path, leaf in theta("elo").items()}, compressed=compressed)
    if changes[0][1] % 3 == 0:  # the directory at the end, which holds the sizes
        changes = [(len(data) - 1 - at % 500, byte) for at, byte in changes]
    read_or_refuse(tmp_path_factory.getbasetemp(), mutated(data, changes, cut))


def test_colliding_names(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no array"):
        read(tmp_path, archive({"a.npy": npy(LEAF), "a": npy(LEAF)}))
