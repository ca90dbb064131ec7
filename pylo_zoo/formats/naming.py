"""Determines the naming scheme of a flat file's arrays, and splits joined names such as ``nn/~/w0`` into paths."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pylo_zoo import converters
from pylo_zoo.formats.arrays import Array, Path, refuse, wrapper_record

JAX, PYLO = "jax", "pylo"
WRAPPERS = ("params", "theta", "state_dict")
"""Keys that wrap a tree: in flax and haiku, in this package's documentation, in torch."""
SLASHED = ("rnn", "linear")
"""Parts of the only key that contains a slash (SPEC §8)."""
JAX_HINT = "Name the leaves by joined paths, such as 'nn/~/w0', or save a theta.state with flax."


def separator(names: Collection[str]) -> str | None:
    """The separator of JAX names, ``"/"`` or ``"."``; None if ``names`` are not JAX names.

    Raises:
        ZooError: both separators occur.
    """
    tops = jax_tops()
    separators = {sep for name in names if (sep := _separator(name, tops))}
    if len(separators) > 1:
        refuse("some of its names are joined with dots and some with slashes.", JAX_HINT)
    return next(iter(separators), None)


def jax_tops() -> frozenset[str]:
    """Top-level keys of the families' theta trees with which no PyLO name begins (SPEC §8)."""
    jax = {path[0] for path in _paths(JAX) if len(path) > 1}
    return frozenset(jax - {path[0].partition(".")[0] for path in _paths(PYLO)})


def _paths(naming: str) -> Iterator[Path]:
    for family in converters.NAMINGS[naming].values():
        for row in family.table(family.released):
            yield from row.leaves


def _separator(name: str, tops: Collection[str]) -> str | None:
    for wrapper in ("", *WRAPPERS):
        for top in tops:
            for sep in "/.":
                if name.startswith((f"{wrapper}{sep}" if wrapper else "") + f"{top}{sep}"):
                    return sep
    return None


def split(name: str, sep: str) -> Path:
    """Split ``name`` at ``sep`` into a path. The key ``rnn/linear`` stays whole.

    Raises:
        ZooError: a key is empty.
    """
    parts = name.split(sep)
    if "" in parts:
        refuse(f"the name {name} has an empty part.", JAX_HINT)
    for i in range(len(parts) - 2):
        if tuple(parts[i : i + 2]) == SLASHED:
            return (*parts[:i], "/".join(SLASHED), *parts[i + 2 :])
    return tuple(parts)


def split_names(items: Iterable[tuple[str, Array]]) -> tuple[dict[Path, Array], str, dict[str, Any]]:
    """Leaves by path, their naming scheme, and the layout fields of a wrapper, for the named arrays of a torch file.

    Raises:
        ZooError: two naming schemes are mixed, or arrays exist outside a wrapper.
    """
    arrays = dict(items)
    sep = separator(arrays)
    if sep is None:
        leaves, layout = unwrap_prefix({(name,): array for name, array in arrays.items()})
        return leaves, PYLO, layout
    leaves, layout = unwrap_paths({split(name, sep): array for name, array in arrays.items()})
    return leaves, JAX, layout


def unwrap_paths(leaves: Mapping[Path, Array]) -> tuple[dict[Path, Array], dict[str, Any]]:
    """``leaves`` without a wrapper around the tree, and the layout fields of the wrapper.

    Raises:
        ZooError: other arrays exist outside the wrapper.
    """
    wrapper = next((key for key in WRAPPERS if any(path[0] == key and len(path) > 1 for path in leaves)), None)
    if wrapper is None:
        return dict(leaves), {}
    others = [path for path in leaves if path[0] != wrapper]
    if any(leaves[path].values.ndim for path in others):
        names = ", ".join(sorted({path[0] for path in others}))
        refuse(
            f"it has both {wrapper} and {names}, and each may be the checkpoint.",
            f"Save only the tree under {wrapper}.",
        )
    tree = {path[1:]: array for path, array in leaves.items() if path[0] == wrapper}
    return tree, wrapper_record(wrapper, ["/".join(path) for path in others])


def unwrap_prefix(leaves: Mapping[Path, Array]) -> tuple[dict[Path, Array], dict[str, Any]]:
    """Like :func:`unwrap_paths`, for PyLO names such as ``params.network.input.weight``, which are a single key."""
    for wrapper in WRAPPERS:
        prefix = f"{wrapper}."
        if leaves and all(path[0].startswith(prefix) for path in leaves):
            return {(path[0].removeprefix(prefix),): array for path, array in leaves.items()}, {"wrapper": wrapper}
    return dict(leaves), {}
