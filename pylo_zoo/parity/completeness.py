"""Checks that a proof made every required comparison, independently of the tables that define the runs.

If a table lost a regime, a layout, parameters or planted faults, or if bounds grew, the report would still pass. The
names and numbers here are literals, so a change of a table requires a change here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pylo_zoo.errors import ZooError
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Check, Control

REGIMES = (
    *("ordinary", "spikes", "tiny", "huge", "zeros", "single", "growing"),
    *("zero parameters", "large parameters", "negative losses"),
)
RUNS = ("ordinary", "spikes", "long")
PARAMETERS = 26
"""Number of parameters in every regime, from 0-d to 5-d."""
LONG = {"long tensors": 2}
"""Number of parameters with over 65,536 elements."""
OPTIONS = 7
"""Number of parameters in a run with a changed option or behavior; the runs of ``FEW`` have fewer."""
FEW = {"decays below 0": 3, "decays above 1": 3}
MAX_BOUND = 1e-10
"""Maximum bound on a parameter's error in a float64 step."""
FAULTS = (
    *("tied axes", "layout", "epsilon", "Adam's epsilon", "old accumulator", "Adam's old moments", "guard"),
    *("clip of decays", "decays", "transposed weight", "one bit", "gate order", "Newton–Schulz"),
    *(
        f"{name}, by {level}"
        for level in ("leaves", "network", "single steps", "whole runs")
        for name in ("weight", "NaN")
    ),
)
KERNEL_FAULTS = ("weights", "gates", "last element", "zero parameters", "long tensors")


def check(
    checks: Sequence[Check], controls: Sequence[Control], devices: Sequence[str], max_error: float = MAX_BOUND
) -> None:
    """Raise if these comparisons and planted faults are not a complete proof.

    Args:
        checks: all comparisons.
        controls: all planted faults.
        devices: the devices whose fused kernels had to be compared.
        max_error: the requested bound on float64 steps.

    Raises:
        ZooError: a comparison or a planted fault is missing, or a bound is too wide.
    """
    for gap in gaps(checks, controls, devices, max(max_error, MAX_BOUND)):
        raise ZooError(f"The proof is incomplete: {gap}.", "This is a bug in pylo-zoo: report it with the version.")


def gaps(checks: Sequence[Check], controls: Sequence[Control], devices: Sequence[str], largest: float) -> Iterator[str]:
    """One clause per missing comparison or planted fault."""
    sides = [("float64", ""), ("float32", ""), *(("float32", device) for device in devices)]
    compared = {(each.level, each.name, each.dtype, each.layout, each.kernels): each for each in checks}
    for dtype, kernels in sides:
        by = f"{dtype}{f' by the kernels of {kernels}' if kernels else ''}"
        if not kernels and ("network", "random inputs", dtype, "", "") not in compared:
            yield f"the network is not compared in {by}"
        for name, layout, least in _steps():
            step = compared.get(("step", name, dtype, layout, kernels))
            if step is None:
                yield f"single steps {name!r} are not compared in {by}, {layout} layout"
            elif len(step.errors) < least:
                yield f"single steps {name!r} compare {len(step.errors)} parameters in {by}, not {least}"
        for name in RUNS:
            for layout in ("torch",) if name == "long" else ("torch", "jax"):
                if ("trajectory", name, dtype, layout, kernels) not in compared:
                    yield f"the whole run {name!r} is not compared in {by}, {layout} layout"
    for each in checks:
        least = FEW.get(each.name, OPTIONS)
        if each.kind in ("options", "flags") and len(each.errors) < least:
            yield f"{each.name.partition(':')[0]!r} compares {len(each.errors)} parameters, not {least}"
    yield from _wide(checks, largest)
    planted = {control.name for control in controls}
    required = [*FAULTS, *(f"{fault}, {device} kernels" for device in devices for fault in KERNEL_FAULTS)]
    yield from (f"the fault {name!r} is not planted" for name in required if name not in planted)


def _steps() -> Iterator[tuple[str, str, int]]:
    """Name, layout and minimum number of parameters of the single steps that every family must have."""
    for layout in ("torch", "jax"):
        yield from ((name, layout, PARAMETERS) for name in REGIMES)
    yield from ((name, "torch", least) for name, least in LONG.items())


def _wide(checks: Sequence[Check], largest: float) -> Iterator[str]:
    """One clause per bound that is wider than docs/parity.md derives."""
    noise = np.array([0.0, 1e-6])
    for dtype, eps, finer in (("float32", 2.0**-23, 1.0), ("float64", 2.0**-52, 2.0**-29)):
        if (bounds.allowed(noise, dtype) > 1.001 * (64 * noise * finer + 64 * eps)).any():
            yield f"{dtype} bounds are wider than 64 times the original's rounding"
    for each in checks:
        steps = each.level == "step" and each.dtype == "float64"
        if steps and not all(e.allowed is not None and e.allowed <= largest for e in each.errors.values()):
            yield f"a float64 step of {each.name.partition(':')[0]!r} may be off by more than {largest:g}"
