"""Reads the description and the arrays of ``parity-vectors.safetensors`` before anything is computed from them.

The file is untrusted. Every number that sizes a loop or an array is bounded, and every array must have the described
shape and dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.parity.cases import REGIMES, Case
from pylo_zoo.parity.forward import Network
from pylo_zoo.parity.steps import LAYOUTS
from pylo_zoo.parity.trajectory import Original, WholeRun
from pylo_zoo.parsing import Field, is_finite

MAX_RUNS = 8
MAX_STEPS = 1_000
MAX_CASES = 100
MAX_AXES = 5
MAX_ELEMENTS = 1_000_000
MAX_NAMES = 200
CASE_LAYOUTS = ("torch", "torch-stacked", "jax")
STACKED_AXES = 3
RULES = ("learned", "adamw")
MAX_FILE_BYTES = 256 * 1024 * 1024
AGAIN = "Download the artifact again, or run `pylo-zoo verify DIR` with JAX installed."
_SHA256 = re.compile(r"[0-9a-f]{64}")

Arrays = Mapping[str, np.ndarray]


class Vectors(NamedTuple):
    """The content of the file; ``visible`` names the planted faults that its runs show."""

    fingerprint: str
    network: Network
    originals: list[Original]
    visible: list[str]


def read(about: Any, arrays: Arrays) -> Vectors:
    """Read the description ``about`` and the arrays of the file.

    Raises:
        ZooError: a field is missing, has the wrong type or is out of bounds, or an array does not fit the description.
    """
    root = Field(about, "the description", AGAIN)
    fields = root.fields(("format_version", "fingerprint", "network_noise", "visible_faults", "runs"))
    network = _network(fields["network_noise"], arrays)
    runs = fields["runs"].items(lambda each: _original(each, arrays), MAX_RUNS, 1)
    if len({run.planned.name for run in runs}) < len(runs):
        raise root.error(": two runs have the same name")
    if all(run.planned.regime != "ordinary" for run in runs):
        raise root.error(": no run has the regime ordinary")
    fingerprint = fields["fingerprint"].match(_SHA256, "a sha256")
    return Vectors(fingerprint, network, runs, fields["visible_faults"].items(_name, MAX_NAMES))


def check_for(artifact: Artifact, inputs: Arrays, hypers: Sequence[Mapping[str, Any]]) -> None:
    """Check that the network's inputs and the optimizer's arguments fit ``artifact``.

    Raises:
        ZooError: they do not.
    """
    net: Any = artifact.net()
    expected = {name: tuple(shape) for name, shape in net.probe_shapes().items()}
    shapes = {name: value.shape for name, value in inputs.items()}
    if shapes != expected:
        raise ZooError(f"the network's inputs have the shapes {quoted(shapes)}, not {quoted(expected)}.", AGAIN)
    known = converters.get(artifact.family).parity_hyper
    for hyper in hypers:
        if hyper.keys() != known.keys():
            raise ZooError(f"hyper has {quoted(sorted(hyper))}, not {quoted(sorted(known))}.", AGAIN)
        for name, value in hyper.items():
            if not _same_type(value, known[name]):
                raise Field(value, f"hyper.{name}", AGAIN).wrong(f"a value of the type of {quoted(known[name])}")


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


def _network(noise: Field, arrays: Arrays) -> Network:
    def part(prefix: str, dtype: str) -> dict[str, np.ndarray]:
        names = [name for name in arrays if name.startswith(prefix)]
        return {name.removeprefix(prefix): _array(arrays, name, dtype) for name in names}

    inputs, outputs = part("network.inputs.", "float32"), part("network.outputs.", "float64")
    return Network(inputs, outputs, _noise(noise, outputs))


def _original(run: Field, arrays: Arrays) -> Original:
    fields = run.fields(("name", "regime", "steps", "hyper", "noise", "cases"))
    cases = fields["cases"].items(_case, MAX_CASES, 1)
    names = [case.name for case in cases]
    if len({*names}) < len(names):
        raise run.error(": two cases have the same name")
    regime, steps = fields["regime"].choice(REGIMES), fields["steps"].integer(1, MAX_STEPS)
    planned = WholeRun(_name(fields["name"]), regime, steps, tuple(cases), LAYOUTS)
    grads, params = {}, {}
    for case in cases:
        grads[case.name] = _array(arrays, f"{planned.name}.grads.{case.name}", "float32", (steps, *case.shape))
        values = _array(arrays, where := f"{planned.name}.params.{case.name}", "float64", (None, *case.shape))
        if len(values) > steps + 1:
            raise ZooError(f"{quoted(where)} has {len(values):,} steps, not {steps}.", AGAIN)
        params[case.name] = values
    lengths = {len(values) for values in params.values()}
    if len(lengths) > 1:
        raise run.error(": its parameters have different numbers of steps")
    truth = [{name: values[step] for name, values in params.items()} for step in range(lengths.pop())]
    return Original(
        planned=planned,
        hyper={
            key: tuple(value) if isinstance(value, list) else value for key, value in fields["hyper"].object().items()
        },
        start=truth[0],
        grads=[{name: values[step] for name, values in grads.items()} for step in range(steps)],
        losses=_array(arrays, f"{planned.name}.losses", "float64", (steps,)).tolist(),
        truth=truth,
        noise=_noise(fields["noise"], names),
    )


def _case(case: Field) -> Case:
    fields = case.fields(("name", "shape", "torch", "rule"))
    shape = tuple(fields["shape"].items(lambda size: size.integer(1, MAX_ELEMENTS), MAX_AXES))
    if math.prod(shape) > MAX_ELEMENTS:
        raise fields["shape"].wrong(f"a shape of at most {MAX_ELEMENTS:,} elements")
    layout = fields["torch"].choice(CASE_LAYOUTS)
    if layout == "torch-stacked" and len(shape) != STACKED_AXES:
        raise fields["torch"].wrong(f"a layout for {len(shape)} axes")
    return Case(_name(fields["name"]), shape, layout, fields["rule"].optional(lambda rule: rule.choice(RULES)))


def _array(arrays: Arrays, name: str, dtype: str, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """The array ``name``, which must be finite and have this dtype and shape (None: any size)."""
    if name not in arrays:
        raise ZooError(f"{quoted(name)} is missing.", AGAIN)
    value = arrays[name]
    if value.dtype != dtype:
        raise ZooError(f"{quoted(name)} is {value.dtype}, not {dtype}.", AGAIN)
    if shape is not None and not _fits(value.shape, shape):
        raise ZooError(f"{quoted(name)} has the shape {quoted(list(value.shape))}, not {quoted(list(shape))}.", AGAIN)
    if not value.size:
        raise ZooError(f"{quoted(name)} is empty.", AGAIN)
    if not np.isfinite(value).all():
        raise ZooError(f"{quoted(name)} contains NaN or infinity.", AGAIN)
    return value


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(map(lambda size, each: each in (None, size), shape, expected))


def _noise(field: Field, names: Collection[str]) -> dict[str, float]:
    if not isinstance(field.value, dict) or field.value.keys() != {*names}:
        raise field.wrong("an object with one number per name")
    return field.mapping(_non_negative)


def _non_negative(field: Field) -> float:
    if (number := field.number()) < 0:
        raise field.wrong("a number of at least 0")
    return number


def _name(field: Field) -> str:
    return field.printable(MAX_NAMES, 1)
