"""Finding the file that a conversion reads: the user's own, one in the package, or one in the cache."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import converters, formats, registry
from pylo_zoo.convert.cache import cached_source
from pylo_zoo.converters import Family
from pylo_zoo.errors import ZooError
from pylo_zoo.registry import Entry


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


def own_file(name: str, path: str | Path) -> tuple[Family, formats.Source]:
    """The user's file at ``path``, as a checkpoint of the family ``name``."""
    if name not in converters.FAMILIES and name in registry.load_registry():
        family = registry.get(name).family
        raise ZooError(
            f"With --source, the word is a family, and {name} is a registry entry.",
            f"Write `pylo-zoo convert {family} --source {path}`; a file that the registry knows is recognised.",
        )
    converters.get(name)
    source = formats.read(path)
    return converters.get(name, source.naming), source


def registered_file(name: str) -> tuple[Entry, formats.Source]:
    """The file of the registry entry ``name``, which has to have the entry's size and sha256.

    Raises:
        ZooError: there is no such entry, its file would have to be fetched, or it is another file.
    """
    entries = registry.load_registry()
    if name in converters.FAMILIES and name not in entries:
        raise ZooError(
            f"{name} is a family, and no registry entry has that name.",
            f"Give a file: `pylo-zoo convert {name} --source FILE`.",
        )
    entry = registry.get(name)
    pin = entry.weights
    path = pin.path or (cached_source(pin.sha256) if pin.sha256 else None)
    if path is None:
        raise ZooError(f"{name} is published at {pin.uri}, and this version does not fetch files.", _how_to_give(entry))
    source = formats.read(path)
    wrong = [
        f"{what} {found}, not {expected}"
        for what, found, expected in (("size", source.bytes, pin.bytes), ("sha256", source.sha256, pin.sha256))
        if expected is not None and found != expected
    ]
    if wrong:
        raise ZooError(f"{path} is not the file that the registry pins: {', '.join(wrong)}.", "Reinstall pylo-zoo.")
    return entry, source


def _how_to_give(entry: Entry) -> str:
    pin = entry.weights
    size = f"{pin.bytes:,} bytes" if pin.bytes else None
    known = ", ".join(what for what in (size, pin.sha256 and f"sha256 {pin.sha256}") if what)
    files = " and ".join(source.filename for source in entry.sources)
    several = sum(source.format != "gin" for source in entry.sources) > 1
    return (
        f"Download {files}{f' ({known})' if known else ''}{' into folders of one directory' if several else ''}, then "
        f"`pylo-zoo convert {entry.family} --source {'DIRECTORY' if several else pin.filename}`."
    )
