"""Bytes of hostile checkpoints, written opcode by opcode: small files that request large allocations."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from trees import array_payload

MIB = 1024 * 1024

# --- pickles and torch files -------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(value: str) -> bytes:
    module, _, attribute = value.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: list[int]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def torch_file(
    tensors: int,
    count: int,
    shape: list[int] | None = None,
    strides: list[int] | None = None,
    *,
    kind: str = "Float",
    start: int = 0,
) -> bytes:
    """``tensors`` views of one storage of ``count`` zeros, compressed."""
    size = {"Float": 4, "BFloat16": 2, "Double": 8}[kind]
    shape, strides = shape or [count], strides or [1]
    storage = b"(" + text("storage") + name(f"torch.{kind}Storage") + text("0") + text("cpu") + integer(count) + b"tQ"
    view = integer(start) + numbers(shape) + numbers(strides) + b"\x89" + name("collections.OrderedDict") + b")R"
    body = b"".join(
        text(f"k{i}") + name("torch._utils._rebuild_tensor_v2") + b"(" + storage + view + b"tR" for i in range(tensors)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + body + b"u.")
        archive.writestr("archive/data/0", bytes(size * count))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def memoised(arrays: int, size: int, *, order: str = "C", code: str = "f4", latin1: bool = False) -> bytes:
    """A pickle of ``arrays`` arrays that share one bytes object of ``size`` bytes."""
    item = int(code[1])
    shape = numbers([64, size // item // 64])
    dtype = name("numpy.dtype") + text(code) + b"\x89\x88\x87R(K\x03" + text("<") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    raw = b"B" + struct.pack("<I", size) + bytes(size)
    if latin1:
        raw = name("_codecs.encode") + text("\0" * size) + text("latin1") + b"\x86R"
    rest = dtype + b"K\0tb" + shape + text(order) + b"tR"
    items = [
        text(f"k{i}") + name("numpy._core.numeric._frombuffer") + b"(" + (b"h\x01" if i else raw + b"q\x01") + rest
        for i in range(arrays)
    ]
    return b"\x80\x04}(" + b"".join(items) + b"u."


# --- flax --------------------------------------------------------------------------------------------------------


def pack(value: object) -> bytes:
    return msgpack.packb(value) or b""


def flax(dtype: str, size: int, arrays: int = 1) -> bytes:
    """A valid flax file of ``arrays`` vectors with ``size`` bytes each, in which every byte value occurs."""
    item = {"float32": 4, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}[dtype]
    payload = array_payload([size // item], dtype, bytes(range(256)) * (size // 256))
    return pack({f"a{i}": msgpack.ExtType(1, payload) for i in range(arrays)})


def flax_array(shape: list[Any], dtype: str = "float32", data: bytes = bytes(4)) -> msgpack.ExtType:
    return msgpack.ExtType(1, array_payload(shape, dtype, data))


def flax_deep(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + pack({"b": flax_array([1])})


def flax_chunked(size: int) -> bytes:
    """An array in the chunks that flax writes for arrays beyond a gigabyte; the shape claims ``size`` values."""
    pieces = {"0": flax_array([1]), "1": flax_array([1])}
    return pack({"a": {"__msgpack_chunked_array__": True, "shape": {"0": size}, "chunks": pieces}})


# --- archives ----------------------------------------------------------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for member, content in members.items():
            file.writestr(member, content)
    return buffer.getvalue()


def overlapping(copies: int, size: int) -> bytes:
    """An archive whose directory lists one member's content ``copies`` times under different names."""
    data = archive({"a00.npy": npy(np.zeros(size // 4, np.float32))}, zipfile.ZIP_DEFLATED)
    start = data.index(b"PK\x01\x02")
    entry = data[start : data.index(b"PK\x05\x06")]
    directory = b"".join(entry.replace(b"a00", f"a{i:02}".encode()) for i in range(copies))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, copies, copies, len(directory), start, 0)
    return data[:start] + directory + end


def between_members(data: bytes, extra: bytes) -> bytes:
    """The archive ``data`` with ``extra`` inserted before its directory, and the directory's offset corrected."""
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    tail = bytearray(data[end:])
    tail[16:20] = struct.pack("<I", start + len(extra))
    return data[:start] + extra + data[start:end] + bytes(tail)


# --- safetensors -------------------------------------------------------------------------------------------------


def safetensors(entries: Mapping[str, object], content: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + content


def aliased(tensors: int, size: int) -> bytes:
    """A safetensors file whose ``tensors`` all refer to the same ``size`` bytes."""
    one = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    return safetensors({f"k{i}": one for i in range(tensors)}, bytes(size))
