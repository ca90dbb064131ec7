"""The step loop of the learned optimizers: weights, gradient clipping, per-parameter state and state of the run.

A family implements :meth:`LearnedOptimizer.new_state` (the state of one parameter), :meth:`LearnedOptimizer.update`
(the update of one parameter) and, if needed, :meth:`LearnedOptimizer.prepare` (a stage over all parameters before it).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.kernels import Kernels, kernels_for
from pylo_zoo.ops.gradients import global_norm_scale
from pylo_zoo.ops.layout import Axes, axes_of
from pylo_zoo.ops.trace import is_listening
from pylo_zoo.optim.advice import decay_warning
from pylo_zoo.optim.checks import check_max_norm, check_not_partial, describe_parameter, require, to_state_tensors
from pylo_zoo.optim.contract import Group, Loss, ParamGrad, ZooOptimizer
from pylo_zoo.optim.options import SharedOptions, Unpack, check_options
from pylo_zoo.optim.own_graph import GraphBudget
from pylo_zoo.optim.precision import master_copy, state_dtype
from pylo_zoo.optim.saved_state import OWN_STATE, parameter_entries
from pylo_zoo.optim.state_checks import Snapshot, check_run_state
from pylo_zoo.optim.step_condition import new_counter
from pylo_zoo.optim.step_plan import MetaNetwork, ParamStep, StepPlan, share_memory
from pylo_zoo.weights import known_family, load

T = TypeVar("T")


class LearnedOptimizer(ZooOptimizer):
    """Base class of the optimizers with a learned update rule.

    Args:
        params: parameters or parameter groups. A group may set ``lr``, ``weight_decay``, the family's own options and
            ``layout``: ``"torch"`` (default), ``"jax"`` for weights stored as ``(…, in, out)``, such as stacked experts
            ``(experts, in, out)`` and embedding tables, or ``"torch-stacked"`` for stacks stored as
            ``(experts, out, in)`` (SPEC §1).
        defaults: values of the options that a group does not set.
        weights: a registry name, an artifact's directory, or an :class:`~pylo_zoo.artifact.Artifact`.
        clip_norm: maximum global norm of the gradient; None or infinity disables clipping.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    Accumulators and arithmetic are float32 for 16- and 32-bit parameters and float64 for float64 parameters.

    Raises:
        ZooError: the weights belong to another family, a parameter or group is invalid, or ``backend="fused"`` has no
            kernels for a parameter's device.
    """

    families: ClassVar[tuple[str, ...]]
    """Families of checkpoints that this class runs."""
    learns_step_sizes: ClassVar[bool] = False
    """The rule was trained to choose its step size with ``lr=1``, so only a small weight decay works."""

    def __init__(
        self,
        params: Any,
        defaults: Mapping[str, Any],
        weights: str | Artifact,
        clip_norm: float | None = None,
        **options: Unpack[SharedOptions],
    ) -> None:
        check_options(type(self), options)  # before weights are downloaded
        if (family := known_family(weights)) is not None:
            self._check_family(str(weights), family)
        self.artifact = load(weights)
        self._check_family(self.artifact.name, self.artifact.family)
        self.clip_norm = check_max_norm("clip_norm", clip_norm)
        check_not_partial(type(self).__name__, None if self.clip_norm is None else f"clip_norm={clip_norm}")
        self._meta_networks: dict[tuple[torch.device, torch.dtype], MetaNetwork] = {}
        self._axes: dict[tuple[torch.Size, str], Axes] = {}
        self._plan: StepPlan | None = None
        self._graph_budget = GraphBudget()
        self._uses_kernels = False
        self._run_keys: tuple[str, ...] = ()
        self._run_states: dict[Any, dict[str, Tensor]] = {}
        defaults = {**defaults, "layout": "torch", "weights": self.artifact.fingerprint[:16]}
        super().__init__(params, defaults, **options)
        if self.backend == "fused":
            self.prepare_kernels()

    def _check_family(self, name: str, family: str) -> None:
        require(
            family in self.families,
            f"{type(self).__name__} cannot run {name!r}: it is a {family} checkpoint.",
            f"Use weights of family {' or '.join(self.families)}; `pylo-zoo list` shows them.",
        )

    @property
    def behavior(self) -> Any:
        """The checkpoint's behavior record (:mod:`pylo_zoo.config`)."""
        return self.artifact.behavior

    @property
    def run_keys(self) -> tuple[str, ...]:
        """Keys of the run's state.

        Every parameter group holds the same tensors under these keys, because checkpointing libraries save groups.
        """
        return tuple(self.new_run_state(torch.device("meta"), torch.float32))

    # --- implemented by each family ------------------------------------------------------------------------------

    @abstractmethod
    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        """The state of one parameter before its first update; ``p`` is ``[*shape]``, or ``[1]`` for a scalar."""

    @abstractmethod
    def update(self, item: ParamStep, step: Tensor, context: Any) -> None:
        """Update one parameter and its state in place; ``context`` is its element of :meth:`prepare`'s result."""

    def prepare(
        self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None, moments: Tensor | None = None
    ) -> Sequence[Any]:
        """A stage over all parameters before the updates, such as an LSTM; returns one context per parameter.

        Args:
            items: the step's parameters.
            step: number of earlier steps.
            loss: the loss, if this optimizer needs one.
            moments: output of :func:`pylo_zoo.ops.conditioning.moments` per parameter, ``[N, 9]``, if kernels have
                computed it.
        """
        return [None] * len(items)

    def new_run_state(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The run's state before the first step."""
        return {"step": new_counter(device)}

    # --- stepping ------------------------------------------------------------------------------------------------

    def _step(self, grads: Sequence[ParamGrad], loss: Loss | None) -> None:
        self._init_state(grads)
        step = self.param_groups[0]["step"]
        if self._uses_kernels:
            self._step_fused(grads, step, loss)
        else:
            items = self._begin(grads)
            self._update_all(items, step, loss)
            self._end(items)
            self._condition.advance([step])

    def _step_fused(self, grads: Sequence[ParamGrad], step: Tensor, loss: Loss | None) -> None:
        """Runs outside compiled graphs (:mod:`~pylo_zoo.optim.compiling`)."""
        items = self._begin(grads)
        if not self._replay(items, step, loss):
            self._update_fused(items, step, loss)
            self._condition.advance([step])
        self._end(items)

    def _replay(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> bool:
        """Step with the optimizer's own graph (:mod:`~pylo_zoo.optim.own_graph`); returns whether it did."""
        plan = self._plan
        if plan is None or self.graphs == "off" or not (plan.batches and plan.all_in_batches) or is_listening():
            return False
        if not type(self).__module__.startswith("pylo_zoo.optim."):  # other code may depend on the host
            return False
        scale = items[0].scale

        def update(of_loss: Any, of_scale: Tensor | None) -> None:
            try:
                for item in items:
                    item.scale = of_scale
                self._update_fused(items, step, of_loss)
                self._condition.advance([step])
            finally:
                for item in items:
                    item.scale = scale

        run = self.param_groups[0]
        dtype = run["loss_average"].dtype if self.needs_loss else torch.float32
        inputs = loss if self.needs_loss else None, scale
        return plan.graph.step(plan.batches, dtype, inputs, self._frozen(run), self._graph_budget, update)

    def _frozen(self, run: Group) -> tuple[Hashable, ...]:
        """What a graph of this step contains besides tensors of the plan: addresses of the run's state."""
        return (self._condition.is_active, *(run[key].data_ptr() for key in self._run_keys))

    def _begin(self, grads: Sequence[ParamGrad]) -> Sequence[ParamStep]:
        """The step's parameters with their gradients."""
        scale = None if self.clip_norm is None else global_norm_scale([each.gradient for each in grads], self.clip_norm)
        if torch.compiler.is_compiling() or self._plan is None:
            items = [self._param_step(each) for each in grads]
        else:
            items = self._plan.items
        for item, each in zip(items, grads, strict=True):
            item.gradient, item.scale = each.gradient, scale
        return items

    def _end(self, items: Sequence[ParamStep]) -> None:
        """Release gradients, which a plan would otherwise keep alive."""
        if not torch.compiler.is_compiling():
            for item in items:
                del item.gradient

    def _update_all(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        self._update_each(items, self.prepare(items, step, loss), step)

    def _update_fused(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        """Update with kernels; families without kernels use the eager implementation."""
        self._update_all(items, step, loss)

    def _update_each(self, items: Iterable[ParamStep], contexts: Iterable[Any], step: Tensor) -> None:
        for item, context in zip(items, contexts, strict=True):
            saved = self._condition.save_written([item.parameter], [item.state])
            self.update(item, step, context)
            item.write_back()
            self._condition.restore(saved)

    def prepare_kernels(self) -> None:
        """Compile the kernels of the parameters' devices now instead of in the first step.

        Raises:
            ZooError: ``backend="fused"`` and a device has no kernels.
        """
        for p in (p for group in self.param_groups for p in group["params"]):
            self.kernels_of(p)

    def kernels_of(self, p: Tensor) -> Kernels | None:
        """The kernels that update ``p`` under this backend; None for the eager implementation.

        Float64 parameters, and families that do not override :meth:`_update_fused`, always use that one.
        """
        eager_only = type(self)._update_fused is LearnedOptimizer._update_fused or state_dtype(p) == torch.float64
        return None if eager_only else kernels_for(self.backend, p.device)

    def _init_state(self, grads: Sequence[ParamGrad]) -> Snapshot | None:
        first = self.param_groups[0]
        self._run_keys = self._run_keys or self.run_keys
        incomplete = not all(isinstance(first.get(key), Tensor) for key in self._run_keys)
        started = incomplete and any(self._has_state(each) for each in grads)
        if incomplete:
            run = self._complete_run_state(first, grads, started)
        else:
            check_run_state(first, self._expected_run_state(), grads[0].parameter.device)
            run = {}
        snapshot = super()._init_state(grads)
        if self._plan is None or snapshot is None or snapshot is not self._plan.snapshot:
            self._plan = self._new_plan(grads)
        first.update(run)
        for group in self.param_groups[1:]:
            if group.get("step") is not first["step"]:
                group.update({key: first[key] for key in self.run_keys})
        return snapshot

    def _check_capture(self, grads: Sequence[ParamGrad], loss: Any) -> None:
        super()._check_capture(grads, loss)
        self._keep_captured(self._plan, grads)

    def _new_plan(self, grads: Sequence[ParamGrad]) -> StepPlan:
        """A plan for the parameters of a step, whose state is complete."""
        self._uses_kernels = any(self.kernels_of(each.parameter) is not None for each in grads)
        items = [self._param_step(each) for each in grads]
        if not self._captured_plans:  # a graph of the caller contains the addresses of the state
            self._share_state(items)
        plan = StepPlan(self._checks.check(self, grads), items)
        self._end(items)
        return plan

    def _keep(self, name: str, items: Sequence[ParamStep], build: Callable[[Sequence[ParamStep]], T]) -> T:
        """``build(items)``, computed once per plan if ``items`` are the plan's."""
        if torch.compiler.is_compiling() or self._plan is None:
            return build(items)
        return self._plan.keep(name, lambda: build(items))

    def _share_state(self, items: Sequence[ParamStep]) -> None:
        """Store small state tensors of many parameters in common ones: AdamW's counters by default."""
        if counted := [item.state for item in items if "step" in item.state]:
            share_memory(counted, "step")

    def _expected_run_state(self) -> dict[str, Tensor]:
        """The run's state before the first step, on the meta device. Creating it takes longer than checking it."""
        key = self.param_groups[0].get("accumulate")
        if key not in self._run_states:
            self._run_states[key] = self.new_run_state(torch.device("meta"), torch.float32)
        return self._run_states[key]

    def _complete_run_state(self, first: Group, grads: Sequence[ParamGrad], started: bool) -> dict[str, Tensor]:
        """The run's state as tensors: new, or converted from numbers that wrappers or other packages left.

        Raises:
            ZooError: a value is not a number, or the run has ``started`` and part of its state is missing.
        """
        dtypes = {state_dtype(each.parameter) for each in grads}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        new = self.new_run_state(grads[0].parameter.device, dtype)
        present = {key: first[key] for key in new if key in first}
        entries = present if started else {**new, **present}
        return to_state_tensors(entries, new, grads[0].parameter.device, "The state of the run")

    def _param_step(self, param_grad: ParamGrad) -> ParamStep:
        p, _, group = param_grad
        meta = self._meta_network(p.device, state_dtype(p))
        return ParamStep(param_grad, self.state[p], self._axes_of(p, group), meta)

    def _axes_of(self, p: Tensor, group: Group) -> Axes:
        key = p.shape, group["layout"]
        if key not in self._axes:
            self._axes[key] = axes_of(tuple(p.shape) or (1,), group["layout"])
        return self._axes[key]

    def _meta_network(self, device: torch.device, dtype: torch.dtype) -> MetaNetwork:
        if (device, dtype) not in self._meta_networks:
            net = self.artifact.net().to(device=device, dtype=dtype).requires_grad_(False)
            self._meta_networks[device, dtype] = MetaNetwork(net, net.decays())  # pyright: ignore[reportCallIssue]
        return self._meta_networks[device, dtype]

    # --- groups --------------------------------------------------------------------------------------------------

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        super()._check_group(group, explicit)
        require(
            "weights" not in explicit or group["weights"] == self.defaults["weights"],
            f"A parameter group sets weights={group['weights']!r}.",
            "Pass weights to the constructor: they apply to the whole optimizer.",
        )
        decoupled = self.learns_step_sizes and bool(group["params"]) and group.get("decay") != "l2"
        if decoupled and (warning := decay_warning(type(self).__name__, group["lr"], group["weight_decay"])):
            self._warn_once("decay", warning)
        for p in group["params"]:
            if p.ndim == 3 and p.requires_grad and "layout" not in explicit:
                self._warn_once(
                    "3d",
                    f"a {describe_parameter(p, group)} is read as a 1-d convolution (out, in, width). For stacked "
                    'weights (experts, in, out), set layout="jax" in its group; layout="torch" silences this warning.',
                )

    # --- saving and loading --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "artifact": self.artifact, "clip_norm": self.clip_norm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._meta_networks, self._axes, self._run_keys, self._run_states = {}, {}, (), {}
        self._plan, self._uses_kernels = None, False
        self.__dict__.setdefault("_graph_budget", GraphBudget())

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        value = torch.empty(p.shape or (1,), device=p.device, dtype=state_dtype(p))
        state = self.new_state(value, group, axes_of(tuple(value.shape), group["layout"]))
        return {**state, **master_copy(p, group)}

    def _check_saved_groups(self, incoming: Mapping[str, Any]) -> None:
        first: Group = incoming["param_groups"][0]
        saved, current = first.get("weights"), self.param_groups[0]["weights"]
        require(
            saved is not None,
            f"The state is not one of {type(self).__name__}: it does not record its weights.",
            f"Load a state that {type(self).__name__}.state_dict() returned.",
        )
        require(
            saved == current,
            f"The state was saved with weights {saved}; this optimizer has {current}.",
            "Build the optimizer with the checkpoint that the run started with.",
        )
        super()._check_saved_groups(incoming)
        if self._has_started(incoming) or all(key in first for key in self.run_keys):
            self._saved_run_state(first)

    def _has_started(self, incoming: Mapping[str, Any]) -> bool:
        """Whether a saved state comes from a run that has stepped. Entries of wrappers alone do not show that."""
        p, group = self.param_groups[0]["params"][0], {**self.defaults, **incoming["param_groups"][0]}
        names = {*OWN_STATE, *self.expected_state(torch.empty(p.shape, device="meta"), group)}
        return any(not entry or not names.isdisjoint(entry) for entry in parameter_entries(incoming).values())

    def _after_loading(self) -> None:
        super()._after_loading()
        first = self.param_groups[0]
        run = self._saved_run_state(first) if all(key in first for key in self.run_keys) else {}
        for group in self.param_groups:
            group.update(run)

    def _saved_run_state(self, first: Group) -> dict[str, Tensor]:
        """The run's state from a saved group, in this optimizer's device and dtype."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        double = any(p.dtype == torch.float64 for p in parameters)
        expected = self.new_run_state(torch.device("meta"), torch.float64 if double else torch.float32)
        entries = {key: first[key] for key in self.run_keys if key in first}
        return to_state_tensors(entries, expected, parameters[0].device, "The state of the run")


__all__ = ["Group", "LearnedOptimizer", "Loss", "MetaNetwork", "ParamStep", "state_dtype"]
