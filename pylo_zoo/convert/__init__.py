"""From a checkpoint to an artifact, and back to the very same bytes.

:func:`inspect` looks, :func:`convert` converts in memory, :func:`make` proves and writes too, :func:`export` goes back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pylo_zoo import __version__, artifact, config, converters, formats, limits
from pylo_zoo.artifact import Artifact, Converter, SourceRecord
from pylo_zoo.convert.cache import cached_source, home, keep
from pylo_zoo.convert.inspection import Inspection, inspect
from pylo_zoo.convert.leaves import ConversionPolicy, take
from pylo_zoo.convert.sources import matched_entry, original, own_file, registered_file
from pylo_zoo.convert.statements import SETTINGS, Statement, from_source, parse_settings, resolve_fields
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, is_uri, parse
from pylo_zoo.files import write_file

if TYPE_CHECKING:
    from pylo_zoo.parity.report import Report

__all__ = [
    "ConversionPolicy",
    "ConversionResult",
    "Inspection",
    "ParityError",
    "cached_source",
    "convert",
    "export",
    "export_file",
    "home",
    "inspect",
    "make",
    "matched_entry",
    "original",
    "parse_settings",
]


def convert(
    name: str,
    *,
    source: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    access: Access | None = None,
    allowed: ConversionPolicy | None = None,
    max_bytes: int | None = None,
) -> Artifact:
    """Convert a checkpoint.

    Args:
        name: with ``source`` a family, otherwise a registry entry.
        source: your own checkpoint file or directory, or its address. Where the registry knows its sha256
            and the family agrees, it is taken for that entry, and has its behaviour.
        settings: fields of the architecture or behaviour that no file says, or learned decays that a file leaves out.
        access: how to fetch a file that is not here.
        allowed: what may be done to leaves that are not float32, or not finite; by default nothing.
        max_bytes: the limit of :mod:`pylo_zoo.limits`, for this file.

    Returns:
        The artifact, in memory. Nothing is written but what had to be fetched, into the cache.

    Raises:
        ZooError: the file is unavailable, unreadable or of another family; a field is unknown; statements contradict.
    """
    with limits.allow(max_bytes):
        return _converted(name, source, settings, access, allowed)[0]


def _converted(
    name: str,
    source: str | Path | None,
    settings: Mapping[str, Any] | None,
    access: Access | None,
    allowed: ConversionPolicy | None,
) -> tuple[Artifact, formats.Source]:
    """What :func:`convert` returns, and the file that it read."""
    if source is not None:
        family, read = own_file(name, source, access)
        entry = matched_entry(read.sha256, family.name)
        said = [entry.behavior] if entry else []
        origin = f"the registry's {entry.name}, whose file this is," if entry else ""
    else:
        entry, read = registered_file(name, access)
        family = converters.get(entry.family, read.naming)
        said = [record for record in (entry.architecture, entry.behavior) if record is not None]
        origin = f"the registry entry {name}"
    allowed = allowed or ConversionPolicy()
    leaves, fields, layout = take(family, read, entry, settings or {}, allowed)
    architecture, behavior = resolve_fields(
        family,
        family.infer(leaves),
        [
            *from_source(family, read),
            *(Statement(origin, vars(record)) for record in said),
            Statement(SETTINGS, fields),
        ],
        fallback=family.behavior(**family.assumed.get(read.format, {})),
    )
    tensors = converters.to_torch(family, leaves, architecture, finite=not allowed.nonfinite)
    defaults = {key: value for key, value in family.defaults.items() if value is not None}
    made = Artifact(
        family=family.name,
        name=entry.name if entry else family.name,
        architecture=architecture,
        behavior=behavior,
        defaults={**defaults, **(entry.defaults if entry else {})},
        source=SourceRecord(
            uri=entry.weights.uri if entry else _own_uri(source, read),
            sha256=read.sha256,
            bytes=read.bytes,
            license=entry.license if entry else "unknown",
            format=read.format,
            layout=layout,
        ),
        converter=Converter(version=__version__),
        tensors={key: torch.from_numpy(np.array(tensor)) for key, tensor in tensors.items()},
    )
    return made, read


def contradictions(made: Artifact, read: formats.Source) -> list[str]:
    """What the files of the source, and the registry of that file, say against the behaviour of ``made``."""
    own = Statement("the artifact", config.to_dict(made.behavior))
    try:
        family = converters.get(made.family, read.naming)
        resolve_fields(family, made.architecture, [*_elsewhere(made, read), own])
    except ZooError as error:
        return [error.message]
    return []


def unsaid(made: Artifact, read: formats.Source) -> list[str]:
    """The behaviour of ``made`` that neither the files of the source nor the registry say, field by field.

    Nobody can check it: it is the family's released value, or what ``--set`` or somebody's editor made of it.
    """
    try:
        said = {name for statement in _elsewhere(made, read) for name in statement.values}
    except ZooError:
        said = set()
    released = config.to_dict(converters.get(made.family).behavior())
    return [
        f"{name} = {value}" + ("" if value == released[name] else f", where the released value is {released[name]}")
        for name, value in config.to_dict(made.behavior).items()
        if name not in said
    ]


def _elsewhere(made: Artifact, read: formats.Source) -> list[Statement]:
    """What is said of the behaviour of ``made`` by others than itself."""
    family = converters.get(made.family, read.naming)
    entry = matched_entry(read.sha256, family.name)
    said = [Statement(f"the registry's {entry.name}, whose file this is,", vars(entry.behavior))] if entry else []
    return [*from_source(family, read), *said]


def _own_uri(source: str | Path | None, read: formats.Source) -> str:
    """What an artifact records of your own file: its address, or its name and never its path."""
    if isinstance(source, str) and is_uri(source):
        return parse(source).uri
    return "file:" + read.path.name.encode(errors="backslashreplace").decode()  # a name need not be valid UTF-8


# --- writing an artifact -----------------------------------------------------------------------------------------


class ParityError(ZooError):
    """The torch side does not compute what the checkpoint computes; ``report`` says where."""

    def __init__(self, name: str, report: Report) -> None:
        super().__init__(
            f"{name}: parity failed, and nothing was written.",
            "See the table; --no-verify writes the artifact all the same and records that nothing was proven.",
        )
        self.report = report


@dataclass(frozen=True)
class ConversionResult:
    """An artifact on disk.

    Attributes:
        artifact: what was written.
        directory: where.
        report: the parity report; its status is "not_run", with the reason, where JAX is missing or was not wanted.
        matched: the registry entry that the source is, or None.
    """

    artifact: Artifact
    directory: Path
    report: Report
    matched: str | None


def make(
    name: str,
    *,
    source: str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
    verify: bool = True,
    pt: bool = False,
    access: Access | None = None,
    allowed: ConversionPolicy | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ConversionResult:
    """Convert, prove and write, all of it or nothing.

    Args:
        name: as for :func:`convert`, like ``source``, ``settings`` and ``access``.
        out: the artifact's directory; by default ``zoo/NAME``.
        force: replace an artifact that is there.
        verify: compare with the JAX original before writing.
        pt: also write ``model.pt``.
        allowed: as for :func:`convert`.
        progress: told what the comparison is doing, how many parts are done, and how many there are.

    Raises:
        ParityError: the comparison failed.
        ZooError: as :func:`convert`, or the directory is in the way.
    """
    directory = Path(out) if out is not None else Path("zoo") / name
    artifact.check_output(directory, force=force)
    made, read = _converted(name, source, settings, access, allowed)
    report = _proof(made, keep(read), verify, progress)
    if report.status == "failed":
        raise ParityError(made.name, report)
    made = replace(made, parity=report.to_dict())
    extra = {artifact.STATE_DICT: artifact.state_dict_file(made)} if pt else {}
    if report.vectors is not None:
        extra[artifact.VECTORS] = report.vectors
    artifact.write(made, directory, force=force, extra_files=extra)
    entry = matched_entry(made.source.sha256)
    return ConversionResult(made, directory, report, entry.name if entry else None)


def _proof(made: Artifact, path: Path, verify: bool, progress: Callable[[str, int, int], None] | None = None) -> Report:
    """The parity report; without ``verify``, as much of it as needs no JAX."""
    from pylo_zoo import parity

    if verify:
        return parity.verify(made, path, progress=progress)
    return parity.without_jax(made, formats.read(path), "--no-verify")


# --- and back ----------------------------------------------------------------------------------------------------


def export(made: Artifact, *, theta: bool = False) -> bytes:
    """The checkpoint that ``made`` was converted from, byte for byte.

    Args:
        made: the artifact.
        theta: instead, the weights as a JAX theta tree in flax msgpack, whatever the source was.

    Raises:
        ZooError: the artifact's weights, or its record of the source, have changed since; or the source was not
            flax's, or was cast, so that its bytes cannot be rebuilt.
    """
    if theta:
        leaves = _leaves(made)
        return formats.write(leaves, {"container": "flax-msgpack", "leaves": [list(path) for path in sorted(leaves)]})
    if made.source.layout.get("exact") is False or "cast" in made.source.layout:
        cast = made.source.layout.get("cast")
        why = f"cast from {', '.join(cast['from'])}" if cast else "not written by flax"
        raise ZooError(
            f"{made.name}: the source was {why}, and its exact bytes cannot be rebuilt.",
            "Use the original file, or --theta for a theta.state with the artifact's weights.",
        )
    data = formats.write(_leaves(made), made.source.layout)
    if (sha256 := hashlib.sha256(data).hexdigest()) != made.source.sha256:
        raise ZooError(
            f"{made.name}: the export has sha256 {sha256}, the source had {made.source.sha256}.",
            "The artifact was changed after its conversion; convert the checkpoint again.",
        )
    return data


def export_file(
    directory: str | Path, out: str | Path, *, force: bool = False, theta: bool = False
) -> tuple[bytes, bool]:
    """Export the artifact at ``directory`` to the file ``out``, in one step.

    Returns:
        The bytes, and whether they are the source's own.

    Raises:
        ZooError: as :func:`export`, or ``out`` exists and ``force`` is not set.
    """
    out = Path(out)
    if out.is_dir():
        raise ZooError(f"{out} is a directory.", "Give a file, such as --out theta.state.")
    if out.exists() and not force:
        raise ZooError(f"{out} already exists.", "Replace it with --force, or give another file with --out.")
    made = artifact.read(directory)
    data = export(made, theta=theta)
    write_file(out, data)
    return data, hashlib.sha256(data).hexdigest() == made.source.sha256


def _leaves(made: Artifact) -> dict[tuple[str, ...], np.ndarray]:
    tensors = {name: tensor.numpy() for name, tensor in made.tensors.items()}
    finite = "nonfinite" not in made.source.layout
    return converters.to_jax(converters.get(made.family), tensors, made.architecture, finite=finite)
