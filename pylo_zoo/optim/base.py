"""The step loop that every learned optimizer shares: weights, clipping, the state of parameters and of the run.

A family adds three things: the state of one parameter (:meth:`LearnedOptimizer.new_state`), optionally a stage over
all tensors before the update (:meth:`LearnedOptimizer.prepare`), and the update of one parameter
(:meth:`LearnedOptimizer.update`).
"""

from __future__ import annotations

import sys
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.gradients import global_norm_scale
from pylo_zoo.ops.layout import Axes, axes_of
from pylo_zoo.optim.contract import Group, Loss, ZooOptimizer, require, state_dtype
from pylo_zoo.weights import load


@dataclass(frozen=True)
class Meta:
    """A checkpoint's network and decays on one device, in one dtype."""

    net: nn.Module
    decays: Decays


@dataclass(frozen=True)
class Item:
    """One parameter that takes part in a step, in the dtype that its update is computed in."""

    parameter: Tensor
    """The parameter itself."""
    p: Tensor
    """Its value, ``[*shape]``, a scalar as ``[1]``; a view of the parameter wherever the dtype allows."""
    g: Tensor
    """Its gradient, in ``p``'s shape and dtype, clipped by the global norm; read only, it may be ``parameter.grad``."""
    state: dict[str, Tensor]
    group: Group
    axes: Axes
    meta: Meta


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

    Accumulators and arithmetic are float32 for 16- and 32-bit parameters and float64 for float64 ones.

    Raises:
        ZooError: the weights are of another family, or a parameter or group cannot be optimized.
    """

    families: ClassVar[tuple[str, ...]]
    """Families of checkpoints whose rule this class computes."""
    run_keys: ClassVar[tuple[str, ...]] = ("step",)
    """State of the whole run; kept, shared, in every parameter group, where checkpointing libraries carry it."""

    def __init__(
        self, params: Any, defaults: Mapping[str, Any], weights: str | Artifact, clip_norm: float | None = None
    ) -> None:
        self.artifact = load(weights)
        if self.artifact.family not in self.families:
            raise ZooError(
                f"{type(self).__name__} cannot run {self.artifact.name!r}: it is a {self.artifact.family} checkpoint.",
                f"{type(self).__name__} runs {' and '.join(self.families)}; `pylo-zoo list` shows what there is.",
            )
        require(clip_norm is None or clip_norm > 0, f"clip_norm is {clip_norm}.", "Use a positive number, or None.")
        self.clip_norm = clip_norm
        self._metas: dict[tuple[torch.device, torch.dtype], Meta] = {}
        self._warned: set[str] = set()
        super().__init__(params, {**defaults, "layout": "torch", "weights": self.artifact.fingerprint[:16]})

    @property
    def behavior(self) -> Any:
        """The checkpoint's behaviour record (:mod:`pylo_zoo.config`)."""
        return self.artifact.behavior

    # --- what a family adds --------------------------------------------------------------------------------------

    @abstractmethod
    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        """The state of one parameter before its first update; ``p`` is ``[*shape]``, a scalar ``[1]``."""

    @abstractmethod
    def update(self, item: Item, step: Tensor, context: Any) -> None:
        """Advance one parameter and its state, in place; ``context`` is its entry of :meth:`prepare`."""

    def prepare(self, items: Sequence[Item], step: Tensor, loss: Loss | None) -> Sequence[Any]:
        """A stage over all tensors before the update, such as an LSTM; one context a parameter."""
        return [None] * len(items)

    def new_run_state(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """State of the whole run before its first step."""
        return {"step": torch.tensor(0)}

    # --- stepping ------------------------------------------------------------------------------------------------

    def _step(self, parameters: Sequence[tuple[Tensor, Group]], loss: Loss | None) -> None:
        scale = None
        if self.clip_norm is not None:
            scale = global_norm_scale([p.grad for p, _ in parameters if p.grad is not None], self.clip_norm)
        items = [self._item(p, group, scale) for p, group in parameters]
        run = self._run_state(items)
        for item, context in zip(items, self.prepare(items, run["step"], loss), strict=True):
            self.update(item, run["step"], context)
            if item.p.dtype != item.parameter.dtype:
                item.parameter.copy_(item.p.view_as(item.parameter))
        run["step"] += 1

    def _item(self, parameter: Tensor, group: Group, scale: Tensor | None) -> Item:
        dtype = state_dtype(parameter)
        p, g = parameter.detach().to(dtype), parameter.grad
        assert g is not None
        g = g.to(dtype) if scale is None else g.to(dtype) * scale.to(g.device)
        if p.ndim == 0:
            p, g = p.view(1), g.view(1)
        axes = axes_of(tuple(p.shape), group["layout"])
        state = self.state[parameter]
        if not state:
            state.update(self.new_state(p, group, axes))
        return Item(parameter, p, g, state, group, axes, self._meta(p.device, dtype))

    def _run_state(self, items: Sequence[Item]) -> Group:
        """The run's state: the first group holds it, and every other group the same tensors."""
        first = self.param_groups[0]
        if "step" not in first:
            dtype = torch.float64 if any(item.p.dtype == torch.float64 for item in items) else torch.float32
            first.update(self.new_run_state(items[0].p.device, dtype))
        for group in self.param_groups[1:]:
            group.update({key: first[key] for key in self.run_keys})
        return first

    def _meta(self, device: torch.device, dtype: torch.dtype) -> Meta:
        if (device, dtype) not in self._metas:
            net = self.artifact.net().to(device=device, dtype=dtype).requires_grad_(False)
            self._metas[device, dtype] = Meta(net, net.decays())  # pyright: ignore[reportCallIssue]
        return self._metas[device, dtype]

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, stacklevel=_users_frame())

    # --- groups --------------------------------------------------------------------------------------------------

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        super()._check_group(group, given)
        for p in group["params"]:
            if p.ndim == 3 and "layout" not in given:
                self._warn_once(
                    "3d",
                    f"a parameter of shape {tuple(p.shape)} is read as a 1-d convolution (out, in, width). For stacked "
                    'weights (experts, in, out) put it in a group with layout="jax"; layout="torch" keeps this reading '
                    "and silences this warning.",
                )

    # --- saving and loading --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = {"artifact": self.artifact, "clip_norm": self.clip_norm, "_warned": self._warned}
        return {**super().__getstate__(), **own}  # pyright: ignore[reportAttributeAccessIssue]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._metas = {}

    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        p = torch.empty(p.shape or (1,), device=p.device, dtype=state_dtype(p))
        return self.new_state(p, group, axes_of(tuple(p.shape), group["layout"]))

    def _check_saved_groups(self, groups: list[Group]) -> None:
        saved, mine = groups[0].get("weights"), self.param_groups[0]["weights"]
        require(
            saved == mine,
            f"The state was written with other weights ({saved}) than this optimizer's ({mine}).",
            "Build the optimizer with the checkpoint that the run began with.",
        )

    def _after_loading(self) -> None:
        first = self.param_groups[0]
        for group in self.param_groups[1:]:
            group.update({key: first[key] for key in self.run_keys if key in first})


def _users_frame() -> int:
    """The ``stacklevel`` of the nearest caller outside this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("pylo_zoo", "torch"):
        frame, level = frame.f_back, level + 1
    return level


__all__ = ["Group", "Item", "LearnedOptimizer", "Loss", "Meta", "state_dtype"]
