"""What every optimizer of this package promises: how it takes losses, checks its groups, and loads a state."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.layout import LAYOUTS

Loss = Tensor | float
Group = dict[str, Any]

RULES = ("learned", "adamw")
GROUP_OPTIONS = ("params", "param_names", "layout", "rule", "width_mult", "initial_lr", "max_lr", "min_lr")
"""Options that groups may have beside an optimizer's own; what else users and schedulers put there is left alone."""


class ZooOptimizer(torch.optim.Optimizer):
    """Base of the optimizers here: a subclass adds its step, and the state that a parameter has before its first one.

    Arguments are those of :class:`torch.optim.Optimizer`.

    Raises:
        ZooError: a parameter or group cannot be optimized.
    """

    needs_loss: ClassVar[bool] = False

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._loss: Loss | None = None
        super().__init__(params, defaults)

    @abstractmethod
    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        """The names, shapes and dtypes of one parameter's state, on any device, the meta device included."""

    @abstractmethod
    def _step(self, parameters: Sequence[tuple[Tensor, Group]], loss: Loss | None) -> None:
        """Advance the parameters that take part in this step, each with its group; at least one, without gradients."""

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
            parameters = [(p, group) for group in self.param_groups for p in group["params"] if takes_part(p)]
            if parameters:
                self._step(parameters, loss)
        return loss

    def _take_loss(self, closure: Callable[[], Loss] | Loss | None, loss: Loss | None) -> Loss | None:
        given: list[Any] = [each for each in (closure, loss, self._loss) if each is not None]
        self._loss = None
        require(
            len(given) <= 1,
            "step() has more than one loss to choose from.",
            "Give a closure, a loss, loss= or an earlier set_loss(loss): one of them.",
        )
        if callable(closure):
            with torch.enable_grad():
                given = [closure()]
        if self.needs_loss:
            require(
                bool(given) and given[0] is not None,
                f"{type(self).__name__} reads the training loss, and this step has none.",
                "Call step(loss), step(closure), or set_loss(loss) before each bare step().",
            )
            require(
                given[0].numel() == 1 if isinstance(given[0], Tensor) else isinstance(given[0], Real),
                f"The loss is not a scalar: {type(given[0]).__name__}.",
                "Pass the mean loss of the batch, a tensor of one element or a number.",
            )
        return given[0] if given else None

    # --- groups --------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as :meth:`torch.optim.Optimizer.add_param_group`, with its options checked."""
        given = frozenset(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group, given)
        except ZooError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        """Raise for what cannot be; ``given`` are the options that the caller wrote, the others are defaults."""
        for option in group:
            near = difflib.get_close_matches(option, (*self.defaults, *GROUP_OPTIONS), n=1, cutoff=0.8)
            require(
                option in self.defaults or option in GROUP_OPTIONS or not near,
                f"A parameter group has the unknown option {option!r}.",
                f"Did you mean {near[0] if near else None!r}?",
            )
        require(group["layout"] in LAYOUTS, f"layout is {group['layout']!r}.", f"Use one of {', '.join(LAYOUTS)}.")
        for option in ("lr", "weight_decay"):
            require(bool(group[option] >= 0), f"{option} is {group[option]}.", f"{option} must be 0 or more.")
        if "rule" in group:
            require(group["rule"] in (None, *RULES), f"rule is {group['rule']!r}.", 'Use "learned" or "adamw".')
        for p in group["params"]:
            require(
                p.is_floating_point(),
                f"A parameter of shape {tuple(p.shape)} is {p.dtype}.",
                f"{type(self).__name__} takes real floating-point parameters; torch.view_as_real helps with complex "
                "ones.",
            )

    # --- saving and loading --------------------------------------------------------------------------------------

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._loss = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :meth:`torch.optim.Optimizer.load_state_dict`, but checked first and kept in its own dtype.

        torch casts state to the parameter's dtype, which would silently halve the precision of the float32
        accumulators of a 16-bit parameter; here only the device is changed.

        Raises:
            ZooError: the state comes from another run, or an entry is missing, unknown or of another shape. The
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
            self._after_loading()

        hooks = [self.register_load_state_dict_pre_hook(take), self.register_load_state_dict_post_hook(put, True)]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_saved_groups(self, groups: list[Group]) -> None:
        """Raise where incoming groups, as many and as large as this optimizer's, are of another run."""

    def _after_loading(self) -> None:
        """Called when state and groups have been replaced, before the caller's own hooks."""

    def _checked_state(self, incoming: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
        """The incoming state by position of the parameter, on the parameters' devices; raises where it cannot be."""
        groups: list[Group] = incoming["param_groups"]
        mine: list[Group] = self.param_groups
        sizes = [len(group["params"]) for group in groups], [len(group["params"]) for group in mine]
        require(
            sizes[0] == sizes[1],
            f"The state's parameter groups hold {sizes[0]} parameters; this optimizer's hold {sizes[1]}.",
            "Build the optimizer over the same groups before loading.",
        )
        self._check_saved_groups(groups)
        keys = [key for group in groups for key in group["params"]]
        parameters = [p for group in mine for p in group["params"]]
        unknown = set(incoming["state"]) - set(keys)
        require(not unknown, f"The state has entries of no parameter: {sorted(unknown)}.", "Save it anew.")
        saved_groups = [group for group in groups for _ in group["params"]]
        checked = {}
        for index, (key, p, group) in enumerate(zip(keys, parameters, saved_groups, strict=True)):
            if key in incoming["state"]:
                checked[index] = self._checked_entry(p, {**self.defaults, **group}, incoming["state"][key], index)
        return checked

    def _checked_entry(self, p: Tensor, group: Group, entry: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        expected = self.expected_state(torch.empty(p.shape, device="meta", dtype=p.dtype), group)
        found = {name: tuple(value.shape) for name, value in entry.items()}
        wanted = {name: tuple(value.shape) for name, value in expected.items()}
        require(
            found == wanted,
            f"The state of parameter {index}, of shape {tuple(p.shape)}, does not fit: "
            f"it has {_difference(found, wanted)} and should have {_difference(wanted, found)}.",
            "Load a state of the same optimizer class over the same model.",
        )
        return {
            name: value.detach().to(device="cpu" if name == "step" else p.device, dtype=expected[name].dtype, copy=True)
            for name, value in entry.items()
        }


def takes_part(p: Tensor) -> bool:
    """Whether a step moves ``p``: it has a gradient and elements. Raises :class:`ZooError` for a sparse gradient."""
    if p.grad is None or p.numel() == 0:
        return False
    require(
        not p.grad.is_sparse,
        f"The gradient of a parameter of shape {tuple(p.shape)} is sparse.",
        "The optimizers here read every element: build the embedding with sparse=False.",
    )
    return True


def state_dtype(p: Tensor) -> torch.dtype:
    """The dtype of accumulators: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def require(condition: bool, message: str, hint: str) -> None:
    """Raise :class:`ZooError` unless ``condition`` holds."""
    if not condition:
        raise ZooError(message, hint)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in one.items() if other.get(name) != shape) or "nothing else"
