"""Checks of a saved state before it is loaded: that its groups and parameters are those of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pylo_zoo.optim.checks import require

Group = dict[str, Any]

FORMAT_VERSION = 1
"""Version of the state's names, shapes and meanings; stored in every parameter group."""
OWN_STATE = frozenset(
    [
        *("step", "master", "momentum", "second_moment", "row", "col", "diag", "lstm_hidden", "lstm_cell"),
        *("gradient_sum", "banked", "momentum_buffer", "exp_avg", "exp_avg_sq"),
    ]
)
"""Keys of the per-parameter state of all optimizers. Other keys belong to wrappers such as Lookahead."""


def check_same_groups(incoming: Mapping[str, Any], own_groups: Sequence[Group]) -> None:
    """Check that a saved state has the groups of an optimizer: their number, sizes and order of names.

    Raises:
        ZooError: it does not, it is not an optimizer's state, or its ``format_version`` is unknown.
    """
    missing = [key for key in ("state", "param_groups") if key not in incoming]
    require(not missing, f"This is not an optimizer state: it lacks {missing}.", "Load what state_dict() returned.")
    groups: list[Group] = incoming["param_groups"]
    sizes = [len(group["params"]) for group in groups], [len(group["params"]) for group in own_groups]
    require(
        sizes[0] == sizes[1],
        f"The state's parameter groups hold {sizes[0]} parameters; this optimizer's hold {sizes[1]}.",
        "Build the optimizer with the same groups before loading.",
    )
    versions = {group.get("format_version", FORMAT_VERSION) for group in groups}  # old states have none
    require(
        versions == {FORMAT_VERSION},
        f"The state has format_version {', '.join(map(str, versions))}; this pylo-zoo reads {FORMAT_VERSION}.",
        "Load it with the pylo-zoo release that wrote it, or a later one.",
    )
    for saved, current in zip(groups, own_groups, strict=True):
        names = [list(group.get("param_names") or ()) for group in (saved, current)]
        require(
            names[0] == names[1] or sorted(names[0]) != sorted(names[1]),
            f"The state's parameters are the same in another order: {names[0][:3]}…, here {names[1][:3]}….",
            "Build the optimizer with the parameters in the saved order.",
        )


def entries_by_position(incoming: Mapping[str, Any]) -> dict[int, Any]:
    """The entries of a saved state by the parameter's position.

    Raises:
        ZooError: an entry belongs to no parameter.
    """
    keys = [key for group in incoming["param_groups"] for key in group["params"]]
    entries = parameter_entries(incoming)
    for key in keys:  # JSON turns parameter numbers into strings
        if key not in entries and str(key) in entries:
            entries[key] = entries.pop(str(key))
    unknown = sorted((key for key in entries if key not in keys), key=str)
    require(not unknown, f"The state has entries {unknown} that belong to no parameter.", "Save it again.")
    return {index: entries[key] for index, key in enumerate(keys) if key in entries}


def parameter_entries(incoming: Mapping[str, Any]) -> dict[Any, Any]:
    """The entries of a saved state whose keys are parameter numbers. Wrappers store other entries under other keys."""
    keys = {key for group in incoming["param_groups"] for key in group["params"]}

    def of_parameter(key: Any) -> bool:
        return key in keys or isinstance(key, int) or (isinstance(key, str) and key.isdecimal())

    return {key: entry for key, entry in incoming["state"].items() if of_parameter(key)}
