"""Reading checkpoints, and writing flax's back byte for byte.

One module a file format; :func:`detect` is the only place that tells files apart. A checkpoint is untrusted input:
every reader bounds what it allocates and raises :class:`~pylo_zoo.errors.ZooError` for whatever it does not know.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pylo_zoo import impostors, limits
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.files import open_regular
from pylo_zoo.formats import archives, flax_msgpack, gin, npz, orbax, pickles, pylo
from pylo_zoo.formats.arrays import Array, Decoded, collect
from pylo_zoo.formats.folders import contents, digest, files, read_bounded

MAX_CONFIG_BYTES = 1024 * 1024
CONFIG_NAME = "config.gin"
"""What Google calls the operative gin configuration that it keeps beside ``params``."""

WRITABLE: Mapping[str, ModuleType] = dict.fromkeys(flax_msgpack.CONTAINERS, flax_msgpack)
"""Module that encodes each kind of container that can be written again."""

READERS = (pylo, npz, pickles, flax_msgpack)
"""Modules that decode a file, in the order they are asked: a safetensors file may begin like each of the others."""

HEAD = 512
"""Bytes from the beginning of a file that tell what it is."""

OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How the files of torch before 1.6 begin: as a pickle does."""
FOREIGN = (
    (b"PK\x03\x04", "a zip archive that is neither torch's nor numpy's"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a single numpy array"),
    (b"\x89HDF", "an HDF5 file"),
)
"""How files begin that are often taken for a checkpoint."""

POINTERS = tuple(beginning for beginning, _ in impostors.POINTERS)

KNOWN = (
    "Formats that can be read: flax msgpack (theta.state), Google's params and *.checkpoint, pickles, npz, orbax "
    "directories, and PyLO's safetensors and .pt."
)


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint as read from a file or a directory.

    Attributes:
        path: the file or directory.
        format: ``"flax-msgpack"`` (a theta tree), ``"flax-params"`` (Google's ``params``, gen_id and step around it),
            ``"flax-checkpoint"`` (Google's 3-tuples), ``"pickle"``, ``"npz"``, ``"orbax"``, ``"pylo-safetensors"``,
            ``"pylo-torch"``, or ``"safetensors"`` and ``"torch"`` with JAX's names.
        naming: whose names the leaves have: ``"jax"`` or ``"pylo"``.
        bytes: length of the file, or of all files.
        sha256: of the file; of a directory, as :func:`pylo_zoo.formats.folders.digest` says.
        leaves: path to array, in the file's order; theta only.
        dtypes: path to the name of the dtype that the file has; bf16 and fp8 leaves are widened to float32.
        layout: what :func:`write` needs besides the leaves to rebuild the file, as JSON; ``exact`` says whether that
            gives the very same bytes.
        config: bindings of the gin file beside the checkpoint, or None where there is none.
        config_bytes: that gin file.
    """

    path: Path
    format: str
    naming: str
    bytes: int
    sha256: str
    leaves: dict[tuple[str, ...], np.ndarray]
    dtypes: dict[tuple[str, ...], str]
    layout: dict[str, Any]
    config: dict[str, Any] | None
    config_bytes: bytes | None


def read(path: str | Path, *, max_bytes: int | None = None) -> Source:
    """Read the checkpoint at ``path``, and the ``config.gin`` beside it where the format has one.

    Args:
        path: a file, or a directory.
        max_bytes: the limit of :mod:`pylo_zoo.limits`, for this file.

    Raises:
        ZooError: there is no such file, it is too large, of an unknown format, damaged or hostile.
    """
    with limits.allow(max_bytes):
        return _read(Path(path))


def _read(path: Path) -> Source:
    parts = load(path)
    decoded = _decode_directory(path, parts) if path.is_dir() else detect(parts[""], path).decode(parts[""], path.name)
    writable = decoded.container in WRITABLE
    decoded.layout["exact"] = writable and WRITABLE[decoded.container].matches(
        decoded.leaves, decoded.layout, parts[""]
    )
    config_bytes = None
    if decoded.container == "flax-params" and os.path.lexists(config_path := path.parent / CONFIG_NAME):
        config_bytes = read_bounded(config_path, MAX_CONFIG_BYTES)
        check_config(config_bytes)
    return Source(
        path=path,
        format=decoded.container,
        naming=decoded.naming,
        bytes=sum(map(len, parts.values())),
        sha256=fingerprint(parts),
        leaves=decoded.leaves,
        dtypes=decoded.dtypes,
        layout=decoded.layout,
        config=None if config_bytes is None else gin.parse(config_bytes),
        config_bytes=config_bytes,
    )


def load(path: Path) -> dict[str, bytes]:
    """All bytes of the checkpoint at ``path``: relative path to content in a directory, ``""`` to content for a file.

    Of a directory that is no orbax checkpoint, only the files that hold tensors count.

    Raises:
        ZooError: there is nothing to read, or too much.
    """
    if not path.is_dir():
        return {"": read_bounded(path, limits.max_bytes())}
    chosen = files(path)
    config = path / "config.json"
    if config in chosen and b'"format_version"' in read_bounded(
        config, limits.max_bytes()
    ):  # PyLO's repositories have one too
        raise ZooError(
            f"{path} is an artifact already, not a checkpoint to convert.",
            "Train with weights=DIR, check it with `pylo-zoo verify DIR`, or go back with `pylo-zoo export DIR`.",
        )
    _check_pointers(path, chosen)
    if not orbax.recognizes(path):
        chosen = [file for file in chosen if pylo.recognizes(_head(file), file.stat().st_size)]
    if not chosen:
        raise ZooError(
            f"{path} is a directory with no orbax checkpoint and no torch files in it.",
            "Give the checkpoint's file itself, such as theta.state or params.",
        )
    return contents(path, chosen)


def fingerprint(parts: Mapping[str, bytes]) -> str:
    """The sha256 of what :func:`load` gives."""
    return hashlib.sha256(parts[""]).hexdigest() if "" in parts else digest(parts)


def detect(data: bytes, path: Path) -> ModuleType:
    """The module that decodes ``data``, judged by how it begins."""
    if data.startswith(OLD_TORCH):
        raise ZooError(
            f"{path.name} is a torch file of before version 1.6.",
            "Load it with the torch that you trust it to, and save it again.",
        )
    for module in READERS:
        if module.recognizes(data):
            return module
    if impostor := impostors.recognize(data[: impostors.HEAD], len(data)):
        raise ZooError(f"{path.name} is {impostor.what}, not a checkpoint.", impostor.hint)
    known = next((what for signature, what in FOREIGN if data.startswith(signature)), None)
    raise ZooError(f"{path.name} is {known or 'no checkpoint of a known format'}.", KNOWN)


def check_config(data: bytes) -> None:
    """Refuse ``data`` in place of a ``config.gin``.

    Raises:
        ZooError: it is a web page, a pointer or the like, or not what gin writes.
    """
    if data and (impostor := impostors.recognize(data[: impostors.HEAD], len(data), text=False)):
        raise ZooError(f"{CONFIG_NAME} is {impostor.what}, not a gin configuration.", impostor.hint)
    gin.parse(data)


def _check_pointers(directory: Path, chosen: list[Path]) -> None:
    """Refuse a clone whose large files are still pointers.

    Raises:
        ZooError: the name of the first one, and what it is.
    """
    for file in chosen:
        head = _head(file)
        impostor = impostors.recognize(head, file.stat().st_size) if head.startswith(POINTERS) else None
        if impostor is not None:
            name = file.relative_to(directory).as_posix()
            raise ZooError(f"{directory.name}/{name} is {impostor.what}, not the file itself.", impostor.hint)


def code_format(path: Path) -> str | None:
    """The format of the file at ``path`` if Python's own reader of that format runs code; judged by how it begins.

    Returns:
        ``"pickle"``, ``"pylo-torch"``, or None for any other file.

    Raises:
        ZooError: the file cannot be read, or is not a regular file.
    """
    head, size = _head(path), path.stat().st_size
    if pylo.recognizes(head, size):
        return pylo.TORCH if head.startswith(archives.SIGNATURE) else None
    return pickles.CONTAINER if pickles.recognizes(head) else None


def _decode_directory(path: Path, parts: Mapping[str, bytes]) -> Decoded:
    """An orbax checkpoint, or torch files that belong together, as PyLO's two of VeLO."""
    if orbax.recognizes(path):
        return orbax.decode(path, path.name)
    decoded = [pylo.decode(data, f"{path.name}/{name}") for name, data in parts.items()]
    items = [(leaf, Array(array, part.dtypes[leaf])) for part in decoded for leaf, array in part.leaves.items()]
    try:
        return collect(decoded[0].container, items, {"files": list(parts)}, naming=decoded[0].naming)
    except ZooError as error:
        raise ZooError(
            f"{path.name}: {error.message}", "Keep only the files of one checkpoint in the directory."
        ) from None


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror}.", "Check the file's permissions.") from error


def write(leaves: Mapping[tuple[str, ...], np.ndarray], layout: Mapping[str, Any]) -> bytes:
    """The inverse of :func:`read`: the bytes of a checkpoint with these leaves, in this layout.

    Raises:
        ZooError: the layout is malformed, or lists other leaves.
    """
    container = layout.get("container")
    if not isinstance(container, str) or container not in WRITABLE:
        raise ZooError(
            f"The source layout names the container {quoted(container)}.", f"Known containers: {', '.join(WRITABLE)}."
        )
    return WRITABLE[container].encode(leaves, layout)
