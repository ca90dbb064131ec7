"""Pickles of nested dicts of numpy or jax arrays, such as ELO's ``global_step*.pickle``.

:mod:`pylo_zoo.formats.pickle_machine` runs the opcodes and only notes calls; here the notes of numpy, jax, haiku and
flax are read. Neither of them is needed, and none of their code is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_NESTING, NARROW, Array, Budget, Decoded, collect, flatten, rebuild, refuse
from pylo_zoo.formats.pickle_machine import HINT, Call, Global, Machine

CONTAINER = "pickle"
PROTOCOLS = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))
"""How pickles begin."""
MAX_NODES = 20_000
"""Values that a walk over the tree may meet; shared ones count each time, so that sharing cannot multiply."""

CORES = ("numpy.core", "numpy._core")
"""numpy's core before version 2, and since."""
RECONSTRUCT = frozenset(f"{core}.multiarray._reconstruct" for core in CORES)
FROMBUFFER = frozenset(f"{core}.numeric._frombuffer" for core in CORES)
SCALAR = frozenset(f"{core}.multiarray.scalar" for core in CORES)
JAX = frozenset({"jax._src.array._reconstruct_array", "jax._src.device_array.reconstruct_device_array"})
NARROW_DTYPES = {f"ml_dtypes.{name}": name for name in NARROW}
ORDERED, FROZEN = "collections.OrderedDict", "flax.core.frozen_dict.FrozenDict"
FLAT = "haiku._src.data_structures.FlatMapping"
GLOBALS = frozenset(
    {*RECONSTRUCT, *FROMBUFFER, *SCALAR, *JAX, *NARROW_DTYPES, ORDERED, FROZEN, FLAT}
    | {"numpy.ndarray", "numpy.dtype", "_codecs.encode", "__builtin__.bytes"}
)
"""All that a pickle may mention (HUB.md, "Untrusted checkpoints")."""

CODE = re.compile(r"[fiu][1248]|b1")
KINDS = {"f": "float", "i": "int", "u": "uint"}
WRAPPERS = ("params", "theta")
"""Keys that may stand around a theta tree."""


def recognizes(data: bytes) -> bool:
    """Whether ``data`` begins as a pickle of protocol 2 to 5 does."""
    return data.startswith(PROTOCOLS)


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` is what an error calls it.

    Raises:
        ZooError: the pickle is damaged, holds anything but arrays in dicts, or mentions anything that these do not.
    """
    try:
        reader = Reader()
        tree, layout = unwrap(reader.tree(Machine(data, GLOBALS).run()))
        return collect(CONTAINER, flatten(tree), layout)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def unwrap(tree: Any, wrappers: tuple[str, ...] = WRAPPERS) -> tuple[Any, dict[str, Any]]:
    """The theta tree inside ``tree``, and what is to be recorded of what stood around it.

    A ``params`` or ``theta`` is taken off where nothing but plain values (a step, a name) stands beside it.

    Raises:
        ZooError: other arrays stand beside it, so that nobody can say which of them is the checkpoint.
    """
    around = [key for key in wrappers if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping)]
    if not around:
        return tree, {}
    key = around[0]
    beside = [other for other in tree if other != key]
    if not all(_is_plain(tree[other]) for other in beside):
        refuse(
            f"{key} stands beside {', '.join(beside)}, and either may be the checkpoint.",
            f"Save the tree under {key} alone, and convert that.",
        )
    return tree[key], {"wrapper": key, **({"beside": beside} if beside else {})}


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a step, a name or the like, and certainly no part of a checkpoint."""
    return isinstance(value, (str, int, float, type(None))) or (isinstance(value, Array) and value.values.ndim == 0)


def _bad(what: str) -> NoReturn:
    refuse(f"{what}.", HINT)


class Reader:
    """Reads the notes of a machine; an array that stands in several places is rebuilt once."""

    def __init__(self) -> None:
        self.nodes = 0
        self.arrays: dict[int, Array] = {}  # by identity: the machine's result keeps every node alive
        self.budget = Budget()

    def tree(self, node: Any, depth: int = 0) -> Any:
        """``node`` with its mappings as dicts and its arrays as :class:`Array`; anything else as it is."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_NESTING + 1:
            _bad("its dicts are nested too deeply, or hold each other")
        if isinstance(mapping := self.mapping(node), dict):
            return {key: self.tree(child, depth + 1) for key, child in mapping.items()}
        return self.array(node) if isinstance(node, Call) else node

    def mapping(self, node: Any) -> dict[str, Any] | None:
        """The items of a dict or of one of the containers that stand for one."""
        if not isinstance(node, Call):
            return node if isinstance(node, dict) else None
        inner: Any = None
        match node.function, node.args:
            case ("collections.OrderedDict", ()):
                return node.items  # a state is what torch keeps beside a state_dict, its modules' versions
            case ("flax.core.frozen_dict.FrozenDict" | "haiku._src.data_structures.FlatMapping", (dict() as inner,)):
                known = node.state is None
            case ("haiku._src.data_structures.FlatMapping", ()) if isinstance(node.state, dict):
                inner = node.state.get("_mapping")
                known = isinstance(inner, dict)
            case (function, _):
                if function in (ORDERED, FROZEN, FLAT):
                    _bad(f"a {function.rpartition('.')[2]} is not built from one dict")
                return None
        if not known or node.items:
            _bad("a frozen dict is changed")
        return inner

    def array(self, node: Any) -> Array:
        """The array that ``node`` stands for."""
        if not isinstance(node, Call):
            _bad(f"{type(node).__name__} stands where an array should")
        if id(node) not in self.arrays:
            if node.items:
                _bad("an array has items set")
            self.arrays[id(node)] = self._array(node)
        return self.arrays[id(node)]

    def _array(self, node: Call) -> Array:
        if node.function in RECONSTRUCT:
            return self._reconstructed(node.args, node.state)
        if node.state is not None:
            _bad("an array has a state set")
        match node.args:
            case (buffer, dtype, tuple(shape), "C" | "F" as order) if node.function in FROMBUFFER:
                return self._rebuilt(shape, dtype, order == "F", buffer)
            case (dtype, raw) if node.function in SCALAR:
                return self._rebuilt((), dtype, False, raw)
            case (Global(name=name), tuple(args), state, dict()) if node.function in JAX and name in RECONSTRUCT:
                return self._reconstructed(args, state)
        _bad(f"{node.function} is called in an unknown way")

    def _reconstructed(self, args: tuple[Any, ...], state: Any) -> Array:
        match args, state:
            case (Global(name="numpy.ndarray"), (0,), _), (1, tuple(shape), dtype, bool(fortran), raw):
                return self._rebuilt(shape, dtype, fortran, raw)
        _bad("an array is not stored as version, shape, dtype, order and bytes")

    def _rebuilt(self, shape: tuple[Any, ...], dtype: Any, fortran: bool, raw: Any) -> Array:
        name, big_endian = self._dtype(dtype)
        return rebuild(shape, name, self._bytes(raw), self.budget, fortran=fortran, big_endian=big_endian)

    def _dtype(self, node: Any) -> tuple[str, bool]:
        """Name, and whether it is big-endian."""
        match node:
            case Call(function="numpy.dtype", args=(code, 0, 1), state=state, items={}):
                pass
            case _:
                _bad("an array's dtype is not stored as numpy does")
        if isinstance(code, Global) and code.name in NARROW_DTYPES:
            name = NARROW_DTYPES[code.name]
        elif isinstance(code, str) and CODE.fullmatch(code):
            name = "bool" if code == "b1" else f"{KINDS[code[0]]}{8 * int(code[1])}"
        else:
            _bad(f"an array has the dtype {code if isinstance(code, str) else type(code).__name__!r}")
        fields = state if isinstance(state, tuple) and len(state) == 8 else (None,) * 8
        plain = fields[2:5] == (None,) * 3 and (isinstance(code, Global) or fields[5:] == (-1, -1, 0))
        if fields[0] == 3 and fields[1] in ("<", ">", "|", "=") and plain:
            return name, fields[1] == ">"
        _bad(f"the dtype {name} has an unknown state")

    def _bytes(self, node: Any) -> bytes:
        match node:
            case bytes():
                return node
            case Call(function="_codecs.encode", args=(str(text), "latin1"), state=None, items={}):
                try:
                    return text.encode("latin1")
                except UnicodeEncodeError:
                    _bad("an array's bytes are no latin1 text")
            case Call(function="__builtin__.bytes", args=(), state=None, items={}):
                return b""
        _bad("an array's content is no bytes (an object array?)")
