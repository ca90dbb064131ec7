"""The options that a parameter group may set, and their checks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError, count, nearest
from pylo_zoo.ops.layout import LAYOUTS
from pylo_zoo.optim.checks import check_flag, check_initialized, check_number, check_parameter, check_params, require
from pylo_zoo.optim.options import PER_OPTIMIZER
from pylo_zoo.optim.route_table import position_names

RULES = ("learned", "adamw")
GROUP_OPTIONS = ("params", "param_names", "layout", "rule", "width_mult", "initial_lr", "max_lr", "min_lr")
"""Group options of all optimizers. Other keys that users and schedulers add are ignored."""
NOT_PER_GROUP = (*PER_OPTIMIZER, "clip_norm")
"""Constructor arguments that apply to the whole optimizer."""
ALIASES = {"learning_rate": "lr", "wd": "weight_decay"}
"""Names that people use for an option, and its name here."""
UNSUPPORTED = ("maximize", "amsgrad", "differentiable")
"""Options of torch's optimizers that change the update and are not supported; False is accepted."""


def prepare_group(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """``group`` as torch accepts it next to ``groups``: with names if ``groups`` have names, otherwise without.

    Parameters without names are named by their position.

    Raises:
        ZooError: the group holds a module instead of parameters.
    """
    if not isinstance(group, dict) or "params" not in group or isinstance(group["params"], set):
        return group  # torch reports it
    check_params(group["params"], "A parameter group")
    if not groups:
        return group
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    has_names = "param_names" in group or any(isinstance(each, tuple) for each in params)
    prepared = {**group, "params": params}
    if has_names and "param_names" not in groups[0]:
        prepared["params"] = [each[1] if isinstance(each, tuple) else each for each in params]
        prepared.pop("param_names", None)
    elif not has_names and "param_names" in groups[0]:
        prepared["param_names"] = position_names(len(groups), len(params))
    return prepared


def check_group_options(optimizer: torch.optim.Optimizer, group: dict[str, Any], explicit: frozenset[str]) -> None:
    """Check the options that every optimizer has, and the parameters of the group.

    Args:
        optimizer: the optimizer that gets the group.
        group: the group, with all defaults.
        explicit: the options that the caller set.

    Raises:
        ZooError: an option is unknown, unsupported or invalid, or a parameter cannot be optimized.
    """
    for option in explicit:
        known = (*optimizer.defaults, *GROUP_OPTIONS)
        similar = ALIASES.get(option) or nearest(option, known, cutoff=0.8)
        if option not in known and similar:
            raise ZooError(f"A parameter group has the unknown option {option!r}.", f"Did you mean {similar!r}?")
    for option in explicit.intersection(NOT_PER_GROUP):
        exists = option in inspect.signature(type(optimizer)).parameters
        action = "pass it to the constructor" if exists else "use torch.nn.utils.clip_grad_norm_ before the step"
        raise ZooError(f"A parameter group sets {option}.", f"It applies to the whole optimizer: {action}.")
    for option in UNSUPPORTED:
        require(
            not group.get(option),
            f"A parameter group has {option}={group.get(option)!r}.",
            f"Remove {option}: {type(optimizer).__name__} does not support it.",
        )
    require(group["layout"] in LAYOUTS, f"layout is {group['layout']!r}.", f"Use one of {', '.join(LAYOUTS)}.")
    check_number("lr", group["lr"])
    check_number("weight_decay", group["weight_decay"])
    check_flag("master_weights", group["master_weights"])
    if "rule" in group:
        require(group["rule"] in (None, *RULES), f"rule is {group['rule']!r}.", 'Use "learned" or "adamw".')
    for p in group["params"]:
        check_initialized(p)
        if p.requires_grad:  # frozen parameters may have any dtype and layout, as in quantized models
            check_parameter(p, type(optimizer).__name__, group)


def describe_group(number: int, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The size and options of a group, without the run's state, for ``repr``."""
    parameters = count(sum(p.numel() for p in group["params"]), "parameter")
    title = f"Parameter Group {number}: {parameters} in {count(len(group['params']), 'tensor')}"
    shown = {key: value for key, value in group.items() if key in defaults or key in GROUP_OPTIONS}
    hidden = ("params", "param_names", "format_version")
    return "\n".join([title, *(f"    {key}: {value}" for key, value in sorted(shown.items()) if key not in hidden)])
