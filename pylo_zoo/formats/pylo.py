"""Reads safetensors files and ``torch.save`` archives, with PyLO's tensor names (SPEC §8) or JAX's.

torch is not used, because it does not bound the sizes that a file declares. A ``.pt`` file is interpreted like every
pickle, and its tensors are copied from the archive's storages after their sizes are checked. The tensors equal those of
``torch.load(..., weights_only=True)``.
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
"""The format's name if the tensors have JAX names."""

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
HINT = "Save plain tensors with torch.save({name: tensor, …}, file) or safetensors.torch.save_file."
WRAPPERS = ("state_dict", *pickles.WRAPPERS)
MAX_HEADER = 2 * 1024 * 1024
"""Maximum size of the header of a safetensors file in bytes: the library allocates several objects per entry."""
PROGRAM = "/data.pkl"
"""Suffix of the pickle's name in torch archives."""


def recognizes(data: bytes, size: int | None = None) -> bool:
    """Whether ``data``, the beginning of a file of ``size`` bytes, is a safetensors file or a torch archive."""
    return _is_safetensors(data, len(data) if size is None else size) or _is_torch(data)


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` identifies it in errors.

    Raises:
        ZooError: the file is damaged or malicious, or contains anything except named numeric tensors.
    """
    try:
        if _is_safetensors(data, len(data)):
            container, items, wrapper = SAFETENSORS, _safetensors(data), {}
        else:
            container, (items, wrapper) = TORCH, _torch(data)
        if any(len(path) > 1 for path in items):  # nested dicts of tensors are a theta tree
            leaves, names, layout = items, naming.JAX, {}
        else:
            leaves, names, layout = naming.split_names((name, array) for (name,), array in items.items())
        container = IN_JAX[container] if names == naming.JAX else container
        return collect(container, leaves.items(), wrapper | layout, naming=names)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


# --- safetensors -------------------------------------------------------------------------------------------------


def _is_safetensors(data: bytes, size: int) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= size - 8


def _safetensors(data: bytes) -> dict[Path, Array]:
    if (size := int.from_bytes(data[:8], "little")) > MAX_HEADER:
        refuse(f"it has a header of {size:,} bytes; the limit is {MAX_HEADER:,}.", HINT)
    try:
        tensors = deserialize(data)  # rejects a header that does not match the file
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ZooError(f"it is not a complete safetensors file ({error}).", "Download or copy it again.") from error
    budget = Budget()
    return {(name,): _from_safetensors(entry, budget) for name, entry in tensors}


def _from_safetensors(entry: Mapping[str, Any], budget: Budget) -> Array:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"], str(entry["dtype"]))
    return rebuild(entry["shape"], dtype, entry["data"], budget)


# --- torch.save --------------------------------------------------------------------------------------------------


def _is_torch(data: bytes) -> bool:
    size = int.from_bytes(data[26:28], "little")
    return data.startswith(archives.SIGNATURE) and data[30 : 30 + size].endswith(PROGRAM.encode())


def _torch(data: bytes) -> tuple[dict[Path, Array], dict[str, Any]]:
    members = archives.unpack(data, "the archive")
    (program, *others) = [name for name in members if name.endswith(PROGRAM)]
    folder = program.removesuffix(PROGRAM)
    if others or members.get(f"{folder}/byteorder", b"little") != b"little":
        _reject("the archive is not in the form that torch writes on a little-endian machine")
    reader = Reader(members, folder)
    tree, layout = pickles.unwrap(reader.tree(Machine(members[program], GLOBALS, persistent=True).run()), WRAPPERS)
    if not isinstance(tree, dict):
        _reject("it is not a dict of named tensors")
    for name, value in tree.items():
        if not isinstance(value, (Array, dict)):
            _reject(f"{name[:80]} is not a tensor")
    return dict(flatten(tree)), layout


def _reject(problem: str) -> NoReturn:
    refuse(f"{problem}.", HINT)


class Reader(pickles.Reader):
    """Interprets a machine's result with torch tensors, whose data is in the archive's other ``members``."""

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
        _reject(f"{node.function} is called with unknown arguments")

    def _tensor(self, stored: Any, start: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> Array:
        """Copy a view of a storage; ``strides`` and ``start`` count elements."""
        match stored:
            case ("storage", Global(name=kind), str(key), str(), int(count)) if kind in STORAGES:
                raw = self.members.get(f"{self.folder}/data/{key}", b"")
            case _:
                _reject("a tensor's storage is not in torch's format")
        dtype = STORAGES[kind]
        stored = stored_dtype(dtype)
        expected = count * stored.itemsize
        if count < 0 or expected != len(raw):
            _reject(f"a storage of {count:,} values of dtype {dtype} has {len(raw)} bytes instead of {expected}")
        check_shape(shape)
        if len(shape) != len(strides) or any(type(size) is not int or size < 0 for size in (*strides, start)):
            _reject(f"a tensor of shape {list(shape)} has the strides {str(strides)[:80]} and the offset {start}")
        last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= count or math.prod(shape) > count:
            _reject(f"a tensor of shape {list(shape)} is larger than its storage")
        self.budget.take(rebuilt_bytes(shape, dtype))
        flat = np.frombuffer(raw, stored.newbyteorder("<"))
        # The stride of an axis of size 1 has no effect, and may be too large for numpy.
        steps = [stride * stored.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(flat[start:], shape, steps, writeable=False)
        return Array(widen(np.array(view, stored, order="C"), dtype), dtype)
