"""Reading JAX checkpoints, and writing them back byte for byte.

One module a file format; :func:`detect` is the only place that tells formats apart. A checkpoint is untrusted input:
every reader bounds what it allocates and raises :class:`~pylo_zoo.errors.ZooError` for whatever it does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pylo_zoo.errors import ZooError
from pylo_zoo.formats import flax_msgpack, gin

MAX_BYTES = 256 * 1024 * 1024
"""Largest checkpoint that is read; the largest published one has 9 MB."""
MAX_CONFIG_BYTES = 1024 * 1024
CONFIG_NAME = "config.gin"
"""What Google calls the operative gin configuration that it keeps beside ``params``."""

CONTAINERS: Mapping[str, ModuleType] = dict.fromkeys(flax_msgpack.CONTAINERS, flax_msgpack)
"""Module that encodes each kind of container."""

FOREIGN = (
    (b"PK\x03\x04", "a zip archive, such as a torch or npz file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a single numpy array"),
    *((bytes((0x80, protocol)), "a pickle") for protocol in (2, 3, 4, 5)),
)
"""How files begin that are often taken for a flax checkpoint."""


@dataclass(frozen=True, eq=False)
class Source:
    """A JAX checkpoint as read from a file.

    Attributes:
        path: the file.
        format: ``"flax-msgpack"`` (a theta tree), ``"flax-params"`` (Google's ``params``, gen_id and step around it) or
            ``"flax-checkpoint"`` (Google's 3-tuples).
        bytes: length of the file.
        sha256: of the file.
        leaves: path to array, in the file's order; theta only.
        layout: what :func:`write` needs besides the leaves to rebuild the file, as JSON; ``exact`` says whether that
            gives the very same bytes.
        config: bindings of the gin file beside the checkpoint, or None where there is none.
        config_bytes: that gin file.
    """

    path: Path
    format: str
    bytes: int
    sha256: str
    leaves: dict[tuple[str, ...], np.ndarray]
    layout: dict[str, Any]
    config: dict[str, Any] | None
    config_bytes: bytes | None


def read(path: str | Path) -> Source:
    """Read the checkpoint at ``path``, and the ``config.gin`` beside it where the format has one.

    Raises:
        ZooError: there is no such file, it is too large, of an unknown format, damaged or hostile.
    """
    path = Path(path)
    data = read_bounded(path, MAX_BYTES)
    decoded = detect(data, path).decode(data, path.name)
    decoded.layout["exact"] = write(decoded.leaves, decoded.layout) == data
    config_bytes = None
    if decoded.container == "flax-params" and (config_path := path.parent / CONFIG_NAME).is_file():
        config_bytes = read_bounded(config_path, MAX_CONFIG_BYTES)
    return Source(
        path=path,
        format=decoded.container,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        leaves=decoded.leaves,
        layout=decoded.layout,
        config=None if config_bytes is None else gin.parse(config_bytes),
        config_bytes=config_bytes,
    )


def detect(data: bytes, path: Path) -> ModuleType:
    """The module that decodes ``data``, judged by how it begins."""
    if flax_msgpack.recognises(data):
        return flax_msgpack
    known = next((what for signature, what in FOREIGN if data.startswith(signature)), None)
    if known is None and data[8:9] == b"{":
        known = "a safetensors file"
    raise ZooError(
        f"{path.name} is {known or 'no checkpoint of a known format'}.",
        "Formats that can be read: flax msgpack (theta.state), Google's params, and Google's *.checkpoint.",
    )


def write(leaves: Mapping[tuple[str, ...], np.ndarray], layout: Mapping[str, Any]) -> bytes:
    """The inverse of :func:`read`: the bytes of a checkpoint with these leaves, in this layout.

    Raises:
        ZooError: the layout is malformed, or lists other leaves.
    """
    container = layout.get("container")
    if not isinstance(container, str) or container not in CONTAINERS:
        raise ZooError(
            f"The source layout names the container {container!r}.", f"Known containers: {', '.join(CONTAINERS)}."
        )
    return CONTAINERS[container].encode(leaves, layout)


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of the file at ``path``, at most ``limit`` of them."""
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist"
        raise ZooError(f"{path} {kind}.", "Give the checkpoint's file itself, such as theta.state or params.")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror}.", "Check the file's permissions.") from error
    if len(data) > limit:
        raise ZooError(f"{path} is larger than {limit:,} bytes.", "No learned optimizer is: is it the right file?")
    return data
