"""The declaration of a checkpoint family.

A family has a table of :class:`Rename` rows. A row is data: JAX leaves, a torch name, and a named layout change with
its inverse. Conversion, export and checks (``conversion.py``) are derived from the rows, expected shapes from the
network.
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

MAX_SIZE = 1 << 16
"""Maximum size in an architecture, so that a hostile file cannot make the network's shapes costly."""
MAX_LAYERS = 256
"""Maximum number of layers, because each costs a module and table rows. Published architectures have at most three."""
BYTES_PER_VALUE = 4
UNUSED = "unused."
"""Prefix of the torch names of leaves that the network does not use. They are kept for an exact export."""


# --- layout changes ----------------------------------------------------------------------------------------------


class Change(Protocol):
    """A layout change with its inverse. Both rearrange float32 arrays without changing values."""

    @property
    def name(self) -> str: ...

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray: ...

    def to_jax(self, tensor: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Identity:
    """One leaf, unchanged."""

    name: str = "identity"

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        (leaf,) = leaves
        return leaf

    def to_jax(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor]


@dataclass(frozen=True)
class Transpose:
    """``[*bank, in, out]`` → ``[*bank, out, in]``. With ``groups``, each group of inputs is a separate leaf."""

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
    """One torch tensor and its JAX leaves.

    ``like`` is for an unused leaf, which is not a tensor of the network: it names a tensor of the same shape.
    """

    leaves: tuple[Path, ...]
    tensor: str
    change: Change
    like: str | None = None


Table = tuple[Rename, ...]


@dataclass(frozen=True)
class GinClass:
    """The class that Google's ``config.gin`` configures, and the arguments of its constructor.

    Attributes:
        name: the class.
        defaults: arguments that are fields of the architecture or behavior, with the class's defaults, which apply if a
            gin file does not set them.
        optional: such arguments without a default.
        fixed: arguments with the only value that is implemented.
        ignored: arguments without an effect on the update.
    """

    name: str
    defaults: Mapping[str, Any]
    optional: frozenset[str]
    fixed: Mapping[str, Any]
    ignored: frozenset[str]

    def read(self, bindings: Mapping[str, Any]) -> dict[str, Any]:
        """Architecture and behavior values of a gin file with these ``bindings`` of the class.

        Raises:
            ZooError: an argument is unknown, or has a value that is not implemented.
        """
        known = {*self.defaults, *self.optional, *self.fixed, *self.ignored}
        for name, value in bindings.items():
            if name not in known:
                raise ZooError(
                    f"config.gin: {self.name}.{name} is unknown.",
                    f"Remove it if it has no effect: only the arguments of Google's {self.name} are supported.",
                )
            if name in self.fixed and value != self.fixed[name]:
                raise ZooError(
                    f"config.gin: {self.name}.{name} = {value!r} is another update rule.",
                    f"Use a checkpoint with {self.name}.{name} = {self.fixed[name]!r}.",
                )
        return {**self.defaults, **{key: value for key, value in bindings.items() if key in self._stated}}

    @property
    def _stated(self) -> set[str]:
        return {*self.defaults, *self.optional}


@dataclass(frozen=True, eq=False)
class Naming:
    """Another naming of a family's leaves.

    Attributes:
        table: returns the renames for an architecture.
        infer: returns the architecture of leaves.
        ignored: names of leaves in the files that no update uses.
        optional: leaves that the files lack, so that the user must supply them.
        hint: the hint of an error for missing leaves.
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
        name: the name that users type.
        title: the name in papers.
        paper: arXiv number.
        optimizer: ``"module:Class"`` of the optimizer.
        architecture: record of the sizes, which follow from the leaves' shapes.
        behavior: record of the settings that do not follow from shapes.
        released: the architecture of the published checkpoint.
        net: ``"module:Class"`` of the network, which is built from an architecture and a behavior. Parity runs its
            ``probe`` (:mod:`pylo_zoo.nets`).
        table: returns the renames for an architecture.
        infer: returns the architecture of leaves, or raises ZooError.
        defaults: arguments of the optimizer that an artifact can set, with the family's values. None disables one.
        reference: ``"module:NAME"`` of the JAX :class:`pylo_zoo.reference.Specification` that parity runs. Without one,
            parity compares only the leaves and reports "not_run".
        parity_hyper: arguments of the optimizer in parity's runs: those of a plausible run of 10 steps, with weight
            decay and clipping if the family has them.
        learns_all: whether it was meta-trained with its rule for every parameter. If not, embeddings and output heads
            need AdamW.
        per_element: whether its network runs once per parameter element, instead of once per tensor.
        advice: sentences for the model card: which parameters it updates, and what to tune.
        gin: the class that a ``config.gin`` configures for this family.
        containers: behavior by the checkpoint's container format.
        assumed: default behavior by container format, if nothing else sets it.
        pylo: PyLO's naming, for families that PyLO publishes.
        naming: the naming of ``table`` and ``infer``: ``"jax"``, or ``"pylo"`` in the result of :meth:`in_pylo`.
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
    learns_all: bool = False
    per_element: bool = True
    advice: tuple[str, ...] = ()
    gin: GinClass | None = None
    containers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assumed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pylo: Naming | None = None
    naming: str = "jax"
    ignored: re.Pattern[str] | None = None
    optional: frozenset[Path] = frozenset()
    hint: str = ""

    @property
    def has_learned_decays(self) -> bool:
        """Whether the decays of the accumulators are leaves of the checkpoint."""
        return any(row.tensor == "momentum_decays" for row in self.table(self.released))

    def in_pylo(self) -> Family | None:
        """The same family with PyLO's naming, or None if PyLO has none."""
        return None if self.pylo is None else replace(self, naming="pylo", pylo=None, **vars(self.pylo))

    def build(self, architecture: Any, behavior: Any) -> Any:
        """The network as a ``torch.nn.Module`` on the meta device."""
        import torch

        net = self.load(self.net)
        with torch.device("meta"):
            return net(architecture, behavior)

    def load(self, name: str) -> Any:
        """Import the object with the import string ``name``.

        Raises:
            ZooError: the import fails.
        """
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            what = f"The family {self.name} names {name!r}, which cannot be imported: {error}."
            raise ZooError(what, "Use 'module:NAME' of an installed package.") from error


@lru_cache(maxsize=32)
def net_shapes(family: Family, architecture: Any) -> dict[str, Shape]:
    """Name to shape of the network's state_dict."""
    for name, size in vars(architecture).items():
        limit = MAX_LAYERS if "layers" in name else MAX_SIZE
        if isinstance(size, int) and size > limit:
            raise ZooError(f"{name} of {family.name} is {size:,}.", f"Use a checkpoint with at most {limit:,}.")
    net = family.build(architecture, family.behavior())
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    size = BYTES_PER_VALUE * sum(map(math.prod, shapes.values()))
    if size > (limit := limits.max_bytes()):
        raise ZooError(f"{family.name} with this architecture has {size:,} bytes, over {limit:,}.", limits.RAISE)
    return shapes


def tensor_shapes(family: Family, architecture: Any) -> dict[str, Shape]:
    """Name to shape of all tensors of an artifact: those of the network, then the unused ones."""
    shapes = dict(net_shapes(family, architecture))
    for row in family.table(architecture):
        if row.like is not None:
            shapes[row.tensor] = shapes[row.like]
    return shapes


def leaf_shapes(family: Family, architecture: Any) -> dict[Path, Shape]:
    """Path to shape of all leaves of a checkpoint, from the tensors' shapes and the inverse layout changes."""
    tensors = tensor_shapes(family, architecture)
    shapes: dict[Path, Shape] = {}
    for row in family.table(architecture):
        leaves = row.change.to_jax(np.broadcast_to(np.float32(0), tensors[row.tensor]))
        shapes |= {path: leaf.shape for path, leaf in zip(row.leaves, leaves, strict=True)}
    return shapes


# --- inferring ---------------------------------------------------------------------------------------------------


def make_record(kind: type[config.Record], **sizes: int) -> config.Record:
    """Build and check an architecture record of ``sizes``."""
    return config.parse(kind, sizes, "architecture")


def axis_size(leaves: Leaves, path: Path, index: int) -> int:
    """The size of an axis of the leaf at ``path``, which determines a size of the architecture."""
    if path not in leaves:
        raise ZooError(f"leaf {'/'.join(path)} missing", "Run `pylo-zoo inspect FILE` to see every leaf.")
    shape = leaves[path].shape
    if not -len(shape) <= index < len(shape):
        hint = "Run `pylo-zoo inspect FILE` to see every leaf."
        raise ZooError(f"leaf {'/'.join(path)} of shape {list(shape)}, which has too few axes", hint)
    return shape[index]
