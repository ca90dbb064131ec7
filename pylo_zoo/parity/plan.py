"""The runs of single steps in a proof: every regime, every option of the optimizer, every field of the behavior."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pylo_zoo import converters
from pylo_zoo.artifact import Artifact
from pylo_zoo.parity.cases import CASES, FEW, LONG, REDUCED, REGIMES
from pylo_zoo.parity.steps import Run

WIDTHS = {"tall dense": 2.0, "square dense": 4.0}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "weight decay 0.3": {"weight_decay": 0.3},
    "no weight decay": {"weight_decay": 0.0},
    "clip_norm 0.01": {"clip_norm": 0.01},
    "no clip_norm": {"clip_norm": None},
    "grad_clip_val 0.001": {"grad_clip_val": 0.001},
    "no AdamW decay": {"weight_decay": 0.3, "adam_weight_decay": 0.0},
    "AdamW's own": {"adam_lr_mult": 3.0, "adam_betas": (0.8, 0.99), "adam_eps": 1e-4, "adam_weight_decay": 0.05},
    "width multipliers": {"width_mult": WIDTHS},
}
"""Arguments of the optimizers, by name of the run. A family runs those that its reference has."""
SCHEDULE = (0.0, 0.5, 2.0)
"""Factors of the learning rate at each step: a warm-up."""

LONG_RUN = "long tensors"
MAX_OFFSET = 8.0
"""Maximum magnitude of a learned decay's offset: ``exp(10·8)`` still fits float32. Below minus this, the decay is 1."""
BELOW, ABOVE = "decays below 0", "decays above 1"

NOT_COVERED = (
    "infinite gradients: their square overflows, and the original's result is NaN",
    "NaN gradients in rules that do not define the result, and losses that are not finite",
    "16-bit parameters and gradients (their update is computed in float32), eager steps on a GPU",
    "parameters with more than five axes, with more than 71,033 elements, or empty",
    "parameters without a gradient, widths from mup's infshape, and the choices of param_groups",
    "runs of more than 200 steps",
    "torch.compile, sharded parameters, kernels on several threads, tensors that are not contiguous, lr as a tensor",
    "several parameter groups with different options, L2 decay, accumulated gradients, skipped steps and master "
    "copies (the project's tests cover them)",
)
"""What no run covers, in any family."""


def plan(artifact: Artifact) -> Iterator[Run]:
    """The runs of synchronized steps for ``artifact``."""
    family = converters.get(artifact.family)
    assert family.reference is not None
    reference = family.load(family.reference)
    hyper = dict(family.parity_hyper)
    for regime in REGIMES.values():
        if regime.name != "NaN":
            yield Run("regime", regime.name, regime.name, CASES, hyper, steps=regime.steps)
    long = LONG if reference.rule.routes else tuple(case for case in LONG if case.rule is None)
    yield Run("regime", LONG_RUN, "ordinary", long, hyper, steps=2, layouts=("torch",), table=LONG, traced=False)
    if reference.defines_nan:
        without = {"clip_norm": None} if "clip_norm" in reference.hyper else {}
        yield Run("regime", "NaN", "NaN", REDUCED, hyper | without, steps=REGIMES["NaN"].steps)
    for name, options in OPTIONS.items():
        changed = {**reference.hyper, **hyper, **options}
        if set(options) <= set(reference.hyper) and changed != {**reference.hyper, **hyper}:
            yield Run("options", name, "ordinary", REDUCED, hyper | dict(options), layouts=("torch",))
    if reference.rule.routes:
        learned = tuple(replace(case, rule="learned") for case in REDUCED)
        yield Run("options", "learned rule for all", "ordinary", learned, hyper, layouts=("torch",))
    lrs = [hyper["lr"] * factor for factor in SCHEDULE]
    yield Run("options", "learning rate schedule", "ordinary", REDUCED, hyper, lrs=lrs, layouts=("torch",))
    for name, changes in clamped(artifact).items():
        yield Run("flags", name, "ordinary", FEW, hyper, behavior=changes, steps=2, layouts=("torch",))
    for name, changes in flags(artifact.behavior).items():
        yield Run("flags", name, "ordinary", REDUCED, hyper, behavior=changes, layouts=("torch",))


def flags(behavior: Any) -> dict[str, dict[str, Any]]:
    """Two changed behaviors: one with every switch flipped, one with every number changed."""
    hints = typing.get_type_hints(type(behavior))
    switches: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for field in dataclasses.fields(behavior):
        value, kind = getattr(behavior, field.name), hints[field.name]
        if isinstance(value, bool):
            switches[field.name] = not value
        elif typing.get_origin(kind) is typing.Literal:
            options = typing.get_args(kind)
            switches[field.name] = options[(options.index(value) + 1) % len(options)]
        elif isinstance(value, (int, float, tuple)):
            numbers[field.name] = _changed(value)
    behaviors = {
        "switches thrown: " + ", ".join(switches): switches,
        "numbers changed: " + ", ".join(numbers): numbers,
    }
    return {name: changes for name, changes in behaviors.items() if changes}


def clamped(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Behaviors whose second-moment decays are outside [0, 1], to test that they are clipped (SPEC §1, §3).

    Learned decays ``1 − (1 − d0)·exp(10·offset)`` are below 1 for every offset, so initial values are chosen that set
    each to -0.5. Only the decay of ``second_moment`` is set above 1, because VeLO's ``m·diag^-½`` would divide by a
    ``diag`` that stays zero.
    """
    behavior, offsets = artifact.behavior, artifact.tensors
    if not hasattr(behavior, "initial_adafactor_decays"):  # celo-adam uses Adam's moments, which are not clipped
        return {}
    changes: dict[str, dict[str, Any]] = {BELOW: {}, ABOVE: {}}
    for name in ("rms", "adafactor"):
        field, learned = f"initial_{name}_decays", offsets.get(f"{name}_decays")
        if learned is None:
            changes[BELOW][field] = (-0.5,) * len(getattr(behavior, field))
            if name == "rms":
                changes[ABOVE][field] = (1.5,) * len(getattr(behavior, field))
        elif min(learned.tolist()) > -MAX_OFFSET:
            changes[BELOW][field] = tuple(min(0.0, 1 - 1.5 * math.exp(-10 * each)) for each in learned.tolist())
    return {name: fields for name, fields in changes.items() if fields}


def _changed(value: Any) -> Any:
    """A different value of the same type. Decays stay in [0, 1], and other floats shrink."""
    if isinstance(value, tuple):
        return tuple(0.9 * each for each in value)
    if isinstance(value, int):
        return value + 1
    return 0.5 * value if value else 0.5
