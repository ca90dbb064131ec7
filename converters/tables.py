"""Table rows that families share: affine maps, the LSTM controller and the per-parameter MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pylo_zoo.converters.base import IDENTITY, TRANSPOSE, UNUSED, Leaves, Path, Rename, Table, Transpose

GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
"""Channels of each of the 14 feature groups of VeLO, Celo and CELO2 (SPEC §4). Leaf ``w0__k`` belongs to group k."""

LAYER = re.compile(r"[wb](\d{1,4})(?:__\d+)?")
"""The leaves of an MLP's layer i: ``wi``, ``bi``, or ``wi__k`` for a group of inputs."""

FF_STACK: Path = ("ff_mod_stack", "~")
NN: Path = ("nn", "~")
HIDDEN: Path = ("lstm_init_state", "hidden")


def affine(path: Path, tensor: str) -> Table:
    """``path/w`` [in, out] and ``path/b`` [out]."""
    return (
        Rename(((*path, "w"),), f"{tensor}.weight", TRANSPOSE),
        Rename(((*path, "b"),), f"{tensor}.bias", IDENTITY),
    )


def mlp(path: Path, hidden_layers: int, groups: tuple[int, ...] = ()) -> Table:
    """``path/w{i}`` and ``path/b{i}`` of every layer. With ``groups``, layer 0 has leaves ``w0__0``, ``w0__1``, …"""
    rows: list[Rename] = []
    for i in range(hidden_layers + 1):
        names = [f"w0__{k}" for k in range(len(groups))] if groups and i == 0 else [f"w{i}"]
        change = Transpose(groups, name="concatenate groups + transpose") if groups and i == 0 else TRANSPOSE
        rows.append(Rename(tuple((*path, name) for name in names), f"mlp.layers.{i}.weight", change))
        rows.append(Rename(((*path, f"b{i}"),), f"mlp.layers.{i}.bias", IDENTITY))
    return tuple(rows)


def unchanged(names: Mapping[str, str], like: Mapping[str, str] | None = None) -> Table:
    """Renames without a layout change, from leaf to tensor. ``like`` is that of :class:`Rename`, by tensor."""
    likes = like or {}
    return tuple(Rename(((name,),), tensor, IDENTITY, likes.get(tensor)) for name, tensor in names.items())


def count_numbered(leaves: Leaves, pattern: str) -> int:
    """Number of leaves in a numbered series, from the highest number. ``pattern`` has the number as its group."""
    matches = (re.fullmatch(pattern, path[-1]) for path in leaves)
    return min(max((int(match[1]) + 1 for match in matches if match), default=0), len(leaves))


def hidden_layers(leaves: Leaves, path: Path) -> int:
    """Hidden layers of the MLP at ``path``: the highest number in its names, so that a missing leaf is detected."""
    names = (LAYER.fullmatch(leaf[-1]) for leaf in leaves if leaf[:-1] == path)
    return min(max((int(name[1]) for name in names if name), default=0), len(leaves))


CONTROLLER: Table = (
    Rename((HIDDEN,), "controller.initial_hidden", IDENTITY),
    Rename((("lstm_init_state", "cell"),), "controller.initial_cell", IDENTITY),
    *affine(("rnn_params", "linear_1"), "controller.pooled"),
    *affine(("rnn_params", "linear_2"), "controller.direct"),
    *affine(("rnn_params", "rnn/linear"), "controller.lstm"),
    *affine(("rnn_params", "step_size"), "controller.step_size"),
    # The original overwrites the result of `linear`, so it is neither trained nor used.
    Rename(
        (("rnn_params", "linear", "w"),), f"{UNUSED}rnn_params.linear.w", TRANSPOSE, like="controller.pooled.weight"
    ),
    Rename((("rnn_params", "linear", "b"),), f"{UNUSED}rnn_params.linear.b", IDENTITY, like="controller.pooled.bias"),
)
"""The LSTM of VeLO, Celo and celo-adam (SPEC §4). ``rnn/linear`` is one key with a slash."""

CONTROLLED_HYPER = {"num_steps": 8, "lr": 1.0, "weight_decay": 0.0001}
"""Parity's hyperparameters for these families: the 10 steps go past the planned end, and decay is less than a step."""

CONTROLS: Table = affine(("rnn_params", "rnn_to_controls"), "controller.controls")
"""The LSTM's additional output in VeLO and Celo: the mixture of MLPs."""
