"""Reads checkpoints, and writes flax checkpoints back byte for byte.

Each file format has a module; only :func:`detect` distinguishes them. A checkpoint is untrusted input: every reader
bounds its allocations and raises :class:`~pylo_zoo.errors.ZooError` for unknown content.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pylo_zoo import impostors, limits
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.files import open_regular
from pylo_zoo.formats import archives, flax_msgpack, gin, npz, orbax, pickles, pylo
from pylo_zoo.formats.arrays import Array, Decoded, collect
from pylo_zoo.formats.folders import MAX_FILES, contents, digest, files, read_bounded

MAX_CONFIG_BYTES = 1024 * 1024
CONFIG_NAME = "config.gin"
"""Name of the operative gin configuration that Google stores next to ``params``."""

WRITABLE: Mapping[str, ModuleType] = dict.fromkeys(flax_msgpack.CONTAINERS, flax_msgpack)
"""The encoding module of each container that can be written."""

READERS = (pylo, npz, pickles, flax_msgpack)
"""Modules that decode a file. safetensors comes first because such a file may begin like any other format."""

HEAD = 512
"""Number of leading bytes that identify a file."""

OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Signature of torch files before version 1.6, which also looks like a pickle."""
FOREIGN = (
    (b"PK\x03\x04", "a zip archive that is neither torch's nor numpy's"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a single numpy array"),
    (b"\x89HDF", "an HDF5 file"),
)
"""Signatures of files that are often mistaken for a checkpoint."""

CONFIG_JSON = "config.json"
"""Name of the description in an artifact's directory."""
POINTERS = tuple(beginning for beginning, _ in impostors.POINTERS)

SUPPORTED = (
    "Use a supported format: flax msgpack (theta.state), Google's params or *.checkpoint, a pickle, npz, orbax, "
    "safetensors or .pt."
)


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint that was read from a file or a directory.

    Attributes:
        path: the file or directory.
        format: ``"flax-msgpack"`` (a theta tree), ``"flax-params"`` (Google's ``params``, gen_id and step around it),
            ``"flax-checkpoint"`` (Google's 3-tuples), ``"pickle"``, ``"npz"``, ``"orbax"``, ``"pylo-safetensors"``,
            ``"pylo-torch"``, or ``"safetensors"`` and ``"torch"`` with JAX's names.
        naming: the naming scheme of the leaves: ``"jax"`` or ``"pylo"``.
        bytes: size of the file, or of all files.
        sha256: of the file, or of the directory (:func:`pylo_zoo.formats.folders.digest`).
        leaves: path to array, in file order; theta only.
        dtypes: path to the name of the dtype in the file; bf16 leaves are widened to float32 and fp8 leaves to float16.
        layout: additional data, as JSON, that :func:`write` needs to rebuild the file. ``exact`` states whether the
            result has the same bytes.
        config: bindings of the gin file next to the checkpoint, or None.
        config_bytes: content of that gin file, or None.
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
    """Read the checkpoint at ``path``, and the ``config.gin`` next to Google's ``params``.

    Args:
        path: a file or a directory.
        max_bytes: the size limit (:mod:`pylo_zoo.limits`).

    Raises:
        ZooError: the file does not exist, is too large, of an unknown format, damaged or malicious.
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
    """The content of the checkpoint at ``path``: by relative path for a directory, under ``""`` for a file.

    In a directory that is not an orbax checkpoint, only files with tensors count.

    Raises:
        ZooError: no checkpoint exists there, or it is too large.
    """
    if not path.is_dir():
        _check_not_of_artifact(path)
        return {"": read_bounded(path, limits.max_bytes())}
    try:
        selected = files(path)
    except ZooError:
        if not _may_be_checkpoint(path):  # say that first, before what is wrong with its files
            raise _no_checkpoint(path) from None
        raise
    if path / CONFIG_JSON in selected and _is_artifact(path):
        raise ZooError(
            f"{path} is an artifact, not a checkpoint to convert.",
            "Use it as weights=DIR, or rebuild its checkpoint with `pylo-zoo export DIR`.",
        )
    _check_pointers(path, selected)
    if not orbax.recognizes(path):
        selected = [file for file in selected if pylo.recognizes(_head(file), file.stat().st_size)]
    if not selected:
        raise _no_checkpoint(path)
    return contents(path, selected)


def _is_artifact(directory: Path) -> bool:
    """Whether the ``config.json`` in ``directory`` is an artifact's. PyLO's repositories also have a config.json."""
    return b'"format_version"' in read_bounded(directory / CONFIG_JSON, limits.max_bytes())


def _check_not_of_artifact(path: Path) -> None:
    """Reject the weights and the descriptions in an artifact's directory.

    Raises:
        ZooError: ``path`` is one of them.
    """
    files = {"model.safetensors": "the weights file", CONFIG_JSON: "the description", "parity.json": "the report"}
    directory = path.parent
    siblings = (directory / CONFIG_JSON, directory / "model.safetensors")
    if path.name in files and path.is_file() and all(map(Path.is_file, siblings)) and _is_artifact(directory):
        raise ZooError(
            f"{path} is {files[path.name]} of the artifact {directory}.",
            f"Run `pylo-zoo info {shlex.quote(str(directory))}`.",
        )


def _may_be_checkpoint(directory: Path) -> bool:
    """Whether ``directory`` is an orbax checkpoint or contains an artifact's or a torch file, at any depth."""
    if orbax.recognizes(directory) or (directory / CONFIG_JSON).is_file():
        return True
    try:
        files = [path for path in islice(directory.rglob("*"), MAX_FILES) if path.is_file() and not path.is_symlink()]
        return any(pylo.recognizes(_head(file), file.stat().st_size) for file in files)
    except (OSError, ZooError):
        return False


def _no_checkpoint(directory: Path) -> ZooError:
    return ZooError(
        f"{directory} is a directory without an orbax checkpoint or torch files.",
        "Use the path of the checkpoint's file, such as theta.state or params.",
    )


def fingerprint(parts: Mapping[str, bytes]) -> str:
    """The sha256 of the content that :func:`load` returns."""
    return hashlib.sha256(parts[""]).hexdigest() if "" in parts else digest(parts)


def detect(data: bytes, path: Path) -> ModuleType:
    """The module that decodes ``data``, according to its signature."""
    if data.startswith(OLD_TORCH):
        raise ZooError(
            f"{path.name} is a file of torch before version 1.6.",
            "If you trust it, load it with torch and save it again.",
        )
    for module in READERS:
        if module.recognizes(data):
            return module
    if impostor := impostors.recognize(data[: impostors.HEAD], len(data)):
        raise ZooError(f"{path.name} is {impostor.what}, not a checkpoint.", impostor.hint)
    foreign = next((what for signature, what in FOREIGN if data.startswith(signature)), None)
    raise ZooError(f"{path.name} is {foreign or 'not a checkpoint of a known format'}.", SUPPORTED)


def check_config(data: bytes) -> None:
    """Check that ``data`` is the content of a ``config.gin``.

    Raises:
        ZooError: it is a web page, a pointer or similar, or not a gin configuration.
    """
    if data and (impostor := impostors.recognize(data[: impostors.HEAD], len(data), text=False)):
        raise ZooError(f"{CONFIG_NAME} is {impostor.what}, not a gin configuration.", impostor.hint)
    gin.parse(data)


def _check_pointers(directory: Path, selected: list[Path]) -> None:
    """Reject a clone whose large files are still pointers.

    Raises:
        ZooError: one of the files is a pointer.
    """
    for file in selected:
        head = _head(file)
        impostor = impostors.recognize(head, file.stat().st_size) if head.startswith(POINTERS) else None
        if impostor is not None:
            name = file.relative_to(directory).as_posix()
            raise ZooError(f"{directory.name}/{name} is {impostor.what}, not the file itself.", impostor.hint)


def code_format(path: Path) -> str | None:
    """The format of the file at ``path``, if the format's usual reader runs code from the file.

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
    """Decode an orbax checkpoint, or torch files that form one checkpoint, such as PyLO's two files of VeLO."""
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
    """The bytes of a checkpoint with these leaves in this layout, the inverse of :func:`read`.

    Raises:
        ZooError: the layout is malformed, or its leaves differ.
    """
    container = layout.get("container")
    if not isinstance(container, str) or container not in WRITABLE:
        raise ZooError(
            f"The source layout has the container {quoted(container)}.", f"Known containers: {', '.join(WRITABLE)}."
        )
    return WRITABLE[container].encode(leaves, layout)
