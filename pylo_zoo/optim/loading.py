"""Saving and loading the state of an optimizer: checked as a whole before anything changes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.optim.checks import copy_to_device, require, to_state_tensors
from pylo_zoo.optim.param_grad import Group
from pylo_zoo.optim.saved_state import OWN_STATE, check_same_groups, entries_by_position, parameter_entries


class LoadsState(torch.optim.Optimizer):
    """An optimizer that loads a state only if all of it fits."""

    @abstractmethod
    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        """The state of ``p`` before its first step, on its device, which may be the meta device."""

    @abstractmethod
    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        """Raise if an option is invalid; ``explicit`` are the options that the caller set, the others are defaults."""

    def state_dict(self) -> dict[str, Any]:
        """Like :meth:`torch.optim.Optimizer.state_dict`, without the empty entries that reading ``state[p]`` adds."""
        saved = super().state_dict()
        if any(isinstance(entry, dict) and not entry for entry in saved["state"].values()):
            saved["state"] = {key: entry for key, entry in saved["state"].items() if entry}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check a state, then load it as :meth:`torch.optim.Optimizer.load_state_dict` does, but keep its dtypes.

        torch casts state to the parameter's dtype, which would round the float32 accumulators of 16-bit parameters;
        here only the device changes. Entries of wrappers such as Lookahead are kept. Numbers and lists, as in JSON
        files, become tensors.

        Raises:
            ZooError: the state comes from another run, or one of the optimizer's own entries is missing or has another
                shape. Nothing has changed then.
        """
        loaded: list[dict[int, dict[str, Any]]] = []

        def check_and_remove(_: torch.optim.Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            loaded.append(self._checked_state(incoming))
            own = parameter_entries(incoming)
            return {**incoming, "state": {key: each for key, each in incoming["state"].items() if key not in own}}

        def assign(_: torch.optim.Optimizer) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            for index, state in loaded[0].items():
                self.state[parameters[index]] = state
            self._after_loading()

        hooks = [
            self.register_load_state_dict_pre_hook(check_and_remove),
            self.register_load_state_dict_post_hook(assign, True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_saved_groups(self, incoming: Mapping[str, Any]) -> None:
        """Raise if saved groups are invalid or belong to another run. Their number and sizes have been checked."""
        for group in incoming["param_groups"]:
            self._check_group({**self.defaults, **group, "params": []}, frozenset())

    def _after_loading(self) -> None:
        """Called after state and groups are replaced, before the user's hooks."""
        for group in self.param_groups:  # an older version saved fewer options
            for option, value in self.defaults.items():
                group.setdefault(option, value)

    def _checked_state(self, incoming: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The saved state by parameter position, on the parameters' devices; raises if it does not fit."""
        check_same_groups(incoming, self.param_groups)
        self._check_saved_groups(incoming)
        entries = entries_by_position(incoming)
        parameters = [p for group in self.param_groups for p in group["params"]]
        saved_groups = [group for group in incoming["param_groups"] for _ in group["params"]]
        return {
            index: self._checked_entry(index, entries[index], p, {**self.defaults, **group})
            for index, (p, group) in enumerate(zip(parameters, saved_groups, strict=True))
            if index in entries
        }

    def _checked_entry(self, index: int, entry: Mapping[str, Any], p: Tensor, group: Group) -> dict[str, Any]:
        """The state of one parameter on its device: the optimizer's own entries are checked, others are copied.

        Before its first step, a parameter may have entries of wrappers only.
        """
        owner = f"The state of parameter {index}, of shape {tuple(p.shape)},"
        require(isinstance(entry, Mapping), f"{owner} is a {type(entry).__name__}.", "Load what state_dict() returned.")
        expected: dict[str, Tensor] = {}
        if p.is_floating_point():
            expected = self.expected_state(torch.empty(p.shape, device="meta", dtype=p.dtype), group)
        own = {name: value for name, value in entry.items() if name in expected or name in OWN_STATE}
        others = {name: copy_to_device(value, p.device) for name, value in entry.items() if name not in own}
        return {**to_state_tensors(own, expected, p.device, owner), **others} if own or not others else others
