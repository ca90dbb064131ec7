"""PyLO's torch files, safetensors or ``torch.save``'s, with the tensors named as PyLO names them (SPEC §8).

torch itself is not needed, nor trusted to bound what a file claims: a ``.pt`` goes through the same machine as every
pickle, and its tensors are cut from the archive's storages after their sizes are checked. ``torch.load(...,
weights_only=True)`` gives the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, deserialize

from pylo_zoo.errors import ZooError
from pylo_zoo.formats import archives, naming, pickles
from pylo_zoo.formats.arrays import (
    Array,
    Budget,
    Decoded,
    Path,
    check_shape,
    collect,
    flatten,
    rebuild,
    rebuilt_bytes,
    refuse,
    stored_dtype,
    widen,
)
from pylo_zoo.formats.pickle_machine import Call, Global, Machine, Persistent

SAFETENSORS, TORCH = "pylo-safetensors", "pylo-torch"
IN_JAX = {SAFETENSORS: "safetensors", TORCH: "torch"}
"""What the two formats are called if their tensors have the names of a theta tree in JAX."""
NAMING = "pylo"

SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
GLOBALS = frozenset({*STORAGES, TENSOR, PARAMETER, pickles.ORDERED})
HINT = "Save plain tensors: torch.save({name: tensor, …}, file), or safetensors.torch.save_file."
WRAPPERS = ("state_dict", *pickles.WRAPPERS)
MAX_HEADER = 2 * 1024 * 1024
"""Largest header of a safetensors file: its library makes several objects per entry."""
PROGRAM = "/data.pkl"
"""Ends the name of the pickle in torch's archives."""


def recognizes(data: bytes, size: int | None = None) -> bool:
    """Whether ``data``, a file of ``size`` bytes or its beginning, is a safetensors file or torch's archive."""
    return _is_safetensors(data, len(data) if size is None else size) or _is_torch(data)


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` is what an error calls it.

    Raises:
        ZooError: the file is damaged or hostile, or holds anything but tensors of numbers by name.
    """
    try:
        if _is_safetensors(data, len(data)):
            container, items, around = SAFETENSORS, _safetensors(data), {}
        else:
            container, (items, around) = TORCH, _torch(data)
        if any(len(path) > 1 for path in items):  # nested dicts of tensors are a theta tree
            leaves, names, layout = items, naming.JAX, {}
        else:
            leaves, names, layout = naming.named((name, array) for (name,), array in items.items())
        container = IN_JAX[container] if names == naming.JAX else container
        return collect(container, leaves.items(), around | layout, naming=names)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


# --- safetensors -------------------------------------------------------------------------------------------------


def _is_safetensors(data: bytes, size: int) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= size - 8


def _safetensors(data: bytes) -> dict[Path, Array]:
    if (size := int.from_bytes(data[:8], "little")) > MAX_HEADER:
        refuse(f"it has a header of {size:,} bytes; up to {MAX_HEADER:,} are read.", HINT)
    try:
        tensors = deserialize(data)  # refuses headers that lie about the file
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ZooError(f"it is no complete safetensors file ({error}).", "Download or copy it again.") from error
    budget = Budget()
    return {(name,): _from_safetensors(described, budget) for name, described in tensors}


def _from_safetensors(described: Mapping[str, Any], budget: Budget) -> Array:
    dtype = SAFETENSORS_DTYPES.get(described["dtype"], str(described["dtype"]))
    return rebuild(described["shape"], dtype, described["data"], budget)


# --- torch.save --------------------------------------------------------------------------------------------------


def _is_torch(data: bytes) -> bool:
    size = int.from_bytes(data[26:28], "little")
    return data.startswith(archives.SIGNATURE) and data[30 : 30 + size].endswith(PROGRAM.encode())


def _torch(data: bytes) -> tuple[dict[Path, Array], dict[str, Any]]:
    members = archives.unpack(data, "the archive")
    (program, *others) = [name for name in members if name.endswith(PROGRAM)]
    folder = program.removesuffix(PROGRAM)
    if others or members.get(f"{folder}/byteorder", b"little") != b"little":
        _bad("the archive is not as torch writes it on a little-endian machine")
    reader = Reader(members, folder)
    tree, layout = pickles.unwrap(reader.tree(Machine(members[program], GLOBALS, persistent=True).run()), WRAPPERS)
    if not isinstance(tree, dict):
        _bad("it holds no tensors by name")
    for name, value in tree.items():
        if not isinstance(value, (Array, dict)):
            _bad(f"{name[:80]} is no tensor")
    return dict(flatten(tree)), layout


def _bad(what: str) -> NoReturn:
    refuse(f"{what}.", HINT)


class Reader(pickles.Reader):
    """Reads a machine's notes of torch's tensors, whose bytes stand in the archive's other ``members``."""

    def __init__(self, members: Mapping[str, bytes], folder: str) -> None:
        super().__init__()
        self.members = members
        self.folder = folder

    def _array(self, node: Call) -> Array:
        match node.function, node.args:
            case ("torch._utils._rebuild_parameter", (Call() as tensor, bool(), _)) if tensor.function == TENSOR:
                return self.array(tensor)
            case (
                "torch._utils._rebuild_tensor_v2",
                (Persistent(id=stored), int(start), tuple(shape), tuple(strides), *_),
            ):
                return self._tensor(stored, start, shape, strides)
        _bad(f"{node.function} is called in an unknown way")

    def _tensor(self, stored: Any, start: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> Array:
        """A view of a storage, copied: ``strides`` and ``start`` count elements."""
        match stored:
            case ("storage", Global(name=kind), str(key), str(), int(count)) if kind in STORAGES:
                raw = self.members.get(f"{self.folder}/data/{key}", b"")
            case _:
                _bad("a tensor's storage is not stored as torch does")
        dtype = STORAGES[kind]
        stored = stored_dtype(dtype)
        expected = count * stored.itemsize
        if count < 0 or expected != len(raw):
            _bad(f"a storage of {count:,} values of dtype {dtype} has {len(raw)} bytes instead of {expected}")
        check_shape(shape)
        if len(shape) != len(strides) or any(type(size) is not int or size < 0 for size in (*strides, start)):
            _bad(f"a tensor of shape {list(shape)} has the strides {str(strides)[:80]} and the offset {start}")
        last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= count or math.prod(shape) > count:
            _bad(f"a tensor of shape {list(shape)} is larger than its storage")
        self.budget.take(rebuilt_bytes(shape, dtype))
        flat = np.frombuffer(raw, stored.newbyteorder("<"))
        # The stride along an axis of size 1 moves nothing, and may be a number that numpy cannot hold.
        steps = [stride * stored.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(flat[start:], shape, steps, writeable=False)
        return Array(widen(np.array(view, stored, order="C"), dtype), dtype)
