"""Whose names the arrays of a flat file have, and the tree that joined names such as ``nn/~/w0`` stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pylo_zoo.formats.arrays import Array, Path, refuse

JAX, PYLO = "jax", "pylo"
WRAPPERS = ("params", "theta", "state_dict")
"""Keys that files put around a tree: flax and haiku, our own documentation, torch."""
JAX_TOPS = ("nn", "ff_mod_stack", "rnn_params")
"""Keys at the top of the families' theta trees; PyLO's names begin with none of them (SPEC §8)."""
SLASHED = ("rnn", "linear")
"""Parts of the one key that contains a slash (SPEC §8)."""
JAX_HINT = "Name JAX's leaves by joined paths, such as 'nn/~/w0', or save a theta.state with flax."


def separator(names: Collection[str]) -> str | None:
    """The character that joins the keys of a theta tree in ``names``, ``"/"`` or ``"."``; None if these are not JAX's.

    Raises:
        ZooError: both occur.
    """
    found = {sep for name in names if (sep := _separator(name))}
    if len(found) > 1:
        refuse("some of its names are joined with dots and some with slashes.", JAX_HINT)
    return next(iter(found), None)


def _separator(name: str) -> str | None:
    for wrapper in ("", *WRAPPERS):
        for top in JAX_TOPS:
            for sep in "/.":
                if name.startswith((f"{wrapper}{sep}" if wrapper else "") + f"{top}{sep}"):
                    return sep
    return None


def split(name: str, sep: str) -> Path:
    """The path that ``name`` joins with ``sep``. Everywhere but in ``rnn/linear``, a slash separates keys.

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


def named(items: Iterable[tuple[str, Array]]) -> tuple[dict[Path, Array], str, dict[str, Any]]:
    """Leaves by path, their naming, and the record of a wrapper, for arrays that a torch file names.

    Raises:
        ZooError: two naming schemes are mixed, or arrays are beside a wrapper.
    """
    arrays = dict(items)
    sep = separator(arrays)
    if sep is None:
        leaves, layout = unwrap_prefix({(name,): array for name, array in arrays.items()})
        return leaves, PYLO, layout
    leaves, layout = unwrap_paths({split(name, sep): array for name, array in arrays.items()})
    return leaves, JAX, layout


def unwrap_paths(leaves: Mapping[Path, Array]) -> tuple[dict[Path, Array], dict[str, Any]]:
    """``leaves`` without a wrapper around the tree, and what is to be recorded of it, as ``pickles.unwrap`` does.

    Raises:
        ZooError: other arrays are beside the wrapper.
    """
    around = [key for key in WRAPPERS if any(path[0] == key and len(path) > 1 for path in leaves)]
    if not around:
        return dict(leaves), {}
    key = around[0]
    beside = [path for path in leaves if path[0] != key]
    if any(leaves[path].values.ndim for path in beside):
        refuse(
            f"{key} stands beside {', '.join(sorted({path[0] for path in beside}))}, and either may be the checkpoint.",
            f"Save the tree under {key} alone, and convert that.",
        )
    names = ["/".join(path) for path in beside]
    return (
        {path[1:]: array for path, array in leaves.items() if path[0] == key},
        {"wrapper": key, **({"beside": names} if names else {})},
    )


def unwrap_prefix(leaves: Mapping[Path, Array]) -> tuple[dict[Path, Array], dict[str, Any]]:
    """The same for PyLO's names, which are one key each: ``params.network.input.weight``."""
    for wrapper in WRAPPERS:
        prefix = f"{wrapper}."
        if leaves and all(path[0].startswith(prefix) for path in leaves):
            return {(path[0].removeprefix(prefix),): array for path, array in leaves.items()}, {"wrapper": wrapper}
    return dict(leaves), {}
