"""Conversion of a theta tree to a torch state_dict and back, by a family's table and with checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pylo_zoo.converters.base import Family, Leaves, Path, Shape, leaf_shapes, tensor_shapes
from pylo_zoo.errors import ZooError

SHOWN = 4
"""Maximum number of leaves that an error lists for one kind of problem."""


def to_torch(family: Family, leaves: Leaves, architecture: Any, *, finite: bool = True) -> dict[str, np.ndarray]:
    """Convert a theta tree.

    Args:
        family: the family.
        leaves: path to array, as read from a checkpoint.
        architecture: the architecture, inferred from the leaves or given.
        finite: whether to reject NaN and infinities.

    Returns:
        state_dict name to float32 array, with unused leaves under ``unused.*``.

    Raises:
        ZooError: leaves are missing, unknown, of another shape or dtype, or not finite. It lists the leaves by kind.
    """
    expected = leaf_shapes(family, architecture)
    problems = [*structure_problems("leaves", leaves, expected), *value_problems("leaves", leaves, finite=finite)]
    _refuse(family, problems, "checkpoint")
    return {
        row.tensor: row.change.to_torch([leaves[path] for path in row.leaves]) for row in family.table(architecture)
    }


def to_jax(
    family: Family, tensors: Mapping[str, np.ndarray], architecture: Any, *, finite: bool = True
) -> dict[Path, np.ndarray]:
    """The inverse of :func:`to_torch`, with the same checks."""
    expected = tensor_shapes(family, architecture)
    problems = [*structure_problems("tensors", tensors, expected), *value_problems("tensors", tensors, finite=finite)]
    _refuse(family, problems, "artifact")
    leaves: dict[Path, np.ndarray] = {}
    for row in family.table(architecture):
        leaves |= zip(row.leaves, row.change.to_jax(tensors[row.tensor]), strict=True)
    return leaves


def structure_problems(what: str, arrays: Mapping[Any, np.ndarray], expected: Mapping[Any, Shape]) -> list[str]:
    """The differences of names and shapes between ``arrays`` and ``expected``, as sentences. Empty if they match.

    Args:
        what: the noun in the sentences, such as ``"leaves"``.
        arrays: leaf path, or tensor name, to array.
        expected: the same keys to shapes.
    """
    return _list_by_kind(
        {
            f"{what} missing": [f"{_name(key)} {list(shape)}" for key, shape in expected.items() if key not in arrays],
            f"{what} that this family does not have": [_name(key) for key in arrays if key not in expected],
            f"{what} of another shape": [
                f"{_name(key)} {list(array.shape)} instead of {list(expected[key])}"
                for key, array in arrays.items()
                if key in expected and array.shape != expected[key]
            ],
        }
    )


def value_problems(
    what: str, arrays: Mapping[Any, np.ndarray], dtypes: Mapping[Any, str] | None = None, *, finite: bool = True
) -> list[str]:
    """The arrays that are not float32, or not finite, as sentences.

    Args:
        what: the noun in the sentences, such as ``"leaves"``.
        arrays: leaf path, or tensor name, to array.
        dtypes: names of the dtypes in the file, if they differ from the arrays'.
        finite: whether NaN and infinities are problems.
    """
    named = {key: array.dtype.name for key, array in arrays.items()} | dict(dtypes or {})
    wrong = {_name(key): dtype for key, dtype in named.items() if dtype != "float32"}
    return _list_by_kind(
        {
            f"{what} that are not float32": [f"{name} {dtype}" for name, dtype in wrong.items()],
            f"{what} with NaN or infinite values": [
                _name(key)
                for key, array in arrays.items()
                if finite and _name(key) not in wrong and not np.isfinite(array).all()
            ],
        }
    )


def _name(key: Path | str) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _list_by_kind(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence per kind of problem, with the first few names."""
    sentences: list[str] = []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            sentences.append(f"{kind} ({len(names)}): {', '.join(names[:SHOWN])}{more}")
    return sentences


def _refuse(family: Family, problems: Sequence[str], what: str) -> None:
    if problems:
        raise ZooError(
            f"This {what} does not match {family.name}: {'; '.join(problems)}.",
            "Run `pylo-zoo inspect FILE` to see every leaf and the matching families.",
        )
