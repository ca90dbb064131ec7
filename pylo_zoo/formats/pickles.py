"""Reads pickles of nested dicts of numpy or jax arrays, such as ELO's ``global_step*.pickle``.

:mod:`pylo_zoo.formats.pickle_machine` interprets the opcodes and records calls. This module interprets the recorded
calls of numpy, jax, haiku and flax, without importing these packages or running their code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import (
    MAX_NESTING,
    NARROW,
    Array,
    Budget,
    Decoded,
    collect,
    flatten,
    rebuild,
    refuse,
    wrapper_record,
)
from pylo_zoo.formats.pickle_machine import HINT, Call, Global, Machine

CONTAINER = "pickle"
PROTOCOLS = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))
"""Signatures of pickles."""
MAX_NODES = 20_000
"""Maximum number of values in a tree. Shared values count each time, so sharing cannot multiply the size."""

CORES = ("numpy.core", "numpy._core")
"""numpy's core module before and since version 2."""
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
"""All permitted globals (docs/formats.md)."""

CODE = re.compile(r"[fiu][1248]|b1")
KINDS = {"f": "float", "i": "int", "u": "uint"}
WRAPPERS = ("params", "theta")
"""Keys that may wrap a theta tree."""


def recognizes(data: bytes) -> bool:
    """Whether ``data`` begins like a pickle of protocol 2 to 5."""
    return data.startswith(PROTOCOLS)


def decode(data: bytes, name: str) -> Decoded:
    """Decode a whole file; ``name`` identifies it in errors.

    Raises:
        ZooError: the pickle is damaged, or contains anything except nested dicts of arrays.
    """
    try:
        reader = Reader()
        tree, layout = unwrap(reader.tree(Machine(data, GLOBALS).run()))
        return collect(CONTAINER, flatten(tree), layout)
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None


def unwrap(tree: Any, wrappers: tuple[str, ...] = WRAPPERS) -> tuple[Any, dict[str, Any]]:
    """The theta tree inside ``tree``, and the layout fields of its wrapper.

    A tree under ``params`` or ``theta`` is unwrapped if all other values are plain (a step, a name).

    Raises:
        ZooError: another value is an array or a mapping, so it is unclear which one is the checkpoint.
    """
    wrapper = next((key for key in wrappers if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping)), None)
    if wrapper is None:
        return tree, {}
    others = [key for key in tree if key != wrapper]
    if not all(_is_plain(tree[key]) for key in others):
        refuse(
            f"it has both {wrapper} and {', '.join(others)}, and each may be the checkpoint.",
            f"Save only the tree under {wrapper}.",
        )
    return tree[wrapper], wrapper_record(wrapper, others)


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a string, a number, None or a 0-d array."""
    return isinstance(value, (str, int, float, type(None))) or (isinstance(value, Array) and value.values.ndim == 0)


def _reject(problem: str) -> NoReturn:
    refuse(f"{problem}.", HINT)


class Reader:
    """Interprets the result of a machine. A shared array is rebuilt once."""

    def __init__(self) -> None:
        self.nodes = 0
        self.arrays: dict[int, Array] = {}  # by id: the machine's result keeps every node alive
        self.budget = Budget()

    def tree(self, node: Any, depth: int = 0) -> Any:
        """Convert ``node``: mappings to dicts, arrays to :class:`Array`; other values are unchanged."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_NESTING + 1:
            _reject("its dicts are nested too deeply, or contain each other")
        if isinstance(mapping := self.mapping(node), dict):
            return {key: self.tree(child, depth + 1) for key, child in mapping.items()}
        return self.array(node) if isinstance(node, Call) else node

    def mapping(self, node: Any) -> dict[str, Any] | None:
        """The items of a dict or of a dict-like container; None for any other value."""
        if not isinstance(node, Call):
            return node if isinstance(node, dict) else None
        inner: Any = None
        match node.function, node.args:
            case ("collections.OrderedDict", ()):
                return node.items  # torch stores module versions as the state of a state_dict
            case ("flax.core.frozen_dict.FrozenDict" | "haiku._src.data_structures.FlatMapping", (dict() as inner,)):
                known = node.state is None
            case ("haiku._src.data_structures.FlatMapping", ()) if isinstance(node.state, dict):
                inner = node.state.get("_mapping")
                known = isinstance(inner, dict)
            case (function, _):
                if function in (ORDERED, FROZEN, FLAT):
                    _reject(f"a {function.rpartition('.')[2]} is not built from one dict")
                return None
        if not known or node.items:
            _reject("a frozen dict is modified")
        return inner

    def array(self, node: Any) -> Array:
        """The array that ``node`` describes."""
        if not isinstance(node, Call):
            _reject(f"it contains {type(node).__name__} instead of an array")
        if id(node) not in self.arrays:
            if node.items:
                _reject("an array has items set")
            self.arrays[id(node)] = self._array(node)
        return self.arrays[id(node)]

    def _array(self, node: Call) -> Array:
        if node.function in RECONSTRUCT:
            return self._reconstructed(node.args, node.state)
        if node.state is not None:
            _reject("an array has a state set")
        match node.args:
            case (buffer, dtype, tuple(shape), "C" | "F" as order) if node.function in FROMBUFFER:
                return self._rebuilt(shape, dtype, order == "F", buffer)
            case (dtype, raw) if node.function in SCALAR:
                return self._rebuilt((), dtype, False, raw)
            case (Global(name=name), tuple(args), state, dict()) if node.function in JAX and name in RECONSTRUCT:
                return self._reconstructed(args, state)
        _reject(f"{node.function} is called with unknown arguments")

    def _reconstructed(self, args: tuple[Any, ...], state: Any) -> Array:
        match args, state:
            case (Global(name="numpy.ndarray"), (0,), _), (1, tuple(shape), dtype, bool(fortran), raw):
                return self._rebuilt(shape, dtype, fortran, raw)
        _reject("an array is not stored as version, shape, dtype, order and bytes")

    def _rebuilt(self, shape: tuple[Any, ...], dtype: Any, fortran: bool, raw: Any) -> Array:
        name, big_endian = self._dtype(dtype)
        return rebuild(shape, name, self._bytes(raw), self.budget, fortran=fortran, big_endian=big_endian)

    def _dtype(self, node: Any) -> tuple[str, bool]:
        """Name, and whether it is big-endian."""
        match node:
            case Call(function="numpy.dtype", args=(code, 0, 1), state=state, items={}):
                pass
            case _:
                _reject("an array's dtype is not in numpy's format")
        if isinstance(code, Global) and code.name in NARROW_DTYPES:
            name = NARROW_DTYPES[code.name]
        elif isinstance(code, str) and CODE.fullmatch(code):
            name = "bool" if code == "b1" else f"{KINDS[code[0]]}{8 * int(code[1])}"
        else:
            _reject(f"an array has the dtype {code if isinstance(code, str) else type(code).__name__!r}")
        fields = state if isinstance(state, tuple) and len(state) == 8 else (None,) * 8
        plain = fields[2:5] == (None,) * 3 and (isinstance(code, Global) or fields[5:] == (-1, -1, 0))
        if fields[0] == 3 and fields[1] in ("<", ">", "|", "=") and plain:
            return name, fields[1] == ">"
        _reject(f"the dtype {name} has an unknown state")

    def _bytes(self, node: Any) -> bytes:
        match node:
            case bytes():
                return node
            case Call(function="_codecs.encode", args=(str(text), "latin1"), state=None, items={}):
                try:
                    return text.encode("latin1")
                except UnicodeEncodeError:
                    _reject("an array's bytes are not latin1 text")
            case Call(function="__builtin__.bytes", args=(), state=None, items={}):
                return b""
        _reject("an array's content is not bytes (an object array?)")
