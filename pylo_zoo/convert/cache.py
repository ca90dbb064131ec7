"""Copies of source checkpoints by sha256: ``$PYLO_ZOO_HOME/sources/SHA256/``, or below ``~/.cache/pylo-zoo``.

An artifact records its source's hash, never a path. ``verify`` finds the source here. Downloads are stored in the same
place (:mod:`pylo_zoo.fetch.store`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pylo_zoo import limits
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import store
from pylo_zoo.fetch.store import home
from pylo_zoo.files import read_regular, staged_directory, translate_os_errors, write_file
from pylo_zoo.formats import CONFIG_NAME, MAX_CONFIG_BYTES, Source, fingerprint, load, read

__all__ = ["NAMES", "cached_source", "home", "read_split", "read_with_config", "store_copy"]

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
"""Name of the copy, by format."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def cached_source(sha256: str) -> Path | None:
    """The cached source with this hash, or None if it is missing or damaged."""
    if path := store.find_cached(sha256):
        return path
    folder = store.directory(sha256)
    if not SHA256.fullmatch(sha256) or folder.is_symlink():
        return None
    directories = (folder / name for name in NAMES.values())
    return next((path for path in directories if path.is_dir() and _fingerprint(path) == sha256), None)


def store_copy(source: Source) -> Path:
    """Copy ``source`` and its gin file into the cache, in one step.

    Raises:
        ZooError: the file has changed since it was read, or the cache cannot be written.
    """
    cached = cached_source(source.sha256)
    if cached is not None and _config(cached.parent) == source.config_bytes:
        return cached
    parts = load(source.path)
    if fingerprint(parts) != source.sha256:
        raise ZooError(f"{source.path} changed while it was being read.", "Wait until it is complete, then try again.")
    directory = store.directory(source.sha256)
    with store.locked(source.sha256), translate_os_errors(directory, store.ANOTHER_CACHE):
        store.real_folder(directory)
        with staged_directory(directory, store.ANOTHER_CACHE, last=NAMES[source.format]) as staging:
            for name, data in parts.items():
                path = staging / NAMES[source.format] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if source.config_bytes is not None:
                (staging / CONFIG_NAME).write_bytes(source.config_bytes)
    return directory / NAMES[source.format]


def read_with_config(weights: Path, sha256: str, config: Path | None) -> Source:
    """Read a cached checkpoint with ``config`` as its gin file, or without a gin file if ``config`` is None.

    Raises:
        ZooError: the cache cannot be written, or the file cannot be read.
    """
    target = store.directory(sha256) / CONFIG_NAME
    content = None if config is None else read_regular(config, MAX_CONFIG_BYTES)
    if (source := read(weights)).config_bytes == content:
        return source  # without a lock: a read-only cache has no locks
    with store.locked(sha256):
        with translate_os_errors(target, store.ANOTHER_CACHE):
            target.unlink(missing_ok=True)
        if content is not None:
            write_file(target, content, store.ANOTHER_CACHE)
        return read(weights)


def read_split(files: Sequence[Path]) -> Source:
    """Read a checkpoint that is split into several cached files, from a cache directory with copies of them.

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
    except ZooError:  # the copy is damaged
        return None


def _config(directory: Path) -> bytes | None:
    path = directory / CONFIG_NAME
    return read_regular(path, MAX_CONFIG_BYTES) if path.is_file() and not path.is_symlink() else None
