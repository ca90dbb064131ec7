"""The step loop that every learned optimizer shares: weights, clipping, the state of parameters and of the run.

A family adds three things: the state of one parameter (:meth:`LearnedOptimizer.new_state`), optionally a stage over
all tensors before the update (:meth:`LearnedOptimizer.prepare`), and the update of one parameter
(:meth:`LearnedOptimizer.update`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import Kernels, check_backend, kernels_for
from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.gradients import global_norm_scale
from pylo_zoo.ops.layout import Axes, axes_of
from pylo_zoo.optim.advice import decay_warning
from pylo_zoo.optim.checks import fitted, require
from pylo_zoo.optim.contract import (
    OWN_STATE,
    Group,
    Loss,
    ParamGrad,
    ZooOptimizer,
    entries_of_parameters,
    master_copy,
    state_dtype,
    wide_value,
)
from pylo_zoo.optim.state_checks import check_run_state
from pylo_zoo.weights import load


@dataclass(frozen=True)
class Meta:
    """A checkpoint's network and decays on one device, in one dtype."""

    net: nn.Module
    decays: Decays


class ParamStep:
    """One parameter that takes part in a step, and what its update needs.

    Attributes:
        parameter: the parameter itself; ``gradient``, as it came.
        state: its state; ``group``, its parameter group; ``axes``; ``meta``, network and decays on its device and in
            the dtype of its update.
        scale: what the gradient is multiplied by, a scalar, where the global norm is clipped; else None.
        own_scale: what this gradient alone is multiplied by, after that; None for nothing.
        l2: L2 decay, ``g + l2·p``; 0 for none.
        moments: :func:`pylo_zoo.ops.conditioning.moments`, where a fused backend has taken them already.
    """

    __slots__ = (
        *("parameter", "gradient", "group", "state", "axes", "meta", "scale", "own_scale", "l2", "moments"),
        *("_p", "_home", "_unseen"),
    )

    def __init__(self, due: ParamGrad, state: dict[str, Tensor], axes: Axes, meta: Meta, scale: Tensor | None) -> None:
        self.parameter, self.gradient, self.group = due
        self.state, self.axes, self.meta, self.scale = state, axes, meta, scale
        self.own_scale: Tensor | None = None
        self.l2 = 0.0
        self.moments: Tensor | None = None
        self._p: Tensor | None = None
        self._home: Tensor | None = None
        self._unseen = False  # kernels write past autograd

    @property
    def p(self) -> Tensor:
        """The value, ``[*shape]``, a scalar as ``[1]``, in the update's dtype: a view of the parameter wherever its
        own dtype allows, else a copy, which :meth:`write_back` rounds to the parameter."""
        if self._p is None:
            self._p = self.look()
        return self._p

    @property
    def g(self) -> Tensor:
        """The gradient in ``p``'s shape and dtype, clipped by the global norm; read only, it may be the original."""
        g = self.gradient.to(state_dtype(self.parameter))
        for scale in (self.scale, self.own_scale):
            g = g if scale is None else g * scale.to(g)
        g = g.view(1) if g.ndim == 0 else g
        return g + self.l2 * self.p if self.l2 else g

    def look(self) -> Tensor:
        """The value as :attr:`p`, but kept by nobody: of all 16-bit parameters together, copies would be large."""
        value = wide_value(self.parameter, self.state)
        return value.view(1) if value.ndim == 0 else value

    def kernel_inputs(self, dtypes: Sequence[torch.dtype]) -> tuple[Tensor, Tensor]:
        """Value and gradient as kernels take them: contiguous, in one of ``dtypes``, the gradient without ``scale``.

        The value is the parameter's or the master copy's own wherever they can be; :meth:`write_back` ends the step.
        """
        p = self.parameter
        direct = "master" not in self.state and p.dtype in dtypes
        if direct and p.ndim and p.is_contiguous() and not p.is_neg():
            self._p, self._home = p, None  # under no_grad; thousands of detached views take as long as the check
        else:
            value = p.detach() if direct else self.look()
            value = value.view(1) if value.ndim == 0 else value
            self._p = value.contiguous().resolve_neg()
            self._home = None if self._p is value else value
        self._unseen = True
        g = self.gradient if self.own_scale is None else self.gradient * self.own_scale
        g = g + self.l2 * self.p if self.l2 else g
        g = g if g.dtype in dtypes else g.to(state_dtype(self.parameter))
        return self._p, (g.view(1) if g.ndim == 0 else g).contiguous().resolve_neg()

    def write_back(self) -> None:
        """Write ``p`` to the parameter, where it is a copy, and let it go."""
        if self._home is not None and self._p is not None:
            self._home.copy_(self._p)
        if self._p is not None and self._p.dtype != self.parameter.dtype:
            self.parameter.copy_(self._p.view_as(self.parameter))
        if self._unseen:  # a graph that saved the old value must not be differentiated with the new one
            torch.autograd.graph.increment_version(self.parameter)
        self._p = self._home = None


class LearnedOptimizer(ZooOptimizer):
    """Base of the optimizers that run a learned update rule.

    Args:
        params: parameters or parameter groups. Besides ``lr``, ``weight_decay`` and the family's own options, a group
            may set ``layout``: ``"torch"``, the default, ``"jax"`` for weights kept as ``(…, in, out)``, such as
            stacked experts ``(experts, in, out)`` and embedding tables (SPEC §1), or ``"torch-stacked"`` for stacks
            kept as ``(experts, out, in)``.
        defaults: values of a group's options where it does not set them.
        weights: a registry name, the directory of an artifact, or an :class:`~pylo_zoo.artifact.Artifact`.
        clip_norm: largest global norm of the gradient; None does not clip.
        nonfinite: ``"propagate"``, ``"skip"`` or ``"raise"`` (:class:`~pylo_zoo.optim.contract.ZooOptimizer`).
        master_weights: keep float32 copies of 16-bit parameters, ``master [*shape]`` (the same).
        backend: ``"eager"``, plain torch; ``"fused"``, the kernels of the parameters' device; or ``"auto"``, kernels
            where there are some (:mod:`pylo_zoo.kernels`). They agree up to rounding, and share one state. ``"fused"``
            compiles the kernels here, if they never were; ``"auto"`` with the first step.

    Accumulators and arithmetic are float32 for 16- and 32-bit parameters and float64 for float64 ones.

    Raises:
        ZooError: the weights are of another family, a parameter or group cannot be optimized, or ``backend="fused"``
            and there are no kernels for a parameter's device.
    """

    families: ClassVar[tuple[str, ...]]
    """Families of checkpoints whose rule this class computes."""
    learns_step_sizes: ClassVar[bool] = False
    """The rule was trained to choose the size of its steps under ``lr=1``, so that decay must be small beside them."""

    def __init__(
        self,
        params: Any,
        defaults: Mapping[str, Any],
        weights: str | Artifact,
        clip_norm: float | None = None,
        nonfinite: str = "propagate",
        master_weights: bool = False,
        backend: str = "eager",
    ) -> None:
        check_backend(backend)
        self.backend = backend
        self.artifact = load(weights)
        if self.artifact.family not in self.families:
            raise ZooError(
                f"{type(self).__name__} cannot run {self.artifact.name!r}: it is a {self.artifact.family} checkpoint.",
                f"{type(self).__name__} runs {' and '.join(self.families)}; `pylo-zoo list` shows what there is.",
            )
        require(clip_norm is None or clip_norm > 0, f"clip_norm is {clip_norm}.", "Use a positive number, or None.")
        self.clip_norm = clip_norm
        self._metas: dict[tuple[torch.device, torch.dtype], Meta] = {}
        self._axes: dict[tuple[torch.Size, str], Axes] = {}
        self._fuses = False
        self._run_names: tuple[str, ...] = ()
        defaults = {**defaults, "layout": "torch", "weights": self.artifact.fingerprint[:16]}
        super().__init__(params, defaults, nonfinite, master_weights)
        if backend == "fused":
            self.prepare_kernels()

    @property
    def behavior(self) -> Any:
        """The checkpoint's behaviour record (:mod:`pylo_zoo.config`)."""
        return self.artifact.behavior

    @property
    def run_keys(self) -> tuple[str, ...]:
        """Names of the run's state; kept, shared, in every parameter group, where checkpointing libraries carry it."""
        return tuple(self.new_run_state(torch.device("meta"), torch.float32))

    # --- what a family adds --------------------------------------------------------------------------------------

    @abstractmethod
    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        """The state of one parameter before its first update; ``p`` is ``[*shape]``, a scalar ``[1]``."""

    @abstractmethod
    def update(self, item: ParamStep, step: Tensor, context: Any) -> None:
        """Advance one parameter and its state, in place; ``context`` is its entry of :meth:`prepare`."""

    def prepare(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> Sequence[Any]:
        """A stage over all tensors before the update, such as an LSTM; one context a parameter."""
        return [None] * len(items)

    def new_run_state(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """State of the whole run before its first step."""
        return {"step": new_counter()}

    # --- stepping ------------------------------------------------------------------------------------------------

    def _step(self, due: Sequence[ParamGrad], loss: Loss | None) -> None:
        self._prime(due)
        scale = None if self.clip_norm is None else global_norm_scale([each.gradient for each in due], self.clip_norm)
        step = self.param_groups[0]["step"]
        (self._take_apart if self._fuses else self._take)(due, scale, step, loss)
        step += 1

    def _take(self, due: Sequence[ParamGrad], scale: Tensor | None, step: Tensor, loss: Loss | None) -> None:
        """Move every parameter, by the backend that was asked for."""
        items = [self._item(each, scale) for each in due]
        (self._take_fused if self._fuses else self._take_plainly)(items, step, loss)

    def _take_apart(self, due: Sequence[ParamGrad], scale: Tensor | None, step: Tensor, loss: Loss | None) -> None:
        """The same, out of compiled graphs."""
        self._take(due, scale, step, loss)

    def _take_plainly(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        self._update_each(items, self.prepare(items, step, loss), step)

    def _take_fused(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> None:
        """With kernels where the family has some."""
        self._take_plainly(items, step, loss)

    def prepare_kernels(self) -> None:
        """Have the kernels of the parameters' devices compiled now, if they never were, rather than by the first step.

        Raises:
            ZooError: ``backend="fused"``, and there are none.
        """
        for p in (p for group in self.param_groups for p in group["params"]):
            self.kernels_of(p)

    def kernels_of(self, p: Tensor) -> Kernels | None:
        """The kernels that step ``p`` under this backend; None where plain torch does, as everything in float64."""
        return None if state_dtype(p) == torch.float64 else kernels_for(self.backend, p.device)

    def _update_each(self, items: Iterable[ParamStep], contexts: Iterable[Any], step: Tensor) -> None:
        for item, context in zip(items, contexts, strict=True):
            self.update(item, step, context)
            item.write_back()

    def _prime(self, due: Sequence[ParamGrad]) -> None:
        self._fuses = any(self.kernels_of(each.parameter) is not None for each in due)
        first = self.param_groups[0]
        self._run_names = self._run_names or self.run_keys
        incomplete = not all(isinstance(first.get(key), Tensor) for key in self._run_names)
        begun = incomplete and any(self._is_primed(each) for each in due)
        if incomplete:
            run = self._completed_run_state(first, due, begun)
        else:
            expected = self.new_run_state(torch.device("meta"), torch.float32)
            check_run_state(first, expected, due[0].parameter.device)
            run = {}
        super()._prime(due)
        for p, _, group in () if self._fuses else due:  # what a graph finds made
            self._meta(p.device, state_dtype(p))
            self._axes_of(p, group)
        first.update(run)
        for group in self.param_groups[1:]:
            if group.get("step") is not first["step"]:
                group.update({key: first[key] for key in self.run_keys})

    def _completed_run_state(self, first: Group, due: Sequence[ParamGrad], begun: bool) -> dict[str, Tensor]:
        """The run's state, new or with tensors for what wrappers or other packages left as numbers.

        Raises:
            ZooError: a value is not a number, or the run has ``begun`` and part of its state is missing.
        """
        dtypes = {state_dtype(each.parameter) for each in due}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        fresh = self.new_run_state(due[0].parameter.device, dtype)
        found = {key: first[key] for key in fresh if key in first}
        entries = found if begun else {**fresh, **found}
        return fitted(entries, fresh, due[0].parameter.device, "The state of the run")

    def _item(self, due: ParamGrad, scale: Tensor | None) -> ParamStep:
        p, _, group = due
        return ParamStep(due, self.state[p], self._axes_of(p, group), self._meta(p.device, state_dtype(p)), scale)

    def _axes_of(self, p: Tensor, group: Group) -> Axes:
        key = p.shape, group["layout"]
        if key not in self._axes:
            self._axes[key] = axes_of(tuple(p.shape) or (1,), group["layout"])
        return self._axes[key]

    def _meta(self, device: torch.device, dtype: torch.dtype) -> Meta:
        if (device, dtype) not in self._metas:
            net = self.artifact.net().to(device=device, dtype=dtype).requires_grad_(False)
            self._metas[device, dtype] = Meta(net, net.decays())  # pyright: ignore[reportCallIssue]
        return self._metas[device, dtype]

    # --- groups --------------------------------------------------------------------------------------------------

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        super()._check_group(group, given)
        require(
            "weights" not in given or group["weights"] == self.defaults["weights"],
            f"A parameter group sets weights={group['weights']!r}.",
            "Weights belong to the whole optimizer: give them to the constructor.",
        )
        decoupled = self.learns_step_sizes and bool(group["params"]) and group.get("decay") != "l2"
        if decoupled and (warning := decay_warning(type(self).__name__, group["lr"], group["weight_decay"])):
            self._warn_once("decay", warning)
        for p in group["params"]:
            if p.ndim == 3 and p.requires_grad and "layout" not in given:
                self._warn_once(
                    "3d",
                    f"a parameter of shape {tuple(p.shape)} is read as a 1-d convolution (out, in, width). For stacked "
                    'weights (experts, in, out) put it in a group with layout="jax"; layout="torch" keeps this reading '
                    "and silences this warning.",
                )

    # --- saving and loading --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("artifact", "clip_norm", "backend")}
        return {**super().__getstate__(), **own}  # pyright: ignore[reportAttributeAccessIssue]

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "artifact" in state:  # a pickle, where loading brings only state and groups; old ones have no backend
            state = {"backend": "auto", **state}
        super().__setstate__(state)
        self._metas, self._axes, self._fuses, self._run_names = {}, {}, False, ()

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        shell = torch.empty(p.shape or (1,), device=p.device, dtype=state_dtype(p))
        state = self.new_state(shell, group, axes_of(tuple(shell.shape), group["layout"]))
        return {**state, **master_copy(p, group)}

    def _check_saved_groups(self, incoming: Mapping[str, Any]) -> None:
        first: Group = incoming["param_groups"][0]
        saved, mine = first.get("weights"), self.param_groups[0]["weights"]
        require(
            saved == mine,
            f"The state was written with other weights ({saved}) than this optimizer's ({mine}).",
            "Build the optimizer with the checkpoint that the run began with.",
        )
        super()._check_saved_groups(incoming)
        if self._has_begun(incoming) or all(key in first for key in self.run_keys):
            self._fitted_run_state(first)

    def _has_begun(self, incoming: Mapping[str, Any]) -> bool:
        """Whether a parameter has been stepped: wrappers may add entries of their own before the first step."""
        p, group = self.param_groups[0]["params"][0], {**self.defaults, **incoming["param_groups"][0]}
        names = {*OWN_STATE, *self.expected_state(torch.empty(p.shape, device="meta"), group)}
        return any(not entry or not names.isdisjoint(entry) for entry in entries_of_parameters(incoming).values())

    def _after_loading(self) -> None:
        super()._after_loading()
        first = self.param_groups[0]
        run = self._fitted_run_state(first) if all(key in first for key in self.run_keys) else {}
        for group in self.param_groups:
            group.update(run)

    def _fitted_run_state(self, first: Group) -> dict[str, Tensor]:
        """The run's state that a group brings, on the device and in the dtype that it has here."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        double = any(p.dtype == torch.float64 for p in parameters)
        expected = self.new_run_state(torch.device("meta"), torch.float64 if double else torch.float32)
        found = {key: first[key] for key in self.run_keys if key in first}
        return fitted(found, expected, parameters[0].device, "The state of the run")


def new_counter() -> Tensor:
    """A count of steps, 0, kept on the CPU: reading it there stops no accelerator."""
    return torch.tensor(0, device="cpu")


__all__ = ["Group", "LearnedOptimizer", "Loss", "Meta", "ParamStep", "new_counter", "state_dtype"]
