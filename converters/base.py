"""What a checkpoint family's file declares, and the accounting that every conversion goes through.

A family is a table of :class:`Rename` rows. A row is data: JAX leaves, torch name, and a named change of layout that
carries its own inverse. Conversion, export and the leaf check are all derived from the rows, and the expected shapes
from the network itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from pylo_zoo import config, limits
from pylo_zoo.errors import ZooError

Path = tuple[str, ...]
Leaves = Mapping[Path, np.ndarray]
Shape = tuple[int, ...]

SHOWN = 4
"""How many of the leaves that are wrong in one way an error lists."""
MAX_SIZE = 1 << 16
"""Largest size in an architecture: a hostile file must not make even the shapes of a network costly."""
MAX_LAYERS = 256
"""Most layers in an architecture: each costs a module and rows of a table. Published ones have three at most."""
BYTES_PER_VALUE = 4
UNUSED = "unused."
"""Begins the torch names of leaves that the network does not read, kept so that an export is exact."""


# --- layout changes ----------------------------------------------------------------------------------------------


class Change(Protocol):
    """A change of layout with its inverse; both work on float32 arrays and move values without touching them."""

    @property
    def name(self) -> str: ...

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray: ...

    def to_jax(self, tensor: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Identity:
    """One leaf as it is."""

    name: str = "identity"

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        (leaf,) = leaves
        return leaf

    def to_jax(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor]


@dataclass(frozen=True)
class Transpose:
    """``[*bank, in, out]`` → ``[*bank, out, in]``; with ``groups``, the inputs stand in one leaf a group of them."""

    groups: tuple[int, ...] = ()
    name: str = "transpose"

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(np.concatenate(leaves, axis=-2).swapaxes(-1, -2))

    def to_jax(self, tensor: np.ndarray) -> list[np.ndarray]:
        ends = list(accumulate(self.groups))[:-1]
        return np.split(tensor.swapaxes(-1, -2), ends, axis=-2)


IDENTITY = Identity()
TRANSPOSE = Transpose()


# --- tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rename:
    """One torch tensor and the JAX leaves that it is made of.

    ``like`` names the network's tensor whose shape a known-unused leaf has, since the network has none for it.
    """

    leaves: tuple[Path, ...]
    tensor: str
    change: Change
    like: str | None = None


Table = tuple[Rename, ...]


@dataclass(frozen=True)
class GinClass:
    """The class that Google's ``config.gin`` configures, by the names of its constructor's arguments.

    Attributes:
        name: the class.
        defaults: arguments that an architecture or behaviour field of the same name holds, with the class's defaults,
            which apply when a gin file is there but silent.
        optional: such arguments that say nothing when absent.
        fixed: arguments that must have this value, since the mathematics here knows no other.
        ignored: arguments without any effect on the update.
    """

    name: str
    defaults: Mapping[str, Any]
    optional: frozenset[str]
    fixed: Mapping[str, Any]
    ignored: frozenset[str]

    def read(self, bindings: Mapping[str, Any]) -> dict[str, Any]:
        """Architecture and behaviour values that a gin file with these ``bindings`` of the class states.

        Raises:
            ZooError: an argument is unknown, or has a value that changes the update in a way unknown here.
        """
        known = {*self.defaults, *self.optional, *self.fixed, *self.ignored}
        for name, value in bindings.items():
            if name not in known:
                raise ZooError(
                    f"config.gin: {self.name}.{name} is unknown.",
                    f"Only the arguments of Google's {self.name} are understood; remove it if it has no effect.",
                )
            if name in self.fixed and value != self.fixed[name]:
                raise ZooError(
                    f"config.gin: {self.name}.{name} = {value!r} is another update rule.",
                    f"Only {self.name}.{name} = {self.fixed[name]!r} is implemented.",
                )
        return {**self.defaults, **{key: value for key, value in bindings.items() if key in self._stated}}

    @property
    def _stated(self) -> set[str]:
        return {*self.defaults, *self.optional}


@dataclass(frozen=True, eq=False)
class Naming:
    """Other names of a family's tensors, with a table and an inference of their own.

    Attributes:
        table: the renames, given an architecture.
        infer: the architecture, given the leaves.
        ignored: names of leaves that are there and that no update reads.
        optional: leaves that the files leave out, so that somebody else has to say them.
        hint: what to do where leaves are missing.
    """

    table: Callable[[Any], Table]
    infer: Callable[[Leaves], Any]
    ignored: re.Pattern[str] | None = None
    optional: frozenset[Path] = frozenset()
    hint: str = ""


@dataclass(frozen=True, eq=False)
class Family:
    """A family of checkpoints.

    Attributes:
        name: as users type it.
        title: as papers write it.
        paper: arXiv number.
        optimizer: ``"module:Class"`` of the optimizer that trains with it.
        architecture: record of what the leaves' shapes say.
        behavior: record of what no shape says.
        released: the architecture of the published checkpoint.
        net: ``"module:Class"`` of the network, built from the two. Parity runs its ``probe`` (:mod:`pylo_zoo.nets`).
        table: the renames, given an architecture.
        infer: the architecture, given the leaves; raises ZooError where it cannot be read off.
        defaults: arguments of the optimizer that an artifact may set, with the family's own values; None is off.
        reference: ``"module:NAME"`` of the :class:`pylo_zoo.reference.Specification` in JAX that parity runs; without
            one, parity compares the leaves alone and says "not_run".
        parity_hyper: arguments of the optimizer in parity's runs: those of a plausible run of 10 steps, with weight
            decay and clipping where the family has them.
        gin: the class that a ``config.gin`` configures for this family.
        containers: behaviour that the kind of container a checkpoint comes in says.
        assumed: behaviour that it is given by that where nobody else says anything.
        pylo: PyLO's names, for the families that PyLO publishes.
        naming: whose names ``table`` and ``infer`` have: ``"jax"``, or ``"pylo"`` in what :meth:`in_pylo` gives.
        ignored: as in :class:`Naming`, like ``optional`` and ``hint``.
    """

    name: str
    title: str
    paper: str
    optimizer: str
    architecture: type[Any]
    behavior: type[Any]
    released: Any
    net: str
    table: Callable[[Any], Table]
    infer: Callable[[Leaves], Any]
    defaults: Mapping[str, float | None] = field(default_factory=dict)
    reference: str | None = None
    parity_hyper: Mapping[str, Any] = field(default_factory=dict)
    gin: GinClass | None = None
    containers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assumed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pylo: Naming | None = None
    naming: str = "jax"
    ignored: re.Pattern[str] | None = None
    optional: frozenset[Path] = frozenset()
    hint: str = ""

    def in_pylo(self) -> Family | None:
        """The same family with PyLO's names for its leaves."""
        return None if self.pylo is None else replace(self, naming="pylo", pylo=None, **vars(self.pylo))

    def build(self, architecture: Any, behavior: Any) -> Any:
        """The network as a ``torch.nn.Module``, its parameters unset and on the meta device."""
        import torch

        net = self.load(self.net)
        with torch.device("meta"):
            return net(architecture, behavior)

    def load(self, name: str) -> Any:
        """What the import string ``name``, one of the family's own, stands for.

        Raises:
            ZooError: there is no such thing.
        """
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            what = f"The family {self.name} names {name!r}, which cannot be imported: {error}."
            raise ZooError(what, "It must be 'module:NAME', in a package that is installed.") from error


@lru_cache(maxsize=32)
def net_shapes(family: Family, architecture: Any) -> dict[str, Shape]:
    """Name to shape of the network's state_dict."""
    for name, size in vars(architecture).items():
        limit = MAX_LAYERS if "layers" in name else MAX_SIZE
        if isinstance(size, int) and size > limit:
            raise ZooError(f"A {family.name} with {name} {size:,} is not read.", f"{name} goes up to {limit:,}.")
    net = family.build(architecture, family.behavior())
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    size = BYTES_PER_VALUE * sum(map(math.prod, shapes.values()))
    if size > (limit := limits.max_bytes()):
        raise ZooError(f"A {family.name} of this architecture has {size:,} bytes, more than {limit:,}.", limits.RAISE)
    return shapes


def tensor_shapes(family: Family, architecture: Any) -> dict[str, Shape]:
    """Name to shape of all tensors of an artifact: the network's, then the known-unused ones."""
    shapes = dict(net_shapes(family, architecture))
    for row in family.table(architecture):
        if row.like is not None:
            shapes[row.tensor] = shapes[row.like]
    return shapes


def leaf_shapes(family: Family, architecture: Any) -> dict[Path, Shape]:
    """Path to shape of all leaves of a checkpoint: the tensors' shapes, taken through the inverse changes."""
    tensors = tensor_shapes(family, architecture)
    shapes: dict[Path, Shape] = {}
    for row in family.table(architecture):
        leaves = row.change.to_jax(np.broadcast_to(np.float32(0), tensors[row.tensor]))
        shapes |= {path: leaf.shape for path, leaf in zip(row.leaves, leaves, strict=True)}
    return shapes


# --- conversion --------------------------------------------------------------------------------------------------


def to_torch(family: Family, leaves: Leaves, architecture: Any, *, finite: bool = True) -> dict[str, np.ndarray]:
    """Convert a theta tree.

    Args:
        family: the family.
        leaves: path to array, as read from a checkpoint.
        architecture: as inferred from the leaves, or stated.
        finite: refuse NaN and infinities.

    Returns:
        state_dict name to float32 array, known-unused leaves under ``unused.*``.

    Raises:
        ZooError: listing every kind of leaf that is missing, left over, of another shape or dtype, or not finite.
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
    """The inverse of :func:`to_torch`, with the same checks of the tensors."""
    expected = tensor_shapes(family, architecture)
    problems = [*structure_problems("tensors", tensors, expected), *value_problems("tensors", tensors, finite=finite)]
    _refuse(family, problems, "artifact")
    leaves: dict[Path, np.ndarray] = {}
    for row in family.table(architecture):
        leaves |= zip(row.leaves, row.change.to_jax(tensors[row.tensor]), strict=True)
    return leaves


def structure_problems(what: str, found: Mapping[Any, np.ndarray], expected: Mapping[Any, Shape]) -> list[str]:
    """How the names and shapes of ``found`` differ from the ``expected`` ones; empty where they do not.

    Args:
        what: how to call them, such as ``"leaves"``.
        found: leaf path, or tensor name, to array.
        expected: the same keys to shapes.
    """
    return _listed(
        {
            f"{what} missing": [f"{_name(key)} {list(shape)}" for key, shape in expected.items() if key not in found],
            f"{what} that this family does not have": [_name(key) for key in found if key not in expected],
            f"{what} of another shape": [
                f"{_name(key)} {list(array.shape)} instead of {list(expected[key])}"
                for key, array in found.items()
                if key in expected and array.shape != expected[key]
            ],
        }
    )


def value_problems(
    what: str, found: Mapping[Any, np.ndarray], dtypes: Mapping[Any, str] | None = None, *, finite: bool = True
) -> list[str]:
    """Which arrays of ``found`` are not float32, or not finite.

    Args:
        what: how to call them, such as ``"leaves"``.
        found: leaf path, or tensor name, to array.
        dtypes: names of the dtypes that their file has, where these may be others.
        finite: whether NaN and infinities are a problem.
    """
    named = {key: array.dtype.name for key, array in found.items()} | dict(dtypes or {})
    wrong = {_name(key): dtype for key, dtype in named.items() if dtype != "float32"}
    return _listed(
        {
            f"{what} that are not float32": [f"{name} {dtype}" for name, dtype in wrong.items()],
            f"{what} with NaN or infinite values": [
                _name(key)
                for key, array in found.items()
                if finite and _name(key) not in wrong and not np.isfinite(array).all()
            ],
        }
    )


def _name(key: Path | str) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _listed(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence for every kind that has any, naming the first few."""
    sentences: list[str] = []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            sentences.append(f"{kind} ({len(names)}): {', '.join(names[:SHOWN])}{more}")
    return sentences


def _refuse(family: Family, problems: Sequence[str], what: str) -> None:
    if problems:
        raise ZooError(
            f"This {what} is no {family.name}: {'; '.join(problems)}.",
            "`pylo-zoo inspect FILE` shows every leaf and the families that fit.",
        )


# --- inferring ---------------------------------------------------------------------------------------------------


def record(kind: type[config.Record], **sizes: int) -> config.Record:
    """An architecture record of ``sizes``, checked."""
    return config.parse(kind, sizes, "architecture")


def axis(leaves: Leaves, path: Path, index: int) -> int:
    """The size of an axis of the leaf at ``path``, from which an architecture is read off."""
    if path not in leaves:
        raise ZooError(f"leaf {'/'.join(path)} missing", "`pylo-zoo inspect FILE` shows every leaf.")
    shape = leaves[path].shape
    if not -len(shape) <= index < len(shape):
        raise ZooError(f"leaf {'/'.join(path)} of shape {list(shape)}", "It has too few axes.")
    return shape[index]
