"""The base class of all optimizers: losses, checks of steps and groups, new state (docs/optimizers.md)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.capture import is_capturing
from pylo_zoo.ops.transfer import upload
from pylo_zoo.optim.advice import Candidate, embedding_evidence, embedding_warning
from pylo_zoo.optim.capture_checks import check_capture
from pylo_zoo.optim.checks import (
    all_finite,
    as_counter,
    check_not_partial,
    check_not_replaced,
    check_parameter,
    is_built_by_zero,
    is_real_scalar,
    parameter_name,
    require,
)
from pylo_zoo.optim.compiling import exclude_from_compile
from pylo_zoo.optim.group_options import check_group_options, describe_group, prepare_group
from pylo_zoo.optim.loading import LoadsState
from pylo_zoo.optim.options import DEFAULTS, PER_OPTIMIZER, HasSharedOptions, SharedOptions, Unpack, check_options
from pylo_zoo.optim.param_grad import Group, ParamGrad, find_gradients
from pylo_zoo.optim.precision import master_copy, needs_master, without_autocast
from pylo_zoo.optim.saved_state import (
    FORMAT_VERSION,
    OWN_STATE,
)
from pylo_zoo.optim.state_checks import COUNTERS, Snapshot, StateChecks
from pylo_zoo.optim.step_condition import StepCondition, is_finite_loss, is_known_on_host, nonfinite_error
from pylo_zoo.warn import warn

Loss = Tensor | float

_UNAMBIGUOUS_STATE = OWN_STATE - {"step"}
"""The keys that wrappers do not use."""


class ZooOptimizer(HasSharedOptions, LoadsState):
    """Base class of the optimizers. A subclass implements the step and a parameter's initial state.

    Args:
        params: as for :class:`torch.optim.Optimizer`.
        defaults: values of the options that a group does not set.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    Raises:
        ZooError: a parameter or group is invalid.
    """

    needs_loss: ClassVar[bool] = False
    state_options: ClassVar[tuple[str, ...]] = (
        *("layout", "rule", "master_weights"),
        *("accumulate", "use_muon", "use_fallback"),
    )
    """Group options that determine which state a parameter has."""
    plan_options: ClassVar[tuple[str, ...]] = ()
    """Other group options that a plan reads (:class:`~pylo_zoo.optim.step_plan.StepPlan`), instead of each step."""

    def __init__(self, params: Any, defaults: dict[str, Any], **options: Unpack[SharedOptions]) -> None:
        check_options(type(self), options)
        nonfinite = options.get("nonfinite", "propagate")
        skips = None if nonfinite == "propagate" else f"nonfinite={nonfinite!r}"
        check_not_partial(type(self).__name__, "its LSTM" if self.needs_loss else skips)
        exclude_from_compile(type(self))
        values: dict[str, Any] = {**DEFAULTS, **options}
        self.nonfinite: str = values["nonfinite"]
        self.backend: str = values["backend"]
        self.graphs: str = values["graphs"]
        self._condition = StepCondition()
        self._pending_loss: list[Loss] = []  # a list: torch.compile before 2.13 cannot set attributes of an optimizer
        self._warned: set[str] = set()
        self._state_names: set[str] = set()  # keys of this optimizer's own entries, collected from expected_state
        self._checks = StateChecks()
        self._captured_plans: list[Any] = []  # while there are any, state stays where it is in memory
        if is_built_by_zero():  # it adds the optimizer's arguments to the groups
            kept = {"params", "param_names", *defaults} - {"weights"}
            params = [{name: value for name, value in group.items() if name in kept} for group in params]
        common = {"master_weights": values["master_weights"], "format_version": FORMAT_VERSION}
        super().__init__(params, {**defaults, **common})

    @abstractmethod
    def _step(self, grads: Sequence[ParamGrad], loss: Loss | None) -> None:
        """Update these parameters, at least one. Called under ``torch.no_grad``."""

    # --- stepping ------------------------------------------------------------------------------------------------

    def set_loss(self, loss: Loss) -> None:
        """Store the loss for the next ``step()`` without arguments, for loops that cannot pass it.

        The loss must be unscaled. The next step uses it up. A later ``set_loss``, a loss passed to ``step`` or a loaded
        state replaces it: ``GradScaler`` skips a step by not calling it, and the loss of a skipped step must not reach
        the next one. If a closure calls this, its step uses the loss that was set, not the closure's result.
        """
        self._pending_loss[:] = [loss]

    def step(self, closure: Callable[[], Loss] | Loss | None = None, *, loss: Loss | None = None) -> Any:
        """One optimizer step.

        Args:
            closure: a function that re-evaluates the model and returns the loss; or the loss.
            loss: the loss, a scalar. VeLO, Celo and CeloAdam need it; the others only return it.

        Returns:
            The loss, unchanged.

        If no parameter has a gradient, the step needs no loss, advances no counter and changes nothing; it does use up
        the loss from ``set_loss``.

        Raises:
            ZooError: the loss is missing or ambiguous, a gradient is sparse, a parameter with a gradient is invalid, or
                a value is not finite and ``nonfinite="raise"``. Nothing has changed then.
        """
        loss = self._take_loss(closure, loss)
        if not torch.compiler.is_compiling():
            self._condition.clear()  # an error in the last step may have left it
        with torch.no_grad():
            grads = find_gradients(self.param_groups)
            if grads:
                self._check_loss(loss)
                if not torch.compiler.is_compiling() and is_capturing():
                    self._check_capture(grads, loss)
            else:
                check_not_replaced(self.param_groups)
            if grads and (self.nonfinite == "propagate" or self._is_finite(grads, loss)):
                with without_autocast():
                    self._step(grads, loss)
                if self._condition.is_active:
                    self._clear_condition()
        return loss

    def _take_loss(self, closure: Callable[[], Loss] | Loss | None, loss: Loss | None) -> Loss | None:
        pending = self._pending_loss.pop() if self._pending_loss else None
        require(
            closure is None or loss is None,
            "step() received both a closure and a loss.",
            "Pass only one of them.",
        )
        source: Any = pending if closure is None and loss is None else closure if loss is None else loss
        if callable(source):
            with torch.enable_grad():
                source = source()
            if self._pending_loss:  # the closure called set_loss, as Lightning's hooks do
                source = self._pending_loss.pop()
        return source

    def _check_loss(self, loss: Any) -> None:
        """Raise if this optimizer needs a loss and ``loss`` is not a valid one."""
        if not self.needs_loss:
            return
        require(
            loss is not None,
            f"{type(self).__name__} reads the training loss, and this step has none.",
            "Call step(loss), step(closure), or set_loss(loss) before each bare step().",
        )
        require(
            is_real_scalar(loss),
            f"The loss is not a real scalar: {type(loss).__name__}.",
            "Pass the batch's mean loss as a number or a tensor of one element.",
        )
        self._check_loss_value(loss)

    def _check_loss_value(self, loss: Any) -> None:
        """Raise if a step reads the loss but the loss is a meta tensor."""
        if isinstance(loss, Tensor) and loss.is_meta and (self.needs_loss or self.nonfinite != "propagate"):
            require(
                any(p.is_meta for group in self.param_groups for p in group["params"]),
                "The loss is on the meta device and has no value.",
                "Compute the loss on a real device.",
            )

    def _check_capture(self, grads: Sequence[ParamGrad], loss: Any) -> None:
        """Raise if a graph that the caller captures cannot contain this step."""
        reads_values, read_loss = self.nonfinite == "raise", loss if self.needs_loss else None
        check_capture(reads_values, read_loss, all(map(self._has_state, grads)))

    def _keep_captured(self, plan: Any, grads: Sequence[ParamGrad]) -> None:
        """Keep the plan of a captured step: its tables must live as long as the graph, which is the caller's.

        Raises:
            ZooError: the plan is not the one of this step.
        """
        require(
            plan is not None and self._check(grads) is plan.snapshot,
            "This capture contains a step that differs from the last one: its kernels are not ready.",
            "Run a step outside the capture, with the same parameters and kinds of gradients, then capture again.",
        )
        if plan not in self._captured_plans:
            self._captured_plans.append(plan)

    def _is_finite(self, grads: Sequence[ParamGrad], loss: Loss | None) -> bool:
        """Whether the loss and all gradients are finite; if not, count a skipped step or raise (``nonfinite``).

        With "skip", values on an accelerator are not read: the step runs under a condition.
        """
        self._check_loss_value(loss)
        self._check(grads)
        gradients = [each.gradient for each in grads]
        conditional = self.nonfinite == "skip" and not is_known_on_host(gradients)
        if is_finite_loss(loss, read_all=not conditional):
            if conditional:
                self._set_condition(gradients, loss)
                return True
            if all_finite(gradients):
                return True
        if self.nonfinite == "raise":
            raise nonfinite_error(grads, loss)
        self._count_skipped()
        return False

    def _set_condition(self, gradients: Sequence[Tensor], loss: Any) -> None:
        """Let the step depend on whether loss and gradients are finite. Runs outside compiled graphs."""
        self._condition.set_finite(gradients, loss)

    def _clear_condition(self) -> None:
        """Runs outside compiled graphs."""
        self._condition.clear()

    def _count_skipped(self) -> None:
        """Runs outside compiled graphs, which the changed attribute would recompile."""
        self._condition.clear()
        self._condition.count()

    @property
    def skipped_steps(self) -> int:
        """Number of steps that ``nonfinite="skip"`` skipped. An accelerator counts its own, so reading waits for it."""
        return self._condition.skipped

    @skipped_steps.setter
    def skipped_steps(self, number: int) -> None:
        self._condition.skipped = number

    def _init_state(self, grads: Sequence[ParamGrad]) -> Snapshot | None:
        """Check parameters, gradients and state before the step writes anything, then create missing state.

        Runs outside compiled graphs (:mod:`~pylo_zoo.optim.compiling`). Returns the result of :meth:`_check`.

        Raises:
            ZooError: a tensor does not fit (:mod:`pylo_zoo.optim.state_checks`), or a new parameter is invalid.
        """
        if (snapshot := self._check(grads)) is not None:
            return snapshot
        check_not_replaced(self.param_groups)
        for p, _, _ in grads:
            state = self.state.get(p, {})
            for name in COUNTERS & state.keys():  # wrappers may store an int; pickles of older versions, a CPU tensor
                if not isinstance(state[name], Tensor) or (state[name].is_cpu and not p.is_cpu):
                    state[name] = upload(as_counter(name, state[name]), p.device)
        new = [each for each in grads if not self._has_state(each)]
        for p, _, group in new:
            self.state[p].update(self.expected_state(p, group))
        if new:
            self._warn_about_settings(new)
        for p, _, group in grads:
            state = self.state[p]
            if needs_master(p, group) != ("master" in state):  # the option changed during the run
                state.pop("master") if "master" in state else state.update(master_copy(p, group))
        return None

    def _warn_about_settings(self, new: Sequence[ParamGrad]) -> None:
        """Warn about parameters in their first step that this optimizer would train badly."""

    def _warn_about_embeddings(self, matrices: Sequence[ParamGrad], rule: str) -> None:
        """Warn if a parameter gets ``rule`` by default and looks like an embedding."""
        unset = [each for each in matrices if each.group.get("rule") is None and each.group["layout"] == "torch"]
        evidence = embedding_evidence(Candidate(p, g, parameter_name(p, group)) for p, g, group in unset)
        if evidence is not None:
            self._warn_once("embedding", embedding_warning(*evidence, rule))

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warn(message)

    def _has_state(self, param_grad: ParamGrad) -> bool:
        """Whether a parameter has this optimizer's state; entries of wrappers do not count."""
        state = self.state.get(param_grad.parameter)
        if not state:
            return False
        if not _UNAMBIGUOUS_STATE.isdisjoint(state):  # true after a route change as well; _check_route reports that
            return True
        if self._state_names.isdisjoint(state):
            self._state_names.update(self.expected_state(param_grad.parameter, param_grad.group))
        return not self._state_names.isdisjoint(state)

    def _check(self, grads: Sequence[ParamGrad]) -> Snapshot | None:
        """Raise if tensors do not fit each other; None if a parameter's state is incomplete (:class:`StateChecks`)."""
        return self._checks.check(self, grads)

    def _check_new(self, grads: Sequence[ParamGrad]) -> None:
        """Raise if a parameter without state is invalid."""
        for each in grads:
            if not self._has_state(each):
                check_parameter(each.parameter, type(self).__name__, each.group)

    def _check_route(self, p: Tensor, group: Group) -> None:
        """Raise if the state of ``p`` does not fit because its route changed."""

    # --- groups --------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Check and add a group (:meth:`torch.optim.Optimizer.add_param_group`); an invalid group is not kept."""
        explicit = frozenset(param_group)
        super().add_param_group(prepare_group(self.param_groups, param_group))
        group = self.param_groups[-1]
        try:
            self._check_group(group, explicit)
        except ZooError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        """Raise if an option is invalid; ``explicit`` are the options that the caller set, the others are defaults."""
        check_group_options(self, group, explicit)

    def __repr__(self) -> str:
        """The options of each group, without the run's state."""
        groups = [describe_group(k, group, self.defaults) for k, group in enumerate(self.param_groups)]
        return "\n".join([f"{type(self).__name__} (", *groups, ")"])

    # --- copies and pickles --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in (*PER_OPTIMIZER, "skipped_steps", "_warned")}
        return {**super().__getstate__(), **own}  # pyright: ignore[reportAttributeAccessIssue]

    def __setstate__(self, state: dict[str, Any]) -> None:
        exclude_from_compile(type(self))
        self.__dict__.setdefault("_condition", StepCondition())
        if "skipped_steps" in state:
            self._condition.skipped = state["skipped_steps"]
        super().__setstate__({name: value for name, value in state.items() if name != "skipped_steps"})
        self.defaults.pop("differentiable", None)  # added by torch for its own optimizers
        self._pending_loss = []
        self._checks = StateChecks()
        self._state_names = set()
        self.__dict__.setdefault("_captured_plans", [])  # torch calls this in load_state_dict, and graphs stay
        self.__dict__.setdefault("_warned", set())
        for name in PER_OPTIMIZER:  # pickles of older versions lack newer options
            self.__dict__.setdefault(name, DEFAULTS.get(name))
