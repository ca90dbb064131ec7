"""Reads ``.npz`` archives whose members are named by joined paths: ``nn/~/w0``, or ``nn.~.w0`` in all members."""

from __future__ import annotations

import re

from pylo_zoo.errors import ZooError
from pylo_zoo.formats import archives, naming
from pylo_zoo.formats.arrays import Array, Budget, Decoded, collect, rebuild, refuse

CONTAINER = "npz"
SUFFIX = ".npy"

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    r"\{'descr': '(?P<order>[<>|])(?P<code>[fiub][1248])', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,12}, ){0,7}(?:\d{1,12},?)?)\), \} *\n",
)
"""The exact header that numpy writes. No Python literal is evaluated."""
KINDS = {"f": "float", "i": "int", "u": "uint"}
HINT = "Save plain float32 arrays with numpy.savez(file, **{'nn/~/w0': array, …})."


def recognizes(data: bytes) -> bool:
    """Whether ``data`` begins like an archive whose first member is an array."""
    size = int.from_bytes(data[26:28], "little")
    return data.startswith(archives.SIGNATURE) and data[30 : 30 + size].endswith(SUFFIX.encode())


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` identifies it in errors.

    Raises:
        ZooError: the archive is damaged, too large when unpacked, or contains anything except numeric arrays.
    """
    members = archives.unpack(data, name)
    try:
        budget = Budget()
        names = {_name(member): _array(member, content, budget) for member, content in members.items()}
        sep = naming.separator(names) or "/"
        if dotted := [name for name in names if sep == "/" and "." in name and "/" not in name]:
            refuse(f"the name {dotted[0]} has dots and is not a path of a theta tree.", naming.JAX_HINT)
        leaves, layout = naming.unwrap_paths({naming.split(name, sep): array for name, array in names.items()})
        return collect(CONTAINER, leaves.items(), layout)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def _name(member: str) -> str:
    if not member.endswith(SUFFIX):
        refuse(f"its member {member} is not an array.", HINT)
    return member.removesuffix(SUFFIX)


def _array(member: str, content: bytes, budget: Budget) -> Array:
    version = content[6:8]
    if not content.startswith(MAGIC) or version not in (b"\x01\x00", b"\x02\x00"):
        refuse(f"its member {member} is not an array in numpy's format.", HINT)
    start = 10 if version[0] == 1 else 12
    end = start + int.from_bytes(content[8:start], "little")
    header = content[start:end].decode("latin1")
    match = HEADER.fullmatch(header)
    if match is None and (raw := re.search(r"'descr': '[|<>=]?V([12])'", header)):
        refuse(
            f"its member {member} has the dtype V{raw[1]}, numpy's ambiguous dtype for bfloat16 and float8.",
            "Save float32: numpy.savez(file, **{name: array.astype('float32'), …}).",
        )
    if match is None:
        dtype = re.search(r"'descr': ([^,]{1,40})", header)
        refuse(f"its member {member} has the dtype {dtype[1] if dtype else '?'}, or an unknown header.", HINT)
    code = match["code"]
    dtype = "bool" if code == "b1" else f"{KINDS.get(code[0], '?')}{8 * int(code[1])}"
    shape = tuple(int(size) for size in re.findall(r"\d+", match["shape"]))
    fortran, big_endian = match["fortran"] == "True", match["order"] == ">"
    return rebuild(shape, dtype, memoryview(content)[end:], budget, fortran=fortran, big_endian=big_endian)
