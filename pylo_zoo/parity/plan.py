"""Which runs a checkpoint is tried on: every regime, every option of its optimizer, every field of its behaviour."""

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
"""Arguments of the optimizers by name of the run; a family takes part in those that its reference knows."""
SCHEDULE = (0.0, 0.5, 2.0)
"""What the learning rate is multiplied by, step by step: a warm-up."""

LONG_RUN = "long tensors"
LARGEST_OFFSET = 8.0
"""Of a learned decay: ``exp(10·8)`` is still a float32 number. A decay with an offset below minus this is 1."""
BELOW, ABOVE = "decays below 0", "decays above 1"

NOT_COVERED = (
    "infinite gradients: their square overflows, and the original's result is not a number",
    "NaN gradients of rules that say nothing of them, and losses that are not finite",
    "16-bit parameters and gradients (the update is computed in float32 for them), eager steps on a GPU",
    "parameters of more than five axes, of more than 71,033 elements, and empty ones",
    "parameters without a gradient, widths from mup's infshape, and what param_groups decides",
    "runs of more than 200 steps",
    "torch.compile, sharded parameters, kernels on several threads, tensors that are not contiguous, lr as a tensor",
    "several parameter groups with options of their own, L2 decay, accumulated gradients, skipped steps and master "
    "copies (the project's tests cover them)",
)
"""What no run of this table shows, whatever the family."""


def plan(artifact: Artifact) -> Iterator[Run]:
    """The runs of synchronised steps for ``artifact``."""
    family = converters.get(artifact.family)
    assert family.reference is not None
    reference = family.load(family.reference)
    hyper = dict(family.parity_hyper)
    for regime in REGIMES.values():
        if regime.name != "NaN":
            yield Run("regime", regime.name, regime.name, CASES, hyper, steps=regime.steps)
    long = LONG if reference.rule.routes else tuple(case for case in LONG if case.rule is None)
    yield Run("regime", LONG_RUN, "ordinary", long, hyper, steps=2, layouts=("torch",), table=LONG, noted=False)
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
    """Other behaviours than the artifact's: every switch thrown at once, every number changed at once."""
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
            numbers[field.name] = _other(value)
    found = {"switches thrown: " + ", ".join(switches): switches, "numbers changed: " + ", ".join(numbers): numbers}
    return {name: changes for name, changes in found.items() if changes}


def clamped(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Behaviours whose decays of second moments leave [0, 1], where they are clipped (SPEC §1, §3).

    Learned decays ``1 − (1 − d0)·exp(10·offset)`` are below 1 whatever the offset: initial values are chosen that take
    each to -0.5. Above 1 only the decay of ``second_moment`` is tried: where ``diag`` stays at zero, VeLO's
    ``m·diag^-½`` divides by it.
    """
    behavior, offsets = artifact.behavior, artifact.tensors
    if not hasattr(behavior, "initial_adafactor_decays"):  # celo-adam's moments are Adam's own, and are not clipped
        return {}
    found: dict[str, dict[str, Any]] = {BELOW: {}, ABOVE: {}}
    for name in ("rms", "adafactor"):
        field, learned = f"initial_{name}_decays", offsets.get(f"{name}_decays")
        if learned is None:
            found[BELOW][field] = (-0.5,) * len(getattr(behavior, field))
            if name == "rms":
                found[ABOVE][field] = (1.5,) * len(getattr(behavior, field))
        elif min(learned.tolist()) > -LARGEST_OFFSET:
            found[BELOW][field] = tuple(min(0.0, 1 - 1.5 * math.exp(-10 * each)) for each in learned.tolist())
    return {name: changes for name, changes in found.items() if changes}


def _other(value: Any) -> Any:
    """Another number of the same kind; decays stay in [0, 1], and steps get smaller rather than larger."""
    if isinstance(value, tuple):
        return tuple(0.9 * each for each in value)
    if isinstance(value, int):
        return value + 1
    return 0.5 * value if value else 0.5
