"""Converts checkpoints to artifacts, and back to the same bytes.

:func:`inspect` describes a checkpoint. :func:`convert` converts it in memory. :func:`export` rebuilds the checkpoint.
:func:`pylo_zoo.pipeline.build_artifact` converts, checks parity and writes the artifact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pylo_zoo import __version__, config, converters, formats, limits
from pylo_zoo import artifact as artifacts
from pylo_zoo.artifact import Artifact, Converter, SourceRecord
from pylo_zoo.convert.cache import cached_source, home, store_copy
from pylo_zoo.convert.inspection import Inspection, inspect
from pylo_zoo.convert.leaves import ConversionPolicy, select_leaves
from pylo_zoo.convert.sources import matched_entry, original, read_registered_file, read_user_file
from pylo_zoo.convert.statements import SETTINGS, Statement, from_source, parse_settings, resolve_fields
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, is_uri, parse
from pylo_zoo.files import REPLACE, check_directory_target, check_target, write_file

if TYPE_CHECKING:
    from pylo_zoo.registry import Entry

__all__ = [
    "ConversionPolicy",
    "Inspection",
    "cached_source",
    "convert",
    "convert_checkpoint",
    "export",
    "export_file",
    "home",
    "inspect",
    "matched_entry",
    "original",
    "parse_settings",
    "store_copy",
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
        name: a registry entry; with ``source``, a family.
        source: a checkpoint file or directory, or its address. If its sha256 is that of a registry entry of the same
            family, the entry's behavior applies.
        settings: architecture or behavior fields that the files do not state, or learned decays that they omit.
        access: download options.
        allowed: permitted changes of leaves that are not float32 or not finite; by default none.
        max_bytes: the size limit for the file (:mod:`pylo_zoo.limits`).

    Returns:
        The artifact, in memory. Only downloads are written, to the cache.

    Raises:
        ZooError: the file is unavailable, unreadable or of another family; a field is unknown; or statements differ.
    """
    with limits.allow(max_bytes):
        return convert_checkpoint(name, source, settings, access, allowed)[0]


def convert_checkpoint(
    name: str,
    source: str | Path | None,
    settings: Mapping[str, Any] | None,
    access: Access | None,
    allowed: ConversionPolicy | None,
) -> tuple[Artifact, formats.Source]:
    """The artifact that :func:`convert` returns, and its source."""
    if source is not None:
        family, checkpoint = read_user_file(name, source, access)
        entry = matched_entry(checkpoint.sha256, family.name)
        records = [entry.behavior] if entry else []
    else:
        entry, checkpoint = read_registered_file(name, access)
        family = converters.get(entry.family, checkpoint.naming)
        records = [record for record in (entry.architecture, entry.behavior) if record is not None]
    policy = allowed or ConversionPolicy()
    leaves, fields, layout = select_leaves(family, checkpoint, entry, settings or {}, policy)
    architecture, behavior = resolve_fields(
        family,
        family.infer(leaves),
        [
            *from_source(family, checkpoint),
            *(_registry_statement(entry, record) for record in records if entry),
            Statement(SETTINGS, fields),
        ],
        fallback=family.behavior(**family.assumed.get(checkpoint.format, {})),
    )
    tensors = converters.to_torch(family, leaves, architecture, finite=not policy.nonfinite)
    defaults = {key: value for key, value in family.defaults.items() if value is not None}
    artifact = Artifact(
        family=family.name,
        name=entry.name if entry else family.name,
        architecture=architecture,
        behavior=behavior,
        defaults={**defaults, **(entry.defaults if entry else {})},
        source=SourceRecord(
            uri=entry.weights.uri if entry else _source_uri(source, checkpoint),
            sha256=checkpoint.sha256,
            bytes=checkpoint.bytes,
            license=entry.license if entry else "unknown",
            format=checkpoint.format,
            layout=layout,
        ),
        converter=Converter(version=__version__),
        tensors={key: torch.from_numpy(np.array(tensor)) for key, tensor in tensors.items()},
    )
    return artifact, checkpoint


def contradictions(artifact: Artifact, source: formats.Source) -> list[str]:
    """Differences between the behavior of ``artifact`` and the statements of the source's files and the registry."""
    own = Statement("the artifact", config.to_dict(artifact.behavior))
    try:
        family = converters.get(artifact.family, source.naming)
        resolve_fields(family, artifact.architecture, [*_external_statements(artifact, source), own])
    except ZooError as error:
        return [error.message]
    return []


def unstated(artifact: Artifact, source: formats.Source) -> list[str]:
    """The behavior fields of ``artifact`` that neither the source's files nor the registry state.

    These values are unverified: the family's released values, or edits by ``--set`` or by hand.
    """
    try:
        stated = {name for statement in _external_statements(artifact, source) for name in statement.values}
    except ZooError:
        stated = set()
    released = config.to_dict(converters.get(artifact.family).behavior())
    return [
        f"{name} = {value}" + ("" if value == released[name] else f" (released value: {released[name]})")
        for name, value in config.to_dict(artifact.behavior).items()
        if name not in stated
    ]


def _external_statements(artifact: Artifact, source: formats.Source) -> list[Statement]:
    """The statements of the source's files and of the registry about the behavior of ``artifact``."""
    family = converters.get(artifact.family, source.naming)
    entry = matched_entry(source.sha256, family.name)
    return [*from_source(family, source), *([_registry_statement(entry, entry.behavior)] if entry else [])]


def _registry_statement(entry: Entry, record: Any) -> Statement:
    return Statement(f"the registry entry {entry.name}", vars(record))


def _source_uri(source: str | Path | None, checkpoint: formats.Source) -> str:
    """The address of a user's file, or its name without the local path."""
    if isinstance(source, str) and is_uri(source):
        return parse(source).uri
    return "file:" + checkpoint.path.name.encode(errors="backslashreplace").decode()  # a name need not be valid UTF-8


# --- export ------------------------------------------------------------------------------------------------------


def export(artifact: Artifact, *, theta: bool = False) -> bytes:
    """Rebuild the checkpoint that ``artifact`` was converted from, byte for byte.

    Args:
        artifact: the artifact.
        theta: return the weights as a JAX theta tree in flax msgpack instead, whatever the source was.

    Raises:
        ZooError: the artifact has changed since its conversion, or the source was cast or not written by flax, so its
            bytes cannot be rebuilt.
    """
    if theta:
        leaves = _leaves(artifact)
        return formats.write(leaves, {"container": "flax-msgpack", "leaves": [list(path) for path in sorted(leaves)]})
    layout = artifact.source.layout
    if layout.get("exact") is False or "cast" in layout:
        cast = layout.get("cast")
        reason = f"cast from {', '.join(cast['from'])}" if cast else "not written by flax"
        raise ZooError(
            f"{artifact.name}: the source was {reason}, so its exact bytes cannot be rebuilt.",
            "Use the original file, or export a theta.state with --theta (in Python, theta=True).",
        )
    data = formats.write(_leaves(artifact), layout)
    if (sha256 := hashlib.sha256(data).hexdigest()) != artifact.source.sha256:
        raise ZooError(
            f"{artifact.name} has changed since its conversion: the export has sha256 {sha256}, the source had "
            f"{artifact.source.sha256}.",
            "Convert the checkpoint again.",
        )
    return data


def export_file(
    directory: str | Path, out: str | Path, *, force: bool = False, theta: bool = False
) -> tuple[bytes, bool]:
    """Export the artifact at ``directory`` to the file ``out``, in one step.

    Returns:
        The bytes, and whether they equal the source's.

    Raises:
        ZooError: see :func:`export`; or ``out`` exists and ``force`` is not set, or ``out`` is a file of an artifact.
    """
    out = Path(out)
    if out.is_dir():
        raise ZooError(f"{out} is a directory.", "Choose a file name, such as theta.state.")
    if out.exists() and not force:
        raise ZooError(f"{out} already exists.", f"Replace it with {REPLACE}, or choose another file.")
    artifacts.check_not_own_file(out)
    check_target(out) if out.parent.is_dir() else check_directory_target(out)
    artifact = artifacts.read(directory)
    data = export(artifact, theta=theta)
    write_file(out, data)
    return data, hashlib.sha256(data).hexdigest() == artifact.source.sha256


def _leaves(artifact: Artifact) -> dict[tuple[str, ...], np.ndarray]:
    tensors = {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
    finite = "nonfinite" not in artifact.source.layout
    return converters.to_jax(converters.get(artifact.family), tensors, artifact.architecture, finite=finite)
