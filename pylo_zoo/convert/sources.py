"""Finding the file that a conversion reads: the user's own, one in the package, or one that is fetched."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from pylo_zoo import converters, formats, limits, registry
from pylo_zoo.convert.cache import cached_source, read_beside, side_by_side
from pylo_zoo.converters import Family
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Forbidden, NotFound, Unavailable, fetch, is_uri, parse, three_ways
from pylo_zoo.registry import Entry, Source


def matched_entry(sha256: str, family: str | None = None) -> Entry | None:
    """The registry entry whose weights have this sha256, of ``family`` where one is given."""
    entries = registry.load_registry().values()
    matches = (entry for entry in entries if entry.weights.sha256 == sha256)
    return next((entry for entry in matches if family in (None, entry.family)), None)


def original(sha256: str) -> Path | None:
    """The file with this sha256 that an artifact was converted from: the copy in the cache, or one in the package."""
    if found := cached_source(sha256):
        return found
    entry = matched_entry(sha256)
    return entry.weights.path if entry else None


def own_file(name: str, path: str | Path, access: Access | None = None) -> tuple[Family, formats.Source]:
    """The user's file at ``path``, or at the address that it is, as a checkpoint of the family ``name``.

    Raises:
        ZooError: ``name`` is no family, or there is no such file, or it cannot be read.
    """
    if name not in converters.FAMILIES and name in registry.load_registry():
        family = registry.get(name).family
        raise ZooError(
            f"With --source, the word is a family, and {name} is a registry entry.",
            f"Write `pylo-zoo convert {family} --source {path}`; a file that the registry knows is recognised.",
        )
    families = [] if name in converters.FAMILIES else converters.FAMILIES
    if near := difflib.get_close_matches(name.lower().replace("_", "-"), families, n=1):
        raise ZooError(f"There is no family {name!r}.", f"Did you mean {near[0]!r}?")
    family = converters.get(name)
    source = _own_address(path, access) if isinstance(path, str) and is_uri(path) else formats.read(path)
    return converters.get(family.name, source.naming), source


def _own_address(uri: str, access: Access | None) -> formats.Source:
    """The file at ``uri``, with the gin file that Google keeps beside its ``params``, where there is one."""
    source = formats.read(fetch(uri, limit=limits.max_bytes(), check=formats.read, access=access))
    if source.format != "flax-params":
        return source
    where = parse(uri)
    folder, _, _ = where.uri.rpartition("/")
    config = f"{folder}/{formats.CONFIG_NAME}"
    if where.kind == "hub" and where.revision != "main":
        config += f"@{where.revision}"
    try:
        beside = fetch(config, limit=formats.MAX_CONFIG_BYTES, check=_check_config, access=access)
    except (NotFound, Forbidden):
        beside = None
        if access is not None:
            access.say(f"There is no {formats.CONFIG_NAME} beside it: what that would say is taken as --set has it.")
    return read_beside(source.path, source.sha256, beside)


def _check_config(path: Path) -> None:
    formats.check_config(path.read_bytes())


def registered_file(name: str, access: Access | None = None) -> tuple[Entry, formats.Source]:
    """The file of the registry entry ``name``, which has to have the entry's size and sha256; fetched where need be.

    Raises:
        ZooError: the entry does not exist, or its file is unavailable or another one.
    """
    entries = registry.load_registry()
    if name in converters.FAMILIES and name not in entries:
        raise ZooError(
            f"{name} is a family, and no registry entry has that name.",
            f"Give a file: `pylo-zoo convert {name} --source FILE`.",
        )
    entry = registry.get(name)
    pin = entry.weights
    if pin.path is None:
        return entry, _fetched(entry, access)
    source = formats.read(pin.path)
    wrong = [
        f"{what} {found}, not {expected}"
        for what, found, expected in (("size", source.bytes, pin.bytes), ("sha256", source.sha256, pin.sha256))
        if expected is not None and found != expected
    ]
    if wrong:
        raise ZooError(f"{pin.path} is not the file that the registry pins: {', '.join(wrong)}.", "Reinstall pylo-zoo.")
    return entry, source


def _fetched(entry: Entry, access: Access | None) -> formats.Source:
    """All files of ``entry``, verified and side by side in the cache."""
    try:
        fetched = [
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
        raise type(error)(error.message, how_to_give(entry)) from None
    weights = [path for path, source in zip(fetched, entry.sources, strict=True) if source.format != "gin"]
    configs = [path for path, source in zip(fetched, entry.sources, strict=True) if source.format == "gin"]
    if len(weights) > 1:
        return side_by_side(weights)
    return read_beside(weights[0], weights[0].parent.name, configs[0] if configs else None)


def how_to_give(entry: Entry) -> str:
    """The three ways to an entry's files without their servers, in one sentence."""
    files = "; ".join(map(_described, entry.sources))
    beside = ", into one directory" if len(entry.sources) > 1 else ""
    return three_ways(entry.weights.uri, files + beside, f"`{by_hand(entry)}`")


def _described(source: Source) -> str:
    size = f"{source.bytes:,} bytes" if source.bytes else None
    known = ", ".join(what for what in (size, source.sha256 and f"sha256 {source.sha256}") if what)
    return f"{parse(source.uri).url}{f' ({known})' if known else ''}"


def by_hand(entry: Entry) -> str:
    """The command that converts an entry's file, or directory of files, from where the user put it."""
    special = [
        (field.name, getattr(entry.behavior, field.name))
        for field in dataclasses.fields(entry.behavior)
        if getattr(entry.behavior, field.name) != field.default
        and entry.weights.format != "flax-params"
        and entry.weights.sha256 is None
    ]
    settings = "".join(f" --set {key}={str(value).lower()}" for key, value in special)
    several = sum(source.format != "gin" for source in entry.sources) > 1
    source = "DIRECTORY" if several else entry.weights.filename
    return f"pylo-zoo convert {entry.family} --source {source}{settings} --out zoo/{entry.name}"
