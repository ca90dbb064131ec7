"""Validates the description in ``parity-vectors.safetensors`` before anything is computed from it.

The file is untrusted. Every number that sizes a loop or an array is bounded, and every array must have the described
shape and dtype.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import quoted
from pylo_zoo.parity.cases import REGIMES
from pylo_zoo.parsing import is_finite

MAX_RUNS = 8
MAX_STEPS = 1_000
MAX_CASES = 100
MAX_AXES = 5
MAX_ELEMENTS = 1_000_000
MAX_NAMES = 200
LAYOUTS = ("torch", "torch-stacked", "jax")
STACKED_AXES = 3
RULES = (None, "learned", "adamw")
MAX_FILE_BYTES = 256 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN = ("name", "regime", "steps", "hyper", "noise", "cases")

Arrays = Mapping[str, np.ndarray]


class Damaged(ValueError):
    """The file is malformed or contradicts itself; the message is a clause."""


def check(about: Any, arrays: Arrays) -> None:
    """Check that the description ``about`` is valid and fits the arrays of the file.

    Raises:
        Damaged: a field is missing, has the wrong type or is out of bounds, or an array does not fit the description.
    """
    _object(about, ("format_version", "fingerprint", "network_noise", "visible_faults", "runs"), "the description")
    _require(
        isinstance(about["fingerprint"], str) and _SHA256.fullmatch(about["fingerprint"]),
        f"fingerprint is {quoted(about['fingerprint'])}, not a sha256",
    )
    _texts(about["visible_faults"], "visible_faults")
    outputs = [name.removeprefix("network.outputs.") for name in arrays if name.startswith("network.outputs.")]
    _noise(about["network_noise"], outputs, "network_noise")
    for name in (name for name in arrays if name.startswith(("network.inputs.", "network.outputs."))):
        _values(arrays, name, None, "float32" if name.startswith("network.inputs.") else "float64")
    runs = about["runs"]
    _require(isinstance(runs, list) and 0 < len(runs) <= MAX_RUNS, f"runs is {quoted(runs)}")
    for index, run in enumerate(runs):
        _run(run, arrays, f"runs[{index}]")
    names = [run["name"] for run in runs]
    _require(len(set(names)) == len(names), "two runs have the same name")
    _require(any(run["regime"] == "ordinary" for run in runs), "no run has the regime ordinary")


def check_for(artifact: Artifact, inputs: Arrays, hypers: Sequence[Mapping[str, Any]]) -> None:
    """Check that the network's inputs and the optimizer's arguments fit ``artifact``.

    Raises:
        Damaged: they do not.
    """
    net: Any = artifact.net()
    expected = {name: tuple(shape) for name, shape in net.probe_shapes().items()}
    shapes = {name: value.shape for name, value in inputs.items()}
    _require(shapes == expected, f"the network's inputs have the shapes {quoted(shapes)}, not {quoted(expected)}")
    known = converters.get(artifact.family).parity_hyper
    for hyper in hypers:
        _require(hyper.keys() == known.keys(), f"hyper has {quoted(sorted(hyper))}, not {quoted(sorted(known))}")
        for name, value in hyper.items():
            _require(
                _same_type(value, known[name]),
                f"hyper.{name} is {quoted(value)}, not a value of the type of {quoted(known[name])}",
            )


def _same_type(value: Any, like: Any) -> bool:
    """Whether ``value`` has the type of ``like``; an integer must also be positive and not too large."""
    if isinstance(like, (tuple, list)):
        same_length = isinstance(value, (tuple, list)) and len(value) == len(like)
        return same_length and all(map(_same_type, value, like))
    if isinstance(like, bool) or like is None or isinstance(like, str):
        return type(value) is type(like)
    if isinstance(like, int):
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_ELEMENTS
    return is_finite(value)


def _run(run: Any, arrays: Arrays, path: str) -> None:
    _object(run, _RUN, path)
    _texts([run["name"]], f"{path}.name")
    _require(isinstance(run["regime"], str) and run["regime"] in REGIMES, f"{path}.regime is {quoted(run['regime'])}")
    steps = _integer(run["steps"], MAX_STEPS, f"{path}.steps")
    _require(isinstance(run["hyper"], dict), f"{path}.hyper is {quoted(run['hyper'])}")
    cases = run["cases"]
    _require(isinstance(cases, list) and 0 < len(cases) <= MAX_CASES, f"{path}.cases is {quoted(cases)}")
    lengths = set()
    for index, case in enumerate(cases):
        name, shape = _case(case, f"{path}.cases[{index}]")
        _values(arrays, f"{run['name']}.grads.{name}", (steps, *shape), "float32")
        params = _values(arrays, f"{run['name']}.params.{name}", (None, *shape), "float64")
        _require(1 <= len(params) <= steps + 1, f"{run['name']}.params.{name} has {len(params):,} steps, not {steps}")
        lengths.add(len(params))
    names = [case["name"] for case in cases]
    _require(len(set(names)) == len(names), f"two cases of {path} have the same name")
    _require(len(lengths) == 1, f"the parameters of {path} have different numbers of steps")
    _values(arrays, f"{run['name']}.losses", (steps,), "float64")
    _noise(run["noise"], names, f"{path}.noise")


def _case(case: Any, path: str) -> tuple[str, tuple[int, ...]]:
    _object(case, ("name", "shape", "torch", "rule"), path)
    _texts([case["name"]], f"{path}.name")
    shape = case["shape"]
    _require(isinstance(shape, list) and len(shape) <= MAX_AXES, f"{path}.shape is {quoted(shape)}")
    total = 1
    for size in shape:
        total *= _integer(size, MAX_ELEMENTS, f"{path}.shape")
    _require(total <= MAX_ELEMENTS, f"{path}.shape is {quoted(shape)}, with more than {MAX_ELEMENTS:,} elements")
    stacked = case["torch"] == "torch-stacked" and len(shape) != STACKED_AXES
    _require(case["torch"] in LAYOUTS and not stacked, f"{path}.torch is {quoted(case['torch'])}")
    _require(case["rule"] in RULES, f"{path}.rule is {quoted(case['rule'])}")
    return case["name"], tuple(shape)


def _values(arrays: Arrays, name: str, shape: tuple[int | None, ...] | None, dtype: str) -> np.ndarray:
    """The array ``name``, which must be finite and have this dtype and shape (None: any size)."""
    if name not in arrays:
        _refuse(f"{quoted(name)} is missing")
    value = arrays[name]
    _require(value.dtype == dtype, f"{quoted(name)} is {value.dtype}, not {dtype}")
    if shape is not None:
        fits = len(shape) == value.ndim and all(
            expected in (None, size) for expected, size in zip(shape, value.shape, strict=False)
        )
        _require(fits, f"{quoted(name)} has the shape {quoted(list(value.shape))}, not {quoted(list(shape))}")
    _require(value.size > 0, f"{quoted(name)} is empty")
    _require(bool(np.isfinite(value).all()), f"{quoted(name)} contains NaN or infinity")
    return value


def _noise(value: Any, names: Sequence[str], path: str) -> None:
    _require(isinstance(value, dict) and value.keys() == set(names), f"{path} is {quoted(value)}")
    for name, each in value.items():
        _require(is_finite(each) and each >= 0, f"{path} of {quoted(name)} is {quoted(each)}")


def _object(value: Any, keys: Sequence[str], path: str) -> None:
    _require(isinstance(value, dict), f"{path} is {quoted(value)}, not an object")
    for key in keys:
        _require(key in value, f"{path} lacks {key}")
    for key in value:
        _require(key in keys, f"{path} has the unknown field {quoted(key)}")


def _texts(value: Any, path: str) -> None:
    valid = isinstance(value, list) and len(value) <= MAX_NAMES
    valid = valid and all(isinstance(text, str) and 0 < len(text) <= MAX_NAMES and text.isprintable() for text in value)
    _require(valid, f"{path} is {quoted(value)}")


def _integer(value: Any, most: int, path: str) -> int:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most
    _require(valid, f"{path} is {quoted(value)}, not an integer from 1 to {most:,}")
    return value


def _require(condition: object, complaint: str) -> None:
    if not condition:
        _refuse(complaint)


def _refuse(complaint: str) -> NoReturn:
    raise Damaged(complaint)
