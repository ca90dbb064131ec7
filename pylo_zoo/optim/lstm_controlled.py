"""The stage that VeLO, Celo and CeloAdam share: an LSTM over all tensors, before the update (SPEC §4, §5)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.nets import Control
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.apply import foreach
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.advice import LrWatch, schedule_warning
from pylo_zoo.optim.base import Group, LearnedOptimizer, Loss, ParamStep, new_counter, state_dtype
from pylo_zoo.optim.checks import as_float, is_of_one_process, require
from pylo_zoo.optim.contract import ParamGrad

DECAYS = ("decoupled", "l2")
OF_THE_RUN = ("num_steps", "accumulate")
"""Options that all groups have alike."""
LONGEST_RUN = 150_000
"""Steps up to which ``accumulate="auto"`` accumulates nothing (SPEC §4)."""
MAX_GRADIENT = 1000.0
"""Gradients are clipped to this, element by element, before the update (SPEC §4)."""


class LSTMControlledOptimizer(LearnedOptimizer):
    """Base of the optimizers whose step sizes an LSTM chooses from the loss and the fraction of training done.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        num_steps: steps that the run will take. Later steps go on with the last step's fraction, and warn once.
        lr: multiplies every step; 1 is what the weights were trained with.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        weights: registry name, artifact directory or loaded artifact.
        decay: the form of the weight decay. ``"decoupled"``, as above, or ``"l2"``, as in Google's wrapper:
            ``g ← g + weight_decay·p`` before the rule, and ``loss ← loss + weight_decay·Σp²``. A group's option.
        accumulate: calls of ``step`` that make one step of the rule, on the means of their gradients and losses; the
            others move nothing. ``"auto"`` is Google's choice, ``ceil(num_steps / 150_000)``: VeLO was trained on runs
            of up to 200,000 steps. The rule then sees a run of ``num_steps // accumulate`` steps.
        nonfinite, master_weights, backend: :class:`~pylo_zoo.optim.base.LearnedOptimizer`.

    State of a parameter beside its accumulators: ``lstm_hidden`` and ``lstm_cell`` ``[H]``; of the run: ``step``,
    ``loss_average [10]`` and ``loss_minimum [10]``. While it accumulates, ``gradient_sum [*shape]`` and ``banked``
    beside the former, ``loss_sum`` and ``banked`` beside the latter.
    """

    needs_loss: ClassVar[bool] = True
    learns_step_sizes = True

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor,
        weight_decay: float,
        weights: str | Artifact,
        decay: str,
        accumulate: int | str,
        nonfinite: str,
        master_weights: bool,
        backend: str,
    ) -> None:
        _check_whole("num_steps", num_steps)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "decay": decay,
            "num_steps": int(num_steps),
            "accumulate": -(-num_steps // LONGEST_RUN) if accumulate == "auto" else accumulate,
        }
        if isinstance(defaults["accumulate"], int) and defaults["accumulate"] > num_steps:
            raise ZooError(
                f"accumulate is {accumulate}, more than num_steps={num_steps}.",
                "num_steps counts calls of step, of which accumulate make one step of the rule.",
            )
        self._lr_watch = LrWatch()
        super().__init__(params, defaults, weights, None, nonfinite, master_weights, backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lr_watch = LrWatch()

    def add_param_group(self, param_group: Group) -> None:
        run = self.param_groups[0] if self.param_groups else self.defaults
        for option in OF_THE_RUN if isinstance(param_group, dict) else ():
            if param_group.setdefault(option, run[option]) != run[option]:
                raise ZooError(
                    f"A parameter group has {option}={param_group[option]}, the run {run[option]}.",
                    f"{option} belongs to the run: give it to the constructor alone.",
                )
        super().add_param_group(param_group)

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        super()._check_group(group, given)
        for option in OF_THE_RUN:
            _check_whole(option, group[option])
        require(group["decay"] in DECAYS, f"decay is {group['decay']!r}.", f"Use one of {', '.join(DECAYS)}.")

    def _check_saved_groups(self, incoming: Mapping[str, Any]) -> None:
        super()._check_saved_groups(incoming)
        saved, mine = incoming["param_groups"][0].get("accumulate", 1), self.param_groups[0]["accumulate"]
        require(
            saved == mine,
            f"The state was written with accumulate={saved}; this optimizer has {mine}.",
            f"Build the optimizer with accumulate={saved}.",
        )

    @property
    def num_steps(self) -> int:
        """Calls of ``step`` that the run was planned to take."""
        return self.param_groups[0]["num_steps"]

    @property
    def horizon(self) -> int:
        """Steps that the rule was planned to take: :attr:`num_steps`, fewer where it accumulates."""
        return max(1, self.num_steps // self.param_groups[0]["accumulate"])

    @abstractmethod
    def lstm_inputs(self, items: Sequence[ParamStep], run_features: Tensor) -> Tensor:
        """The LSTM's inputs ``[N, inputs]``, from ``run_features [18]``: nine of the fraction, nine of the loss."""

    @abstractmethod
    def contexts(self, items: Sequence[ParamStep], control: Control) -> Sequence[Any]:
        """What :meth:`update` needs of the LSTM's outputs, one entry a parameter."""

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        state = super().expected_state(p, group)
        if group["accumulate"] > 1:
            total = torch.zeros(p.shape, device=p.device, dtype=state_dtype(p))
            state |= {"gradient_sum": total, "banked": new_counter()}
        return state

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        controller: Any = self._meta(torch.device("cpu"), p.dtype).net.controller
        hidden, cell = controller.initial_hidden[0], controller.initial_cell[0]
        return {name: value.clone().to(p.device) for name, value in (("lstm_hidden", hidden), ("lstm_cell", cell))}

    def new_run_state(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        average = torch.zeros(conditioning.LOSS_DECAYS, device=device, dtype=dtype)
        minimum = torch.full_like(average, conditioning.LOSS_MINIMUM_START)
        state = {**super().new_run_state(device, dtype), "loss_average": average, "loss_minimum": minimum}
        if self.param_groups[0]["accumulate"] > 1:
            state |= {"loss_sum": torch.zeros((), device=device, dtype=dtype), "banked": new_counter()}
        return state

    def _step(self, due: Sequence[ParamGrad], loss: Loss | None) -> None:
        if not torch.compiler.is_compiling() and is_of_one_process(loss):
            self._warn_once(
                "mean",
                "there are several processes, and this loss is one's own: replicas drift apart. Give each the mean: "
                "mean = loss.detach().clone(); dist.all_reduce(mean); step(mean / dist.get_world_size()).",
            )
        if self.param_groups[0]["accumulate"] > 1:
            self._bank(due, loss)
            if int(self.param_groups[0]["banked"]) < self.param_groups[0]["accumulate"]:
                return
            due, loss = self._withdraw()
        super()._step(due, loss)

    def _prime(self, due: Sequence[ParamGrad]) -> None:
        super()._prime(due)
        if "schedule" not in self._warned and (fall := self._lr_watch.fall(self.param_groups)):
            self._warn_once("schedule", schedule_warning(type(self).__name__, *fall))

    def _bank(self, due: Sequence[ParamGrad], loss: Loss | None) -> None:
        """Add gradients and loss to what waits for the step that they make together."""
        self._prime(due)
        for p, g, _ in due:
            self.state[p]["gradient_sum"] += g
            self.state[p]["banked"] += 1
        run = self.param_groups[0]
        run["loss_sum"] += scalar_like(loss, run["loss_sum"])
        run["banked"] += 1

    def _check(self, due: Sequence[ParamGrad]) -> bool:
        """Check every parameter of this step and every one whose gradients wait, which the rule's step moves too."""
        if self.param_groups[0]["accumulate"] > 1:
            members = [(p, group) for group in self.param_groups for p in group["params"] if self.state.get(p)]
            self._checks.check(
                self, [ParamGrad(p, p, group) for p, group in members if _waits(self.state[p])], "waiting"
            )
        return super()._check(due)

    def _withdraw(self) -> tuple[list[ParamGrad], Tensor]:
        """Means of the gradients and losses that waited, and the bank empty. An absent gradient counts as zeros."""
        run, due = self.param_groups[0], []
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state and int(self.state[p].get("banked", 0)) > 0:
                    due.append(ParamGrad(p, self.state[p]["gradient_sum"] / run["accumulate"], group))
                    self.state[p].update(gradient_sum=torch.zeros_like(due[-1].gradient), banked=new_counter())
        loss = run["loss_sum"] / run["accumulate"]
        run["loss_sum"].zero_()
        run["banked"].zero_()
        return due, loss

    def _item(self, due: ParamGrad, scale: Tensor | None) -> ParamStep:
        item = super()._item(due, scale)
        item.l2 = item.group["weight_decay"] if _is_l2(item.group) else 0.0
        return item

    def prepare(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> Sequence[Any]:
        run, horizon = self.param_groups[0], self.horizon
        average, minimum = run["loss_average"], run["loss_minimum"]
        if not torch.compiler.is_compiling() and not step < horizon:  # in a graph, nothing reads the count back
            self._warn_once("horizon", f"this run goes past its num_steps={self.num_steps}; the fraction stays.")
        t = step.to(average.device)
        bugged = getattr(self.behavior, "use_bugged_loss_features", False)
        decays = conditioning.loss_decays(10 if bugged else horizon, average)
        seen = scalar_like(loss, average)
        for item in items:
            if item.l2:
                seen = seen + (item.l2 * item.look().square().sum()).to(average)
        conditioning.advance_loss(average, minimum, t, seen, decays)
        fraction = conditioning.fraction_features(t.clamp(max=horizon - 1), horizon, average)
        losses = conditioning.loss_features(average, minimum, t + 1, decays)
        record("fraction_features", fraction)
        record("loss_features", losses)

        meta = self._meta(average.device, average.dtype)
        hidden, cell = (torch.stack([item.state[name].to(average) for item in items]) for name in _LSTM_STATE)
        inputs = self.lstm_inputs(items, torch.cat([fraction, losses]))
        control = meta.net(inputs, hidden, cell)
        record("lstm_inputs", inputs)
        record("lr_mult", control.lr_mult)
        if not getattr(self.behavior, "use_bugged_next_lstm_state", False):
            for name, following in zip(_LSTM_STATE, (control.hidden, control.cell), strict=True):
                foreach._foreach_copy_([item.state[name] for item in items], following.unbind())
        return self.contexts(items, control)


def decoupled(group: Group) -> float:
    """The weight decay that stands in the update itself: none where it has gone into the gradient."""
    return 0.0 if _is_l2(group) else group["weight_decay"]


def scalar_like(loss: Any, like: Tensor) -> Tensor:
    """The loss as a scalar without history, on the device and in the dtype of ``like``."""
    if isinstance(loss, int) and not -(2**63) <= loss < 2**63:  # more than torch.as_tensor converts
        loss = as_float(loss)
    return torch.as_tensor(loss).detach().to(like).reshape(())


def _waits(state: Mapping[str, Any]) -> bool:
    """Whether gradients of a parameter wait for the step that they make together, or its count cannot be read."""
    banked = state.get("banked", 0)
    if isinstance(banked, Tensor):
        readable = banked.numel() == 1 and banked.dtype == torch.int64 and not banked.is_meta
        return not readable or banked.item() > 0
    return banked != 0


def _is_l2(group: Group) -> bool:
    return group["decay"] == "l2" and group["weight_decay"] != 0


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value < 2**63:
        raise ZooError(f"{name} is {quoted(value)}.", f"Give {name} as a whole number, 1 or more, such as 10_000.")


_LSTM_STATE = ("lstm_hidden", "lstm_cell")
