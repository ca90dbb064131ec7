"""Copies of source checkpoints by sha256: ``$PYLO_ZOO_HOME/sources/SHA256/``, or below ``~/.cache/pylo-zoo``.

An artifact records its source's hash and never a path; this is where ``verify`` finds the source again.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pylo_zoo.errors import ZooError
from pylo_zoo.files import staged_directory
from pylo_zoo.formats import CONFIG_NAME, MAX_BYTES, Source, read_bounded

NAMES = {"flax-msgpack": "theta.state", "flax-params": "params", "flax-checkpoint": "theta.checkpoint"}
"""What a copy is called, whatever the user's file was."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def home() -> Path:
    """The directory of everything that the package keeps between runs."""
    return Path(os.environ.get("PYLO_ZOO_HOME") or Path.home() / ".cache" / "pylo-zoo")


def cached_source(sha256: str) -> Path | None:
    """The copy of the source with this hash, or None where there is none whose bytes still have it."""
    if not SHA256.fullmatch(sha256):
        return None
    for name in NAMES.values():
        path = home() / "sources" / sha256 / name
        if path.is_file() and hashlib.sha256(read_bounded(path, MAX_BYTES)).hexdigest() == sha256:
            return path
    return None


def keep(source: Source) -> Path:
    """Copy ``source``, and the gin file beside it, into the cache, in one step.

    Raises:
        ZooError: the file has changed since it was read, or the cache cannot be written.
    """
    present = cached_source(source.sha256)
    if present is not None and _config(present.parent) == source.config_bytes:
        return present
    data = read_bounded(source.path, MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise ZooError(f"{source.path} changed while it was being read.", "Wait until it is complete, and try again.")
    directory = home() / "sources" / source.sha256
    with staged_directory(directory) as staging:
        (staging / NAMES[source.format]).write_bytes(data)
        if source.config_bytes is not None:
            (staging / CONFIG_NAME).write_bytes(source.config_bytes)
    return directory / NAMES[source.format]


def _config(directory: Path) -> bytes | None:
    path = directory / CONFIG_NAME
    return path.read_bytes() if path.is_file() else None
