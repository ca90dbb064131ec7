"""Copies of source checkpoints by sha256: ``$PYLO_ZOO_HOME/sources/SHA256/``, or below ``~/.cache/pylo-zoo``.

An artifact records its source's hash and never a path; this is where ``verify`` finds the source again. What is fetched
lies in the same place (:mod:`pylo_zoo.fetch.store`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pylo_zoo import limits
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import store
from pylo_zoo.fetch.store import home
from pylo_zoo.files import explained, read_regular, staged_directory, write_file
from pylo_zoo.formats import CONFIG_NAME, MAX_CONFIG_BYTES, Source, fingerprint, load, read

__all__ = ["NAMES", "cached_source", "home", "keep", "read_beside", "side_by_side"]

NAMES = {
    "flax-msgpack": "theta.state",
    "flax-params": "params",
    "flax-checkpoint": "theta.checkpoint",
    "pickle": "theta.pickle",
    "npz": "theta.npz",
    "orbax": "orbax",
    "pylo-safetensors": "pylo.safetensors",
    "pylo-torch": "pylo.pt",
    "safetensors": "theta.safetensors",
    "torch": "theta.pt",
}
"""What a copy is called, whatever the user's file or directory was."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def cached_source(sha256: str) -> Path | None:
    """The copy of the source with this hash, or None where there is none whose bytes still have it."""
    if found := store.find_cached(sha256):
        return found
    folder = store.directory(sha256)
    if not SHA256.fullmatch(sha256) or folder.is_symlink():
        return None
    directories = (folder / name for name in NAMES.values())
    return next((path for path in directories if path.is_dir() and _fingerprint(path) == sha256), None)


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
    directory = store.directory(source.sha256)
    with store.locked(source.sha256), explained(directory, store.ANOTHER_CACHE):
        store.real_folder(directory)
        with staged_directory(directory, store.ANOTHER_CACHE, last=NAMES[source.format]) as staging:
            for name, data in parts.items():
                path = staging / NAMES[source.format] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if source.config_bytes is not None:
                (staging / CONFIG_NAME).write_bytes(source.config_bytes)
    return directory / NAMES[source.format]


def read_beside(weights: Path, sha256: str, config: Path | None) -> Source:
    """Read a cached checkpoint with ``config`` as the gin file beside it, and with none where that is None.

    Raises:
        ZooError: the cache cannot be written, or the file cannot be read.
    """
    beside = store.directory(sha256) / CONFIG_NAME
    wanted = None if config is None else read_regular(config, MAX_CONFIG_BYTES)
    if (source := read(weights)).config_bytes == wanted:
        return source  # without a lock, which a read-only cache does not have
    with store.locked(sha256):
        with explained(beside, store.ANOTHER_CACHE):
            beside.unlink(missing_ok=True)
        if wanted is not None:
            write_file(beside, wanted, store.ANOTHER_CACHE)
        return read(weights)


def side_by_side(files: Sequence[Path]) -> Source:
    """Read a checkpoint that several cached files make up together, from a directory of the cache that holds them.

    Raises:
        ZooError: the cache cannot be written, or the files cannot be read.
    """
    directory = store.directory("-".join(path.parent.name for path in files)[:96])
    with store.locked(directory.name), staged_directory(directory, store.ANOTHER_CACHE) as staging:
        for index, path in enumerate(files):
            (staging / str(index)).mkdir()
            (staging / str(index) / path.name).write_bytes(read_regular(path, limits.max_bytes()))
    return read(directory)


def _fingerprint(path: Path) -> str | None:
    try:
        return fingerprint(load(path))
    except ZooError:  # a copy that was spoilt is no copy
        return None


def _config(directory: Path) -> bytes | None:
    path = directory / CONFIG_NAME
    return read_regular(path, MAX_CONFIG_BYTES) if path.is_file() and not path.is_symlink() else None
