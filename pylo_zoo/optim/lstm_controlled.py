"""The base class of VeLO, Celo and CeloAdam: an LSTM over all tensors runs before the updates (SPEC §4, §5)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import LSTMPlan
from pylo_zoo.nets import Control
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.apply import foreach
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import is_listening, record
from pylo_zoo.ops.transfer import number
from pylo_zoo.optim.accumulating import AccumulatingOptimizer
from pylo_zoo.optim.advice import LRWatch, schedule_warning
from pylo_zoo.optim.base import Group, Loss, ParamStep, state_dtype
from pylo_zoo.optim.checks import check_positive_int, is_local_loss, require, scalar_like
from pylo_zoo.optim.contract import ParamGrad
from pylo_zoo.optim.host_counts import HostCounts
from pylo_zoo.optim.options import SharedOptions, Unpack
from pylo_zoo.optim.state_checks import Snapshot, join
from pylo_zoo.optim.step_condition import new_counter
from pylo_zoo.optim.step_plan import share_memory

DECAYS = ("decoupled", "l2")
RUN_OPTIONS = ("num_steps", "accumulate")
"""Group options that belong to the run; all groups have the same value."""
LONGEST_PLAIN_RUN = 150_000
"""Up to this many steps, ``accumulate="auto"`` does not accumulate (SPEC §4)."""
MAX_GRADIENT = 1000.0
"""Gradients are clipped elementwise to ± this value before the update (SPEC §4)."""
LSTM_STATE = ("lstm_hidden", "lstm_cell")
"""State keys of the LSTM."""


class LSTMControlledOptimizer(AccumulatingOptimizer):
    """Base class of the optimizers with an LSTM that reads the loss and the fraction of training done.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        num_steps: planned number of steps. Later steps use the last step's fraction and warn once.
        lr: factor on every step; the weights were trained with 1.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        weights: registry name, artifact directory or loaded artifact.
        decay: ``"decoupled"`` for the weight decay above, or ``"l2"`` for that of Google's wrapper:
            ``g ← g + weight_decay·p`` and ``loss ← loss + weight_decay·Σp²`` before the rule. Groups may override it.
        accumulate: number of calls of ``step`` per step of the rule, which uses their mean gradients and mean loss. The
            rule then plans for ``num_steps // accumulate`` steps. ``"auto"`` is Google's choice,
            ``ceil(num_steps / 150_000)``, because VeLO was meta-trained on runs of up to 200,000 steps. On an
            accelerator with ``nonfinite="skip"``, each call costs a step of the rule, because only the device knows how
            many calls it has skipped.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    State of a parameter, in addition to its accumulators: ``lstm_hidden`` and ``lstm_cell`` ``[H]``, and with
    ``accumulate`` also ``gradient_sum [*shape]`` and ``banked``. State of the run: ``step``, ``loss_average [10]`` and
    ``loss_minimum [10]``, and with ``accumulate`` also ``loss_sum`` and ``banked``, the number of accumulated calls.
    """

    needs_loss: ClassVar[bool] = True
    learns_step_sizes = True
    plan_options = ("decay",)

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor,
        weight_decay: float,
        weights: str | Artifact,
        decay: str,
        accumulate: int | str,
        **options: Unpack[SharedOptions],
    ) -> None:
        check_positive_int("num_steps", num_steps)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "decay": decay,
            "num_steps": int(num_steps),
            "accumulate": -(-num_steps // LONGEST_PLAIN_RUN) if accumulate == "auto" else accumulate,
        }
        if isinstance(defaults["accumulate"], int) and defaults["accumulate"] > num_steps:
            raise ZooError(
                f"accumulate is {accumulate}, more than num_steps={num_steps}.",
                "Use accumulate ≤ num_steps: both count calls of step.",
            )
        self._lr_watch, self._counts = LRWatch(), HostCounts()
        super().__init__(params, defaults, weights, None, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lr_watch, self._counts = LRWatch(), HostCounts()

    def add_param_group(self, param_group: Group) -> None:
        run = self.param_groups[0] if self.param_groups else self.defaults
        for option in RUN_OPTIONS if isinstance(param_group, dict) else ():
            if param_group.setdefault(option, run[option]) != run[option]:
                raise ZooError(
                    f"A parameter group has {option}={param_group[option]}, but the run has {run[option]}.",
                    f"Pass {option} to the constructor only: it belongs to the run.",
                )
        super().add_param_group(param_group)

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        super()._check_group(group, explicit)
        for option in RUN_OPTIONS:
            check_positive_int(option, group[option])
        require(group["decay"] in DECAYS, f"decay is {group['decay']!r}.", f"Use one of {', '.join(DECAYS)}.")

    def _check_saved_groups(self, incoming: Mapping[str, Any]) -> None:
        super()._check_saved_groups(incoming)
        saved, current = incoming["param_groups"][0].get("accumulate", 1), self.param_groups[0]["accumulate"]
        require(
            saved == current,
            f"The state was saved with accumulate={saved}; this optimizer has {current}.",
            f"Build the optimizer with accumulate={saved}.",
        )

    def _after_loading(self) -> None:
        super()._after_loading()
        self._counts.refresh(self.param_groups[0], self.state)

    @property
    def num_steps(self) -> int:
        """The planned number of calls of ``step``."""
        return self.param_groups[0]["num_steps"]

    @property
    def horizon(self) -> int:
        """The planned number of steps of the rule: :attr:`num_steps`, divided by ``accumulate``."""
        return max(1, self.num_steps // self.param_groups[0]["accumulate"])

    @abstractmethod
    def lstm_inputs(self, items: Sequence[ParamStep], run_features: Tensor, moments: Tensor | None) -> Tensor:
        """The LSTM's inputs ``[N, inputs]``; ``run_features [18]`` are nine fraction and nine loss features.

        ``moments`` is that of :meth:`prepare`.
        """

    def lstm_ranks(self, items: Sequence[ParamStep], like: Tensor) -> Tensor | None:
        """One-hot ranks ``[N, 5]`` in the dtype and on the device of ``like``; None if the LSTM does not read them."""
        return None

    @abstractmethod
    def contexts(self, items: Sequence[ParamStep], control: Control) -> Any:
        """A sequence or tensor of one context per parameter for :meth:`update`, from the LSTM's outputs."""

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        state = super().expected_state(p, group)
        if group["accumulate"] > 1:
            total = torch.zeros(p.shape, device=p.device, dtype=state_dtype(p))
            state |= {"gradient_sum": total, "banked": new_counter(p.device)}
        return state

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        controller: Any = self._meta_network(torch.device("cpu"), p.dtype).net.controller
        hidden, cell = controller.initial_hidden[0], controller.initial_cell[0]
        return {name: value.clone().to(p.device) for name, value in (("lstm_hidden", hidden), ("lstm_cell", cell))}

    def new_run_state(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        average = torch.zeros(conditioning.LOSS_DECAYS, device=device, dtype=dtype)
        minimum = torch.full_like(average, conditioning.LOSS_MINIMUM_START)
        state = {**super().new_run_state(device, dtype), "loss_average": average, "loss_minimum": minimum}
        if self.param_groups[0]["accumulate"] > 1:
            state |= {"loss_sum": torch.zeros((), device=device, dtype=dtype), "banked": new_counter(device)}
        return state

    def _step(self, grads: Sequence[ParamGrad], loss: Loss | None) -> None:
        if not torch.compiler.is_compiling() and is_local_loss(loss):
            self._warn_once(
                "mean",
                "each process passes its own loss, so replicas drift apart. Pass the mean: "
                "mean = loss.detach().clone(); dist.all_reduce(mean); step(mean / dist.get_world_size()).",
            )
        if self.param_groups[0]["accumulate"] > 1:
            self._accumulate(grads, loss)
            members = self._count_call(grads)
            if not members:
                return
            grads, loss = self._means(members)
            self._reset_sums(members)
        super()._step(grads, loss)
        if not torch.compiler.is_compiling() and self._counts.completes_step:
            self._counts.add_step()

    def _frozen(self, run: Group) -> tuple[Hashable, ...]:
        return (*super()._frozen(run), self.horizon)

    def _init_state(self, grads: Sequence[ParamGrad]) -> Snapshot | None:
        snapshot = super()._init_state(grads)
        self._counts.refresh(self.param_groups[0], self.state)
        if "schedule" not in self._warned and (fall := self._lr_watch.detect_fall(self.param_groups)):
            self._warn_once("schedule", schedule_warning(type(self).__name__, *fall))
        return snapshot

    def _begin(self, grads: Sequence[ParamGrad]) -> Sequence[ParamStep]:
        items = super()._begin(grads)
        if not torch.compiler.is_compiling() and self._counts.step(self.param_groups[0]) >= self.horizon:
            self._warn_once(
                "horizon",
                f"this run is longer than num_steps={self.num_steps}; the fraction of training keeps its last value.",
            )
        if any(group["decay"] == "l2" for group in self.param_groups):
            for item in items:
                item.l2 = item.group["weight_decay"] if _is_l2(item.group) else 0.0
        return items

    def _share_state(self, items: Sequence[ParamStep]) -> None:
        super()._share_state(items)
        for name in LSTM_STATE:
            share_memory([item.state for item in items], name)

    def prepare(
        self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None, moments: Tensor | None = None
    ) -> Sequence[Any]:
        run, horizon = self.param_groups[0], self.horizon
        average, minimum = run["loss_average"], run["loss_minimum"]
        earlier = 0 if torch.compiler.is_compiling() else self._counts.step(run)
        bugged = getattr(self.behavior, "use_bugged_loss_features", False)
        decays = self._loss_decays(items, 10 if bugged else horizon, average)
        total_loss = scalar_like(loss, average)
        for item in items:
            if item.l2:
                total_loss = total_loss + (item.l2 * item.read_value().square().sum()).to(average)
        shared = self._shared_lstm_state(items, average)
        lstm = None if shared is None or self._condition.is_active else self._plan_lstm(items, *shared)
        if lstm is not None:
            return self.contexts(items, self._control_fused(items, lstm, decays, total_loss, earlier + 1, moments))
        t = number(step, average, torch.int64)
        saved = self._condition.save([average, minimum])
        conditioning.advance_loss(average, minimum, t, total_loss, decays)
        fraction = conditioning.fraction_features(t.clamp(max=horizon - 1), horizon, average)
        losses = conditioning.loss_features(average, minimum, t + 1, decays)
        self._condition.restore(saved)
        record("fraction_features", fraction)
        record("loss_features", losses)

        hidden, cell = shared or (torch.stack([item.state[name].to(average) for item in items]) for name in LSTM_STATE)
        inputs = self.lstm_inputs(items, torch.cat([fraction, losses]), moments)
        control = self._meta_network(average.device, average.dtype).net(inputs, hidden, cell)
        record("lstm_inputs", inputs)
        record("lr_mult", control.lr_mult)
        if not getattr(self.behavior, "use_bugged_next_lstm_state", False):
            for name, old, new in zip(LSTM_STATE, (hidden, cell), (control.hidden, control.cell), strict=True):
                new = self._condition.choose(new, old)
                if shared:
                    old.copy_(new)
                else:
                    foreach._foreach_copy_([item.state[name] for item in items], new.unbind())
        return self.contexts(items, control)

    def _control_fused(
        self,
        items: Sequence[ParamStep],
        lstm: LSTMPlan,
        decays: Tensor,
        loss: Tensor,
        losses: int,
        moments: Tensor | None,
    ) -> Control:
        """The LSTM's step with fused kernels; ``losses`` is the number of losses, this one included."""
        run = self.param_groups[0]["loss_average"], self.param_groups[0]["loss_minimum"]
        inputs = lstm.inputs(run, decays, loss.resolve_neg(), losses, self.horizon, moments)
        keep_state = getattr(self.behavior, "use_bugged_next_lstm_state", False)
        hidden, cell, heads = lstm.step(inputs, keep_state)
        net: Any = items[0].meta.net
        control = net.finish(Control(hidden, cell, heads[:, :-1], heads[:, -1]))
        if is_listening():
            record("fraction_features", inputs[0, :9])
            record("loss_features", inputs[0, 9:18])
            record("lstm_inputs", inputs.expand(len(items), -1))
            record("lr_mult", control.lr_mult)
        return control

    def _loss_decays(self, items: Sequence[ParamStep], num_steps: int, like: Tensor) -> Tensor:
        name = f"loss decays {num_steps} {like.dtype} {like.device}"
        return self._keep(name, items, lambda _: conditioning.loss_decays(num_steps, like))

    def _plan_lstm(self, items: Sequence[ParamStep], hidden: Tensor, cell: Tensor) -> LSTMPlan | None:
        """The kernels' plan for the LSTM; None if the eager implementation computes it."""

        def plan(items: Sequence[ParamStep]) -> LSTMPlan | None:
            first = items[0]
            kernels = self.kernels_of(first.parameter) if first.parameter.device == hidden.device else None
            if kernels is None or not self._uses_kernels:
                return None
            return kernels.plan_lstm(first.meta.lstm, hidden, cell, self.lstm_ranks(items, hidden))

        return self._keep("lstm", items, plan)

    def _shared_lstm_state(self, items: Sequence[ParamStep], like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The LSTM's state ``[N, H]``, of which each parameter's is a row; None if it is not on the LSTM's device."""
        if torch.compiler.is_compiling() or self._plan is None or items is not self._plan.items:
            return None
        hidden, cell = (
            self._plan.keep(name, lambda n=name: join([item.state[n] for item in items])) for name in LSTM_STATE
        )
        if hidden is None or cell is None or (hidden.dtype, hidden.device) != (like.dtype, like.device):
            return None
        return hidden, cell


def decoupled_decay(group: Group) -> float:
    """The coefficient of decoupled weight decay: 0 if the group uses L2 decay."""
    return 0.0 if _is_l2(group) else group["weight_decay"]


def _is_l2(group: Group) -> bool:
    return group["decay"] == "l2" and group["weight_decay"] != 0
