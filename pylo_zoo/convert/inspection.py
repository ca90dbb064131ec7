"""What a file is, and what would stop its conversion; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylo_zoo import config, converters, formats, limits
from pylo_zoo.convert.leaves import needed
from pylo_zoo.convert.sources import matched_entry
from pylo_zoo.convert.statements import from_source, resolve_fields
from pylo_zoo.errors import ZooError


@dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """All that :func:`inspect` finds.

    Attributes:
        file: the file's name.
        format: of the file (:class:`pylo_zoo.formats.Source`).
        bytes: its length.
        sha256: of the file.
        exact: whether an export gives back the very same bytes.
        matched: the registry entry with this sha256, or None.
        families: that the tree fits; more than one where families share a tree.
        architecture: inferred from the tree, or None where no family fits.
        behavior: what the source itself says of it, or None where it says nothing.
        config: bindings of the gin file, or None.
        leaves: every array, in the file's order.
        problems: what would stop a conversion; empty where nothing does.
        notes: what a family's file leaves out, so that `convert` has to be told where the registry does not know it.
        needs: flags of `convert` that permit what the problems are about; empty where nothing helps, or need be.
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
        """The same as JSON holds it."""
        leaves = [{"path": leaf.path, "shape": list(leaf.shape), "dtype": leaf.dtype} for leaf in self.leaves]
        lists = {key: list(getattr(self, key)) for key in ("families", "problems", "needs", "notes")}
        return {**vars(self), **lists, "leaves": leaves}


def inspect(path: str | Path, *, max_bytes: int | None = None) -> Inspection:
    """Look at the checkpoint at ``path``.

    Args:
        path: a file, or a directory.
        max_bytes: the limit of :mod:`pylo_zoo.limits`, for this file.

    Raises:
        ZooError: it cannot be read at all.
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
    needs = needed(family, source) if families and problems else []
    architecture = behavior = None
    if families:
        architecture = family.infer(prepared.leaves)
        try:
            statements = from_source(family, source)
            architecture, settled = resolve_fields(family, architecture, statements)
            behavior = config.to_dict(settled) if statements else None
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
        leaves=tuple(Leaf("/".join(path), leaf.shape, source.dtypes[path]) for path, leaf in source.leaves.items()),
        problems=tuple(problems),
        needs=tuple(needs),
        notes=tuple(_left_out(families, source)),
    )


def _left_out(families: tuple[str, ...], source: formats.Source) -> Iterator[str]:
    for name in families:
        optional = converters.get(name, source.naming).optional
        if absent := sorted("/".join(path) for path in optional - source.leaves.keys()):
            yield f"{name}: the file lacks {', '.join(absent)}; --set gives them, unless the registry knows the file"
