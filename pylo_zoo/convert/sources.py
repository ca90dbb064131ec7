"""Finds and reads the source of a conversion: a user's file, a file in the package, or a download."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pylo_zoo import converters, formats, limits, registry
from pylo_zoo.convert.cache import cached_source, read_split, read_with_config
from pylo_zoo.convert.statements import SETTINGS
from pylo_zoo.converters import Family
from pylo_zoo.errors import UsageError, ZooError, count
from pylo_zoo.fetch import Access, Forbidden, NotFound, Unavailable, fetch, is_uri, manual_download, parse
from pylo_zoo.files import is_local
from pylo_zoo.registry import Entry, Source
from pylo_zoo.samples.random_weights import RANDOM


def matched_entry(sha256: str, family: str | None = None) -> Entry | None:
    """The registry entry whose weights have this sha256, restricted to ``family`` if it is not None."""
    entries = registry.load_registry().values()
    matches = (entry for entry in entries if entry.weights.sha256 == sha256)
    return next((entry for entry in matches if family in (None, entry.family)), None)


def original(sha256: str) -> Path | None:
    """The source file with this sha256, from the cache or from the package; None if neither has it."""
    if path := cached_source(sha256):
        return path
    entry = matched_entry(sha256)
    return entry.weights.path if entry else None


def read_user_file(name: str, path: str | Path, access: Access | None = None) -> tuple[Family, formats.Source]:
    """Read the user's file at ``path``, a local path or an address, as a checkpoint of the family ``name``.

    Raises:
        ZooError: ``name`` is not a family, or the file does not exist or cannot be read.
    """
    if name not in converters.FAMILIES and name in registry.load_registry():
        family = registry.get(name).family
        raise UsageError(
            f"{name} is a registry entry; a conversion with a source requires a family.",
            f"Use the family {family}, such as `pylo-zoo convert {family} --source {path}`.",
        )
    family = converters.get(name)
    source = _read_address(path, access) if isinstance(path, str) and is_uri(path) else formats.read(path)
    return converters.get(family.name, source.naming), source


def _read_address(uri: str, access: Access | None) -> formats.Source:
    """Download and read the file at ``uri``, with the gin file next to Google's ``params`` if it exists."""
    source = formats.read(fetch(uri, limit=limits.max_bytes(), check=formats.read, access=access))
    if source.format != "flax-params":
        return source
    location = parse(uri)
    folder, _, _ = location.uri.rpartition("/")
    config_uri = f"{folder}/{formats.CONFIG_NAME}"
    if location.kind == "hub" and location.revision != "main":
        config_uri += f"@{location.revision}"
    try:
        config = fetch(config_uri, limit=formats.MAX_CONFIG_BYTES, check=_check_config, access=access)
    except (NotFound, Forbidden):
        config = None
        if access is not None:
            access.notify(f"{folder} has no {formats.CONFIG_NAME}: values come from {SETTINGS} or are defaults.")
    return read_with_config(source.path, source.sha256, config)


def _check_config(path: Path) -> None:
    formats.check_config(path.read_bytes())


def read_registered_file(name: str, access: Access | None = None) -> tuple[Entry, formats.Source]:
    """Read the file of the registry entry ``name``, downloading it if necessary, and check its size and sha256.

    Raises:
        ZooError: the entry does not exist, or its file is unavailable or differs from the entry.
    """
    entries = registry.load_registry()
    if name in converters.FAMILIES and name not in entries:
        raise UsageError(
            f"{name} is a family, not a registry entry.",
            f"Convert a file with `pylo-zoo convert {name} --source FILE`.",
        )
    if name.startswith(RANDOM):
        raise UsageError(
            f"{name} stands for random weights, which have no checkpoint to convert.",
            f"Use it where weights are expected, as in `pylo-zoo verify {name}`.",
        )
    if name not in entries and ("/" in name or is_local(name)):
        raise UsageError(
            f"{name} is neither a registry name nor a family.",
            f"Convert a file with `pylo-zoo convert FAMILY --source {name}`.",
        )
    entry = registry.get(name)
    pin = entry.weights
    if pin.path is None:
        return entry, _download(entry, access)
    source = formats.read(pin.path)
    differences = [
        f"{field} {actual}, not {expected}"
        for field, actual, expected in (("size", source.bytes, pin.bytes), ("sha256", source.sha256, pin.sha256))
        if expected is not None and actual != expected
    ]
    if differences:
        raise ZooError(f"{pin.path} differs from its registry entry: {', '.join(differences)}.", "Reinstall pylo-zoo.")
    return entry, source


def _download(entry: Entry, access: Access | None) -> formats.Source:
    """Download, verify and read all files of ``entry``."""
    try:
        paths = [
            fetch(
                source.uri,
                sha256=source.sha256,
                bytes=source.bytes,
                limit=formats.MAX_CONFIG_BYTES if source.format == "gin" else limits.max_bytes(),
                check=_check_config if source.format == "gin" else formats.read,
                access=access,
            )
            for source in entry.sources
        ]
    except (Unavailable, NotFound, Forbidden) as error:
        raise type(error)(error.message, download_hint(entry)) from None
    weights = [path for path, source in zip(paths, entry.sources, strict=True) if source.format != "gin"]
    configs = [path for path, source in zip(paths, entry.sources, strict=True) if source.format == "gin"]
    if len(weights) > 1:
        return read_split(weights)
    return read_with_config(weights[0], weights[0].parent.name, configs[0] if configs else None)


def download_hint(entry: Entry) -> str:
    """A hint for when the servers of ``entry`` are unavailable: the addresses of its files, and how to use them."""
    folder = parse(entry.weights.uri).url.rpartition("/")[0] + "/"
    files = "; ".join(_describe(source, folder) for source in entry.sources)
    directory = ", into one directory" if len(entry.sources) > 1 else ""
    return manual_download(files + directory, f"run `{convert_command(entry)}`")


def _describe(source: Source, folder: str) -> str:
    """The address, size and sha256 of ``source``; only the name if it is a further file of ``folder``."""
    url = parse(source.uri).url
    if source.format == "gin" and url.startswith(folder):
        url = f"{url.removeprefix(folder)} next to it"
    size = count(source.bytes, "byte") if source.bytes else None
    facts = ", ".join(fact for fact in (size, source.sha256 and f"sha256 {source.sha256}") if fact)
    return f"{url}{f' ({facts})' if facts else ''}"


def convert_command(entry: Entry) -> str:
    """The command that converts the files of ``entry`` after the user has downloaded them."""
    unstated = [
        (field.name, getattr(entry.behavior, field.name))
        for field in dataclasses.fields(entry.behavior)
        if getattr(entry.behavior, field.name) != field.default
        and entry.weights.format != "flax-params"
        and entry.weights.sha256 is None
    ]
    settings = "".join(f" --set {key}={str(value).lower()}" for key, value in unstated)
    several = sum(source.format != "gin" for source in entry.sources) > 1
    source = "DIRECTORY" if several else entry.weights.filename
    return f"pylo-zoo convert {entry.family} --source {source}{settings} --out zoo/{entry.name}"
