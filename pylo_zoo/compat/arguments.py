"""How PyLO's constructor arguments apply here: one table per optimizer, and one function that applies it.

Some of PyLO's arguments (network sizes, decays, multipliers) belong to the artifact here. PyLO's default values are
ignored and the artifact decides. Other values change the artifact's behavior, must match its sizes, or are errors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pylo_zoo import config
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.parsing import is_finite


@dataclass(frozen=True)
class Behavior:
    """Sets the checkpoint's behavior field of the same name."""


@dataclass(frozen=True)
class Offsets:
    """Learned offsets of the decays in the behavior field ``initial`` (SPEC §3)."""

    initial: str


@dataclass(frozen=True)
class Size:
    """A size that must match the network: the architecture's ``field`` minus ``difference``."""

    field: str
    difference: int = 0


@dataclass(frozen=True)
class Unsupported:
    """Only PyLO's default, or an ``equivalent`` value, is accepted."""

    reason: str
    hint: str = "Leave it out."
    equivalent: tuple[Any, ...] = ()


Rule = Behavior | Offsets | Size | Unsupported
Table = Mapping[str, Rule]

UNREAD = Unsupported("PyLO accepts it but never reads it")
UNREAD_CLIP = Unsupported(
    "PyLO accepts it but never reads it",
    "Leave it out, or call torch.nn.utils.clip_grad_norm_ before step().",
)
UNREAD_LRS = Unsupported(
    "PyLO accepts it but never reads it", 'Leave it out; set "lr" in the parameter groups, or use MuLO_naive.'
)
ONE_INPUT = Unsupported("the number of features is part of the update rule")

INITIAL: Table = {
    "initial_momentum_decays": Behavior(),
    "initial_rms_decays": Behavior(),
    "initial_adafactor_decays": Behavior(),
}
OFFSETS: Table = {
    "momentum_decays": Offsets("initial_momentum_decays"),
    "rms_decays": Offsets("initial_rms_decays"),
    "adafactor_decays": Offsets("initial_adafactor_decays"),
}
MULTIPLIERS: Table = {"exp_mult": Behavior(), "step_mult": Behavior()}
UNUSED: Table = dict.fromkeys(("concat_weights", "make_separate_weights", "split_weights"), UNREAD)
MLP: Table = {"hidden_size": Size("hidden_size"), "hidden_layers": Size("hidden_layers", difference=1)}

VELO: Table = {
    **INITIAL,
    **OFFSETS,
    **MULTIPLIERS,
    **UNUSED,
    "input_size": ONE_INPUT,
    "lstm_input_size": ONE_INPUT,
    "hidden_size": Size("ff_hidden_size"),
    "hidden_layers": Size("ff_hidden_layers", difference=1),
    "lstm_hidden_size": Size("lstm_hidden_size"),
    "param_inits": Size("param_inits"),
    "clip_grad": UNREAD_CLIP,
    "mup_lrs": UNREAD_LRS,
}
ADAFAC: Table = {
    **INITIAL,
    **OFFSETS,
    **MULTIPLIERS,
    **UNUSED,
    **MLP,
    "input_size": ONE_INPUT,
    "clip_grad": Unsupported(UNREAD_CLIP.reason, "Leave it out; max_grad_norm clips each parameter's gradient."),
    "mup_lrs": UNREAD_LRS,
}
ADAFAC_CUDA: Table = {
    **INITIAL,
    **OFFSETS,
    **MULTIPLIERS,
    "min_dim_size_to_factor": Unsupported("PyLO accepts it but never reads it: every matrix is factored"),
    "decay_rate": UNREAD,
    "decay_offset": UNREAD,
    "beta2_cap": UNREAD,
    "clipping_threshold": UNREAD,
    "unscaled_wd": UNREAD,
    "momentum_dtype": Unsupported(
        "accumulators are float32, or float64 for float64 parameters", equivalent=("float32", torch.float32)
    ),
    "eps": Unsupported("squared gradients get 1e-30, as in the original", equivalent=(1e-30,)),
    "foreach": Unsupported("PyLO has no multi-tensor version either", equivalent=(None,)),
}
ELO: Table = {**INITIAL, **MLP, "exp_mult": Behavior()}
CELO2: Table = {
    **INITIAL,
    "orthogonalize": Behavior(),
    "exp_mult": Behavior(),
    "rmsmult": Behavior(),
    "param_scale_mult": Behavior(),
    "ns_coeffs": Behavior(),
    "ns_iters": Behavior(),
    "ns_eps": Behavior(),
    "ff_hidden_size": Size("ff_hidden_size"),
    "ff_hidden_layers": Size("ff_hidden_layers"),
}


def defaults_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The defaults in a constructor's signature."""
    parameters = inspect.signature(constructor).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def apply_arguments(
    artifact: Artifact, table: Table, values: Mapping[str, Any], constructor: Callable[..., Any]
) -> Artifact:
    """Apply the constructor arguments in ``table`` to an artifact.

    Args:
        artifact: the artifact.
        table: how each argument applies.
        values: the arguments' values; names that are not in the table are ignored.
        constructor: the constructor, with PyLO's defaults in its signature.

    Returns:
        The changed artifact, or ``artifact`` itself if every argument has its default.

    Raises:
        ZooError: an argument is unsupported or malformed, or contradicts the network's sizes.
    """
    defaults = defaults_of(constructor)
    changes = {name: to_tuples(values[name]) for name in table if to_tuples(values[name]) != to_tuples(defaults[name])}
    owner = constructor.__qualname__.partition(".")[0]
    for name, value in changes.items():
        _check(artifact, name, value, table[name], owner)
    fields = {name: value for name, value in changes.items() if isinstance(table[name], Behavior)}
    tensors = dict(artifact.tensors)
    behavior = config.parse(type(artifact.behavior), {**config.to_dict(artifact.behavior), **fields}, owner)
    for name, value in changes.items():
        rule = table[name]
        if not isinstance(rule, Offsets):
            continue
        initial = getattr(behavior, rule.initial)
        offsets = _offsets(value, len(initial), f"{owner}: {name}")
        if name in tensors:
            tensors[name] = torch.tensor(offsets, dtype=torch.float32)
        else:
            decays = tuple(_offset_decay(decay, offset) for decay, offset in zip(initial, offsets, strict=True))
            behavior = replace(behavior, **{rule.initial: decays})
    changed = behavior != artifact.behavior or any(tensors[name] is not artifact.tensors[name] for name in tensors)
    return replace(artifact, behavior=behavior, tensors=tensors, parity=None, path=None) if changed else artifact


def to_tuples(value: Any) -> Any:
    """``value`` with tensors, arrays and lists as tuples, so that equivalent values compare equal."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(to_tuples(each) for each in value) if isinstance(value, (list, tuple)) else value


def _check(artifact: Artifact, name: str, value: Any, rule: Rule, owner: str) -> None:
    if isinstance(rule, Unsupported) and value not in rule.equivalent:
        raise ZooError(f"{owner}: {name} is {quoted(value)}, but {rule.reason}.", rule.hint)
    if isinstance(rule, Size):
        expected = getattr(artifact.architecture, rule.field) - rule.difference
        if value != expected:
            raise ZooError(
                f"{owner}: {name} is {quoted(value)}, but the network of {artifact.name!r} has {expected}.",
                "Leave it out, or use another checkpoint: sizes come from the checkpoint.",
            )


def _offsets(value: Any, length: int, label: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) != length or not all(is_finite(each) for each in numbers):
        raise ZooError(f"{label} is {quoted(value)}.", f"Pass {length} finite numbers, one per decay.")
    return tuple(float(each) for each in numbers)


def _offset_decay(decay: float, offset: float) -> float:
    """``1 − exp(10·(ln(1 − decay)/10 + offset))``, in [0, 1]."""
    exponent = min(10 * offset, 700.0)  # math.exp overflows above 709
    return min(max(1 - (1 - decay) * math.exp(exponent), 0.0), 1.0)
