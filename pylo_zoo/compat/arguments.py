"""What becomes of PyLO's constructor arguments: one table an optimizer, and one function that applies it.

PyLO keeps in constructor arguments what belongs to a checkpoint: sizes of the network, decays, multipliers. Here that
belongs to the artifact. A value that is PyLO's own default says nothing, and the artifact decides; any other value
changes the artifact's behaviour, has to agree with its sizes, or is refused with a reason.
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


@dataclass(frozen=True)
class Behavior:
    """Sets the field of the checkpoint's behaviour that has the argument's name."""


@dataclass(frozen=True)
class Offsets:
    """Learned offsets of the decays that the behaviour's field ``initial`` holds (SPEC §3)."""

    initial: str


@dataclass(frozen=True)
class Size:
    """A size of the network; ``field`` of the architecture is ``more`` larger than the argument."""

    field: str
    more: int = 0


@dataclass(frozen=True)
class Unsupported:
    """Only PyLO's default, or one of ``same``, which mean the same, can be had; ``why`` and ``hint`` say so."""

    why: str
    hint: str = "Leave it out."
    same: tuple[Any, ...] = ()


Rule = Behavior | Offsets | Size | Unsupported
Table = Mapping[str, Rule]

UNREAD = Unsupported("PyLO takes it and never reads it, so it changes nothing there either")
UNREAD_CLIP = Unsupported(
    "PyLO takes it and never reads it: gradients are not clipped there either",
    "Leave it out, or call torch.nn.utils.clip_grad_norm_ before step().",
)
UNREAD_LRS = Unsupported(
    "PyLO takes it and never reads it", 'Leave it out; set "lr" in the parameter groups, or use MuLO_naive.'
)
ONE_INPUT = Unsupported("the features are part of the update rule, and their number with them")

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
MLP: Table = {"hidden_size": Size("hidden_size"), "hidden_layers": Size("hidden_layers", more=1)}

VELO: Table = {
    **INITIAL,
    **OFFSETS,
    **MULTIPLIERS,
    **UNUSED,
    "input_size": ONE_INPUT,
    "lstm_input_size": ONE_INPUT,
    "hidden_size": Size("ff_hidden_size"),
    "hidden_layers": Size("ff_hidden_layers", more=1),
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
    "clip_grad": Unsupported(UNREAD_CLIP.why, "Leave it out; max_grad_norm clips the gradient of each parameter."),
    "mup_lrs": UNREAD_LRS,
}
ADAFAC_CUDA: Table = {
    **INITIAL,
    **OFFSETS,
    **MULTIPLIERS,
    "min_dim_size_to_factor": Unsupported("PyLO never reads it: every parameter of two axes is factored"),
    "decay_rate": UNREAD,
    "decay_offset": UNREAD,
    "beta2_cap": UNREAD,
    "clipping_threshold": UNREAD,
    "unscaled_wd": UNREAD,
    "momentum_dtype": Unsupported(
        "accumulators are float32, and float64 for float64 parameters", same=("float32", torch.float32)
    ),
    "eps": Unsupported("what is added to squared gradients is 1e-30, as in the original", same=(1e-30,)),
    "foreach": Unsupported("PyLO has no multi-tensor version either", same=(None,)),
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
    made: Artifact, table: Table, given: Mapping[str, Any], constructor: Callable[..., Any]
) -> Artifact:
    """``made``, changed as the arguments say.

    Args:
        made: the artifact.
        table: what becomes of each argument.
        given: the arguments' values; others than the table's may be among them.
        constructor: whose arguments they are, with PyLO's defaults in its signature.

    Returns:
        ``made`` itself where every argument of the table has its default.

    Raises:
        ZooError: an argument is refused, malformed, or contradicts the network's sizes.
    """
    default = defaults_of(constructor)
    said = {name: to_tuples(given[name]) for name in table if to_tuples(given[name]) != to_tuples(default[name])}
    where = constructor.__qualname__.partition(".")[0]
    for name, value in said.items():
        _check(made, name, value, table[name], where)
    fields = {name: value for name, value in said.items() if isinstance(table[name], Behavior)}
    tensors = dict(made.tensors)
    behavior = config.parse(type(made.behavior), {**config.to_dict(made.behavior), **fields}, where)
    for name, value in said.items():
        rule = table[name]
        if not isinstance(rule, Offsets):
            continue
        initial = getattr(behavior, rule.initial)
        offsets = _offsets(value, len(initial), f"{where}: {name}")
        if name in tensors:
            tensors[name] = torch.tensor(offsets, dtype=torch.float32)
        else:
            moved = tuple(_moved(decay, offset) for decay, offset in zip(initial, offsets, strict=True))
            behavior = replace(behavior, **{rule.initial: moved})
    changed = behavior != made.behavior or any(tensors[name] is not made.tensors[name] for name in tensors)
    return replace(made, behavior=behavior, tensors=tensors, parity=None, path=None) if changed else made


def to_tuples(value: Any) -> Any:
    """``value`` so that two that mean the same are equal: tensors, arrays and lists as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(to_tuples(each) for each in value) if isinstance(value, (list, tuple)) else value


def _check(made: Artifact, name: str, value: Any, rule: Rule, where: str) -> None:
    if isinstance(rule, Unsupported) and value not in rule.same:
        raise ZooError(f"{where}: {name} is {value!r}: {rule.why}.", rule.hint)
    if isinstance(rule, Size):
        has = getattr(made.architecture, rule.field) - rule.more
        if value != has:
            raise ZooError(
                f"{where}: {name} is {value!r}, and the network of {made.name!r} has {has}.",
                "Sizes come from the checkpoint: leave it out, or give another checkpoint.",
            )


def _offsets(value: Any, length: int, what: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, tuple) else (value,)
    good = all(config.is_finite(each) for each in numbers)
    if not good or len(numbers) != length:
        raise ZooError(f"{what} is {quoted(value)}.", f"Give {length} finite numbers, one a decay.")
    return tuple(float(each) for each in numbers)


def _moved(decay: float, offset: float) -> float:
    """``1 − exp(10·(ln(1 − decay)/10 + offset))``, in [0, 1]."""
    return min(max(1 - (1 - decay) * math.exp(10 * offset), 0.0), 1.0)
