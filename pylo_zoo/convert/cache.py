"""Copies of source checkpoints by sha256: ``$PYLO_ZOO_HOME/sources/SHA256/``, or below ``~/.cache/pylo-zoo``.

An artifact records its source's hash and never a path; this is where ``verify`` finds the source again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pylo_zoo.errors import ZooError
from pylo_zoo.files import staged_directory
from pylo_zoo.formats import CONFIG_NAME, Source, fingerprint, load

NAMES = {
    "flax-msgpack": "theta.state",
    "flax-params": "params",
    "flax-checkpoint": "theta.checkpoint",
    "pickle": "theta.pickle",
    "npz": "theta.npz",
    "orbax": "orbax",
    "pylo-safetensors": "pylo.safetensors",
    "pylo-torch": "pylo.pt",
}
"""What a copy is called, whatever the user's file or directory was."""
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
        if path.exists() and _fingerprint(path) == sha256:
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
    parts = load(source.path)
    if fingerprint(parts) != source.sha256:
        raise ZooError(f"{source.path} changed while it was being read.", "Wait until it is complete, and try again.")
    directory = home() / "sources" / source.sha256
    with staged_directory(directory) as staging:
        for name, data in parts.items():
            path = staging / NAMES[source.format] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if source.config_bytes is not None:
            (staging / CONFIG_NAME).write_bytes(source.config_bytes)
    return directory / NAMES[source.format]


def _fingerprint(path: Path) -> str | None:
    try:
        return fingerprint(load(path))
    except ZooError:  # a copy that was spoilt is no copy
        return None


def _config(directory: Path) -> bytes | None:
    path = directory / CONFIG_NAME
    return path.read_bytes() if path.is_file() else None
