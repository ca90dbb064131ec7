"""The step loop that every learned optimizer shares: groups, losses, clipping, state and its loading.

A family adds three things: the state of one parameter (:meth:`LearnedOptimizer.new_state`), optionally a stage over
all tensors before the update (:meth:`LearnedOptimizer.prepare`), and the update of one parameter
(:meth:`LearnedOptimizer.update`).
"""

from __future__ import annotations

import difflib
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.gradients import global_norm_scale
from pylo_zoo.ops.layout import LAYOUTS, Axes, axes_of
from pylo_zoo.weights import load

Loss = Tensor | float
Group = dict[str, Any]

RULES = ("learned", "adamw")
GROUP_OPTIONS = ("params", "param_names", "layout", "rule", "width_mult", "initial_lr", "max_lr", "min_lr")
"""Options that groups may have beside an optimizer's own; what else users and schedulers put there is left alone."""


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


class LearnedOptimizer(torch.optim.Optimizer):
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
    needs_loss: ClassVar[bool] = False

    def __init__(
        self, params: Any, defaults: Mapping[str, Any], weights: str | Artifact, clip_norm: float | None = None
    ) -> None:
        self.artifact = load(weights)
        if self.artifact.family not in self.families:
            raise ZooError(
                f"{type(self).__name__} cannot run {self.artifact.name!r}: it is a {self.artifact.family} checkpoint.",
                f"{type(self).__name__} runs {' and '.join(self.families)}; `pylo-zoo list` shows what there is.",
            )
        _require(clip_norm is None or clip_norm > 0, f"clip_norm is {clip_norm}.", "Use a positive number, or None.")
        self.clip_norm = clip_norm
        self._metas: dict[tuple[torch.device, torch.dtype], Meta] = {}
        self._loss: Loss | None = None
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

    def set_loss(self, loss: Loss) -> None:
        """Leave the loss for the next bare ``step()``, for loops that cannot pass it. It is used once."""
        self._loss = loss

    def step(self, closure: Callable[[], Loss] | Loss | None = None, *, loss: Loss | None = None) -> Any:
        """One optimizer step.

        Args:
            closure: re-evaluates the model and returns the loss; or the loss itself.
            loss: the loss, a scalar. VeLO and Celo need it; the others return it untouched.

        Returns:
            The loss, as it came.

        Raises:
            ZooError: a loss is needed and there is none, or there are two. Nothing has been touched then.
        """
        loss = self._take_loss(closure, loss)
        with torch.no_grad():
            parameters = [(p, group) for group in self.param_groups for p in group["params"] if _takes_part(p)]
            if parameters:
                self._step(parameters, loss)
        return loss

    def _take_loss(self, closure: Callable[[], Loss] | Loss | None, loss: Loss | None) -> Loss | None:
        given: list[Any] = [each for each in (closure, loss, self._loss) if each is not None]
        self._loss = None
        _require(
            len(given) <= 1,
            "step() has more than one loss to choose from.",
            "Give a closure, a loss, loss= or an earlier set_loss(loss): one of them.",
        )
        if callable(closure):
            with torch.enable_grad():
                given = [closure()]
        if self.needs_loss:
            _require(
                bool(given) and given[0] is not None,
                f"{type(self).__name__} reads the training loss, and this step has none.",
                "Call step(loss), step(closure), or set_loss(loss) before each bare step().",
            )
            _require(
                given[0].numel() == 1 if isinstance(given[0], Tensor) else isinstance(given[0], Real),
                f"The loss is not a scalar: {type(given[0]).__name__}.",
                "Pass the mean loss of the batch, a tensor of one element or a number.",
            )
        return given[0] if given else None

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
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
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

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as :meth:`torch.optim.Optimizer.add_param_group`, with its options checked."""
        declared = "layout" in param_group
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group, declared)
        except ZooError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: Group, layout_declared: bool) -> None:
        for option in group:
            near = difflib.get_close_matches(option, (*self.defaults, *GROUP_OPTIONS), n=1, cutoff=0.8)
            _require(
                option in self.defaults or option in GROUP_OPTIONS or not near,
                f"A parameter group has the unknown option {option!r}.",
                f"Did you mean {near[0] if near else None!r}?",
            )
        _require(group["layout"] in LAYOUTS, f"layout is {group['layout']!r}.", f"Use one of {', '.join(LAYOUTS)}.")
        for option in ("lr", "weight_decay"):
            _require(bool(group[option] >= 0), f"{option} is {group[option]}.", f"{option} must be 0 or more.")
        if "rule" in group:
            _require(group["rule"] in (None, *RULES), f"rule is {group['rule']!r}.", 'Use "learned" or "adamw".')
        for p in group["params"]:
            _require(
                p.is_floating_point(),
                f"A parameter of shape {tuple(p.shape)} is {p.dtype}.",
                "Learned optimizers take real floating-point parameters; torch.view_as_real helps with complex ones.",
            )
            if p.ndim == 3 and not layout_declared:
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
        self._loss = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :meth:`torch.optim.Optimizer.load_state_dict`, but checked first and kept in its own dtype.

        torch casts state to the parameter's dtype, which would silently halve the precision of the float32
        accumulators of a 16-bit parameter; here only the device is changed.

        Raises:
            ZooError: the state comes from other weights, or an entry is missing, unknown or of another shape. The
                optimizer is as it was.
        """
        loaded: list[dict[int, dict[str, Tensor]]] = []

        def take(_: torch.optim.Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            loaded.append(self._checked_state(incoming))
            return {**incoming, "state": {}}

        def put(_: torch.optim.Optimizer) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            for index, state in loaded[0].items():
                self.state[parameters[index]] = state
            first = self.param_groups[0]
            for group in self.param_groups[1:]:
                group.update({key: first[key] for key in self.run_keys if key in first})

        hooks = [self.register_load_state_dict_pre_hook(take), self.register_load_state_dict_post_hook(put, True)]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _checked_state(self, incoming: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
        """The incoming state by position of the parameter, on the parameters' devices; raises where it cannot be."""
        groups: list[Group] = incoming["param_groups"]
        mine: list[Group] = self.param_groups
        sizes = [len(group["params"]) for group in groups], [len(group["params"]) for group in mine]
        _require(
            sizes[0] == sizes[1],
            f"The state's parameter groups hold {sizes[0]} parameters; this optimizer's hold {sizes[1]}.",
            "Build the optimizer over the same groups before loading.",
        )
        saved_weights = groups[0].get("weights")
        _require(
            saved_weights == mine[0]["weights"],
            f"The state was written with other weights ({saved_weights}) than this optimizer's ({mine[0]['weights']}).",
            "Build the optimizer with the checkpoint that the run began with.",
        )
        keys = [key for group in groups for key in group["params"]]
        owners = [(p, group) for group in mine for p in group["params"]]
        unknown = set(incoming["state"]) - set(keys)
        _require(not unknown, f"The state has entries of no parameter: {sorted(unknown)}.", "Save it anew.")
        saved_groups = [group for group in groups for _ in group["params"]]
        checked = {}
        for index, (key, (p, _), group) in enumerate(zip(keys, owners, saved_groups, strict=True)):
            if key in incoming["state"]:
                checked[index] = self._checked_entry(p, {**self.defaults, **group}, incoming["state"][key], index)
        return checked

    def _checked_entry(self, p: Tensor, group: Group, entry: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        meta = torch.empty(p.shape or (1,), device="meta", dtype=torch.float64 if p.dtype == torch.float64 else None)
        expected = self.new_state(meta, group, axes_of(tuple(meta.shape), group["layout"]))
        found = {name: tuple(value.shape) for name, value in entry.items()}
        wanted = {name: tuple(value.shape) for name, value in expected.items()}
        _require(
            found == wanted,
            f"The state of parameter {index}, of shape {tuple(p.shape)}, does not fit: "
            f"it has {_difference(found, wanted)} and should have {_difference(wanted, found)}.",
            "Load a state of the same optimizer class over the same model.",
        )
        return {
            name: value.detach().to(device="cpu" if name == "step" else p.device, dtype=expected[name].dtype, copy=True)
            for name, value in entry.items()
        }


def state_dtype(p: Tensor) -> torch.dtype:
    """The dtype of accumulators: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _takes_part(p: Tensor) -> bool:
    if p.grad is None or p.numel() == 0:
        return False
    _require(
        not p.grad.is_sparse,
        f"The gradient of a parameter of shape {tuple(p.shape)} is sparse.",
        "Learned optimizers read every element: build the embedding with sparse=False.",
    )
    return True


def _users_frame() -> int:
    """The ``stacklevel`` of the nearest caller outside this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("pylo_zoo", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in one.items() if other.get(name) != shape) or "nothing else"


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise ZooError(message, hint)


__all__ = ["Group", "Item", "LearnedOptimizer", "Loss", "Meta", "state_dtype"]
