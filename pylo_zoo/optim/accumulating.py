"""Calls of ``step`` that only accumulate gradients and the loss, for optimizers with the option ``accumulate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.ops.apply import foreach
from pylo_zoo.optim.base import Group, LearnedOptimizer, Loss
from pylo_zoo.optim.checks import scalar_like
from pylo_zoo.optim.contract import ParamGrad
from pylo_zoo.optim.host_counts import HostCounts
from pylo_zoo.optim.state_checks import Snapshot

SUMS = ("gradient_sum", "loss_sum", "banked")
"""State keys of accumulated calls, of a parameter or the run."""


class AccumulatingOptimizer(LearnedOptimizer):
    """Base class of the optimizers whose state has :data:`SUMS` if ``accumulate`` is more than 1."""

    _counts: HostCounts

    def _accumulate(self, grads: Sequence[ParamGrad], loss: Loss | None) -> None:
        """Add gradients and loss to the accumulated sums."""
        self._init_state(grads)
        run, condition = self.param_groups[0], self._condition
        added, loss = [g for _, g, _ in grads], scalar_like(loss, run["loss_sum"])
        if condition.is_active:  # a sum is never −0, so adding 0 keeps its bits
            added, loss = (
                [condition.choose(g, torch.zeros_like(g)) for g in added],
                condition.choose(loss, torch.zeros_like(loss)),
            )
        states = [self.state[p] for p, _, _ in grads]
        foreach._foreach_add_([state["gradient_sum"] for state in states], added)
        condition.advance([state["banked"] for state in states])
        run["loss_sum"] += loss
        condition.advance([run["banked"]])

    def _check(self, grads: Sequence[ParamGrad]) -> Snapshot | None:
        """Check this step's parameters and those with accumulated gradients, which the rule's step updates as well."""
        if self.param_groups[0]["accumulate"] > 1:
            self._counts.refresh(self.param_groups[0], self.state)
            members = [(p, group) for group in self.param_groups for p in group["params"] if self.state.get(p)]
            accumulating = [
                ParamGrad(p, p, group)
                for p, group in members
                if _is_malformed(p, self.state[p]) or self._counts.is_accumulating(p, self.state[p])
            ]
            self._checks.check(self, accumulating, "accumulating")
        return super()._check(grads)

    def _count_call(self, grads: Sequence[ParamGrad]) -> list[tuple[Tensor, Group]]:
        """Count an accumulated call on the host, and decide which call it is.

        Runs outside compiled graphs, because it may read counters. Returns the parameters with accumulated gradients if
        the call completes a step of the rule, else none.
        """
        run = self.param_groups[0]
        self._counts.add_call([p for p, _, _ in grads])
        self._counts.completes_step = True
        if self._condition.is_active:
            return self._condition_on_call(run)
        if self._counts.calls(run) < run["accumulate"]:
            return []
        members = [(p, group) for group in self.param_groups for p in group["params"] if p in self.state]
        members = [(p, group) for p, group in members if self._counts.is_accumulating(p, self.state[p])]
        self._counts.reset_calls()
        return members

    def _condition_on_call(self, run: Group) -> list[tuple[Tensor, Group]]:
        """Condition the step on whether this call is the last one to accumulate; returns the step's parameters.

        Only the device knows how many calls it has skipped, so every call runs the step of the rule. A parameter that
        has accumulated before gets a step even if it has no gradient in any of this step's calls.
        """
        due = self._condition.mask(run["banked"].device) & (run["banked"] == run["accumulate"])
        self._condition.set(due)
        self._counts.completes_step = self._counts.calls(run) >= run["accumulate"]
        if self._counts.completes_step:
            self._counts.reset_calls(keep_parameters=True)
        members = [(p, group) for group in self.param_groups for p in group["params"] if p in self.state]
        return [(p, group) for p, group in members if self._counts.is_accumulating(p, self.state[p])]

    def _means(self, members: Sequence[tuple[Tensor, Group]]) -> tuple[list[ParamGrad], Tensor]:
        """The mean gradients of ``members`` and the mean loss. A missing gradient counts as zeros."""
        run = self.param_groups[0]
        grads = [ParamGrad(p, self.state[p]["gradient_sum"] / run["accumulate"], group) for p, group in members]
        return grads, run["loss_sum"] / run["accumulate"]

    def _reset_sums(self, members: Sequence[tuple[Tensor, Group]]) -> None:
        run = self.param_groups[0]
        states = [run, *(self.state[p] for p, _ in members)]
        for sums in ([state[name] for state in states if name in state] for name in SUMS):
            if self._condition.is_active:
                for each in sums:
                    each.masked_fill_(self._condition.mask(each.device), 0)
            else:
                foreach._foreach_zero_(sums)


def _is_malformed(p: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the counter of a parameter's accumulated calls cannot be read (the checks report it)."""
    banked = state.get("banked", 0)
    if isinstance(banked, Tensor):
        return banked.numel() != 1 or banked.dtype != torch.int64 or banked.device != p.device
    return banked != 0
