"""Describes a checkpoint file and what prevents its conversion. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylo_zoo import config, converters, formats, limits
from pylo_zoo.convert.leaves import required_flags
from pylo_zoo.convert.sources import matched_entry
from pylo_zoo.convert.statements import SETTINGS, from_source, resolve_fields
from pylo_zoo.errors import ZooError


@dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """The result of :func:`inspect`.

    Attributes:
        file: the file's name.
        format: the file's format (:class:`pylo_zoo.formats.Source`).
        bytes: the file's size.
        sha256: the file's sha256.
        exact: whether an export reproduces the same bytes.
        matched: the registry entry with this sha256, or None.
        families: the families that the tree fits; several if families share a tree.
        architecture: inferred from the tree, or None if no family fits.
        behavior: the behavior that the source states, or None.
        config: bindings of the gin file, or None.
        leaves: every array, sorted by path.
        problems: reasons that prevent a conversion.
        notes: missing values that `convert` needs, unless the registry has them.
        needs: flags of `convert` that permit the problems.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    exact: bool
    matched: str | None
    families: tuple[str, ...]
    architecture: dict[str, Any] | None
    behavior: dict[str, Any] | None
    config: dict[str, Any] | None
    leaves: tuple[Leaf, ...]
    problems: tuple[str, ...]
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON."""
        leaves = [{"path": leaf.path, "shape": list(leaf.shape), "dtype": leaf.dtype} for leaf in self.leaves]
        lists = {key: list(getattr(self, key)) for key in ("families", "problems", "needs", "notes")}
        return {**vars(self), **lists, "leaves": leaves}


def inspect(path: str | Path, *, max_bytes: int | None = None) -> Inspection:
    """Inspect the checkpoint at ``path``.

    Args:
        path: a file or a directory.
        max_bytes: the size limit for it (:mod:`pylo_zoo.limits`).

    Raises:
        ZooError: it cannot be read.
    """
    with limits.allow(max_bytes):
        return _inspect(Path(path))


def _inspect(path: Path) -> Inspection:
    source = formats.read(path)
    entry = matched_entry(source.sha256)
    fits = converters.candidates(source.leaves, source.naming)
    families = tuple(sorted(fits, key=lambda name: entry is None or name != entry.family))
    naming = source.naming
    family = converters.get(families[0], naming) if families else converters.nearest(source.leaves, naming)
    prepared = converters.prepare(family, source.leaves, source.dtypes, cast=False)
    nearest = "" if families else f"nearest family {family.name}: "
    problems = [nearest + problem for problem in converters.diagnose(family, prepared.leaves, prepared.dtypes)]
    needs = required_flags(family, source) if families and problems else []
    architecture = behavior = None
    if families:
        architecture = family.infer(prepared.leaves)
        try:
            statements = from_source(family, source)
            architecture, resolved = resolve_fields(family, architecture, statements)
            behavior = config.to_dict(resolved) if statements else None
        except ZooError as error:
            problems.append(error.message)
            needs = []
    return Inspection(
        file=source.path.name,
        format=source.format,
        bytes=source.bytes,
        sha256=source.sha256,
        exact=source.layout["exact"],
        matched=entry.name if entry else None,
        families=families,
        architecture=config.to_dict(architecture) if architecture else None,
        behavior=behavior,
        config=source.config,
        leaves=tuple(
            Leaf("/".join(path), leaf.shape, source.dtypes[path]) for path, leaf in sorted(source.leaves.items())
        ),
        problems=tuple(problems),
        needs=tuple(needs),
        notes=tuple(_missing_values(families, source)),
    )


def _missing_values(families: tuple[str, ...], source: formats.Source) -> Iterator[str]:
    for name in families:
        optional = converters.get(name, source.naming).optional
        if absent := sorted("/".join(path) for path in optional - source.leaves.keys()):
            yield f"{name}: the file lacks {', '.join(absent)}; pass them in {SETTINGS}, unless the registry has them"
