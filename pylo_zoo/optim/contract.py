"""What every optimizer of this package promises: how it takes losses, checks its groups, and loads a state."""

from __future__ import annotations

import difflib
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.ops.layout import LAYOUTS
from pylo_zoo.optim.advice import Candidate, embedding_evidence, embedding_warning
from pylo_zoo.optim.checks import (
    all_finite,
    as_float,
    as_counter,
    check_flag,
    check_initialized,
    check_number,
    check_parameter,
    fitted,
    moved_to,
    require,
    takes_part,
)
from pylo_zoo.optim.state_checks import StateChecks
from pylo_zoo.warn import warn

Loss = Tensor | float
Group = dict[str, Any]

FORMAT_VERSION = 1
"""Of the state: names, shapes and meanings of its entries. It stands in every parameter group."""
NONFINITE = ("propagate", "skip", "raise")
RULES = ("learned", "adamw")
GROUP_OPTIONS = ("params", "param_names", "layout", "rule", "width_mult", "initial_lr", "max_lr", "min_lr")
"""Options that groups may have beside an optimizer's own; what else users and schedulers put there is left alone."""
NOT_PER_GROUP = ("nonfinite", "backend", "clip_norm")
"""Arguments of constructors that apply to the whole optimizer."""
UNSUPPORTED = ("maximize", "amsgrad", "differentiable")
"""Options of torch's optimizers that change the update and that no optimizer here has; False is accepted."""
OWN_STATE = frozenset(
    [
        *("step", "master", "momentum", "second_moment", "row", "col", "diag", "lstm_hidden", "lstm_cell"),
        *("gradient_sum", "banked", "momentum_buffer", "exp_avg", "exp_avg_sq"),
    ]
)
"""Names that the optimizers here give to a parameter's state. Other names belong to wrappers such as Lookahead."""
_TELLING = OWN_STATE - {"step"}
"""Of these, the names that no wrapper uses."""


class ParamGrad(NamedTuple):
    """One parameter that a step moves: its gradient ``[*shape]``, of any floating dtype, is never written."""

    parameter: Tensor
    gradient: Tensor
    group: Group


@contextmanager
def without_autocast(due: Sequence[ParamGrad]) -> Iterator[None]:
    """The matrix products of an update are of the update's dtype, whatever the model's are in."""
    with ExitStack() as stack:
        for kind in {each.parameter.device.type for each in due} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class ZooOptimizer(torch.optim.Optimizer):
    """Base of the optimizers here: a subclass adds its step, and the state that a parameter has before its first one.

    Args:
        params: as of :class:`torch.optim.Optimizer`.
        defaults: values of a group's options where it does not set them.
        nonfinite: what a step does where the loss or a gradient is NaN or infinite. ``"propagate"``, as torch's
            optimizers and the originals do, leaves it to the rule. ``"skip"`` touches nothing: no parameter,
            accumulator, loss buffer or counter; ``skipped_steps`` counts them. ``"raise"`` touches nothing and raises.
            The last two read one number back from each device, and break a compiled graph there.
        master_weights: keep a float32 copy of 16-bit parameters in the state, and step on that. Without it, steps
            smaller than half the last bit of a parameter (2⁻⁹ to 2⁻⁸ of it in bfloat16) are lost. A group's option.

    Raises:
        ZooError: a parameter or group cannot be optimized.
    """

    needs_loss: ClassVar[bool] = False
    state_options: ClassVar[tuple[str, ...]] = (
        *("layout", "rule", "master_weights"),
        *("accumulate", "use_muon", "use_fallback"),
    )
    """Group options that decide which state a parameter has."""

    def __init__(
        self, params: Any, defaults: dict[str, Any], nonfinite: str = "propagate", master_weights: bool = False
    ) -> None:
        require(nonfinite in NONFINITE, f"nonfinite is {nonfinite!r}.", f"Use one of {', '.join(NONFINITE)}.")
        _keep_apart(type(self))
        self.nonfinite = nonfinite
        self.skipped_steps = 0
        self._pending_loss: list[Loss] = []  # a list: compilers before torch 2.13 cannot set an optimizer's attribute
        self._warned: set[str] = set()
        self._state_names: set[str] = set()  # of the entries that this optimizer has made or seen
        self._checks = StateChecks()
        common = {"master_weights": master_weights, "format_version": FORMAT_VERSION}
        super().__init__(params, {**defaults, **common})

    @abstractmethod
    def expected_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        """One parameter's state before its first step, on ``p``'s device, the meta device included."""

    @abstractmethod
    def _step(self, due: Sequence[ParamGrad], loss: Loss | None) -> None:
        """Advance the parameters that take part in this step; at least one, under ``torch.no_grad``."""

    # --- stepping ------------------------------------------------------------------------------------------------

    def set_loss(self, loss: Loss) -> None:
        """Leave the loss for the next bare ``step()``, for loops that cannot pass it.

        It is used once, and a bare step without a new one is an error. A later ``set_loss``, a loss given to ``step``
        and a loaded state take its place: ``GradScaler`` skips steps by never calling ``step``, and the loss that such
        a step leaves behind must neither reach the next one nor stop it. Give the loss itself, not the scaled one.
        """
        self._pending_loss[:] = [loss]

    def step(self, closure: Callable[[], Loss] | Loss | None = None, *, loss: Loss | None = None) -> Any:
        """One optimizer step.

        Args:
            closure: re-evaluates the model and returns the loss; or the loss itself.
            loss: the loss, a scalar. VeLO and Celo need it; the others return it untouched.

        Returns:
            The loss, as it came.

        A step in which no parameter has a gradient does nothing: it needs no loss, and counts nothing. It does use up
        a loss from ``set_loss``, which belonged to it.

        Raises:
            ZooError: a loss is needed and there is none, there are two, a gradient is sparse, a parameter with a
                gradient cannot be optimized, or something is not finite and ``nonfinite="raise"``. Nothing has been
                touched then.
        """
        loss = self._take_loss(closure, loss)
        with torch.no_grad():
            due = [
                ParamGrad(p, p.grad, group)
                for group in self.param_groups
                for p in group["params"]
                if p.grad is not None and takes_part(p)
            ]
            if due:
                self._check_loss(loss)
            if due and (self.nonfinite == "propagate" or self._is_finite(due, loss)):
                with without_autocast(due):
                    self._step(due, loss)
        return loss

    def _take_loss(self, closure: Callable[[], Loss] | Loss | None, loss: Loss | None) -> Loss | None:
        left = self._pending_loss.pop() if self._pending_loss else None
        require(
            closure is None or loss is None,
            "step() has more than one loss to choose from.",
            "Give a closure, or the loss, or loss=: one of them.",
        )
        given: Any = left if closure is None and loss is None else closure if loss is None else loss
        if callable(given):
            with torch.enable_grad():
                given = given()
        return given

    def _check_loss(self, loss: Any) -> None:
        """Raise if this optimizer needs a loss and ``loss`` cannot be one; called for steps with gradients only."""
        if not self.needs_loss:
            return
        require(
            loss is not None,
            f"{type(self).__name__} reads the training loss, and this step has none.",
            "Call step(loss), step(closure), or set_loss(loss) before each bare step().",
        )
        require(
            _is_real_scalar(loss),
            f"The loss is not a real scalar: {type(loss).__name__}.",
            "Pass the mean loss of the batch, a tensor of one element or a number.",
        )
        self._check_loss_value(loss)

    def _check_loss_value(self, loss: Any) -> None:
        """Raise if a step reads the loss, and it has no value."""
        if isinstance(loss, Tensor) and loss.is_meta and (self.needs_loss or self.nonfinite != "propagate"):
            require(
                any(p.is_meta for group in self.param_groups for p in group["params"]),
                "The loss is on the meta device and has no value.",
                "Compute the loss on a real device.",
            )

    def _is_finite(self, due: Sequence[ParamGrad], loss: Loss | None) -> bool:
        """Whether the loss and all gradients are; where not, count or raise, as ``nonfinite`` says."""
        self._check_loss_value(loss)
        self._check(due)
        sound = (
            math.isfinite(as_float(loss))
            if isinstance(loss, Real)
            else not isinstance(loss, Tensor) or all_finite([loss])
        )
        if sound and all_finite([each.gradient for each in due]):
            return True
        if self.nonfinite == "raise":
            bad = [tuple(each.gradient.shape) for each in due if not all_finite([each.gradient])]
            what = (
                f"{len(bad)} of {len(due)} gradients are, the first of shape {bad[0]}"
                if bad
                else f"it is {loss if isinstance(loss, Tensor) else quoted(loss)}"
            )
            raise ZooError(
                f"{'A gradient' if bad else 'The loss'} is not finite: {what}.",
                'Look for what overflows, or let nonfinite="skip" leave such steps out. Nothing has been touched.',
            )
        self._count_skipped()
        return False

    def _count_skipped(self) -> None:
        """Count one skipped step, outside compiled graphs (:func:`_keep_apart`): a count in them would recompile."""
        self.skipped_steps += 1

    def _prime(self, due: Sequence[ParamGrad]) -> None:
        """Check parameters, gradients and state, then make the state of parameters that have none.

        It runs outside compiled graphs (:func:`_keep_apart`), before the step writes anything.

        Raises:
            ZooError: a tensor does not fit the others (:mod:`pylo_zoo.optim.state_checks`), or a new parameter
                cannot be optimized.
        """
        if self._check(due):
            return
        for p, _, _ in due:
            state = self.state.get(p, {})
            if "step" in state and not isinstance(state["step"], Tensor):  # wrappers and other packages count in ints
                state["step"] = as_counter("step", state["step"])
        new = [each for each in due if not self._is_primed(each)]
        for p, _, group in new:
            self.state[p].update(self.expected_state(p, group))
        if new:
            self._advise(new)
        for p, _, group in due:
            state = self.state[p]
            if wants_master(p, group) != ("master" in state):  # the option has changed in mid-run
                state.pop("master") if "master" in state else state.update(master_copy(p, group))

    def _advise(self, new: Sequence[ParamGrad]) -> None:
        """Warn about parameters in their first step that this optimizer would train badly; nothing by default."""

    def _advise_on_embeddings(self, matrices: Sequence[ParamGrad], rule: str) -> None:
        """Warn if one of the parameters that take ``rule``, though their groups set none, looks like an embedding."""
        unset = [each for each in matrices if each.group.get("rule") is None and each.group["layout"] == "torch"]
        named = {id(p): n for group in self.param_groups for p, n in _with_names(group)} if unset else {}
        found = embedding_evidence(Candidate(p, g, named.get(id(p))) for p, g, _ in unset)
        if found is not None:
            self._warn_once("embedding", embedding_warning(*found, rule))

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warn(message)

    def _is_primed(self, due: ParamGrad) -> bool:
        """Whether a parameter has this optimizer's state, whatever other entries wrappers have added."""
        state = self.state.get(due.parameter)
        if not state:
            return False
        if not _TELLING.isdisjoint(state):  # also if the route has changed since, which _check_side reports
            return True
        if self._state_names.isdisjoint(state):
            self._state_names.update(self.expected_state(due.parameter, due.group))
        return not self._state_names.isdisjoint(state)

    def _check(self, due: Sequence[ParamGrad]) -> bool:
        """Raise for tensors that do not fit each other; whether every parameter has a complete state."""
        return self._checks.check(self, due)

    def _check_new(self, due: Sequence[ParamGrad]) -> None:
        """Raise if a parameter without state cannot be optimized."""
        for each in due:
            if not self._is_primed(each):
                check_parameter(each.parameter, type(self).__name__)

    def _check_side(self, p: Tensor, group: Group) -> None:
        """Raise if a changed route is why the state of ``p`` does not fit."""

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
        for option in given:
            near = difflib.get_close_matches(option, (*self.defaults, *GROUP_OPTIONS), n=1, cutoff=0.8)
            require(
                option in self.defaults or option in GROUP_OPTIONS or not near,
                f"A parameter group has the unknown option {option!r}.",
                f"Did you mean {near[0] if near else None!r}?",
            )
        for option in given.intersection(NOT_PER_GROUP):
            taken = option in inspect.signature(type(self).__init__).parameters
            remedy = "give it to the constructor" if taken else "use torch.nn.utils.clip_grad_norm_ before the step"
            raise ZooError(f"A parameter group sets {option}.", f"It applies to the whole optimizer: {remedy}.")
        for option in UNSUPPORTED:
            require(
                not group.get(option),
                f"A parameter group has {option}={group.get(option)!r}.",
                f"{type(self).__name__} has no such option: leave it out.",
            )
        require(group["layout"] in LAYOUTS, f"layout is {group['layout']!r}.", f"Use one of {', '.join(LAYOUTS)}.")
        check_number("lr", group["lr"])
        check_number("weight_decay", group["weight_decay"])
        check_flag("master_weights", group["master_weights"])
        if "rule" in group:
            require(group["rule"] in (None, *RULES), f"rule is {group['rule']!r}.", 'Use "learned" or "adamw".')
        for p in group["params"]:
            check_initialized(p)
            if p.requires_grad:  # a frozen parameter may be of any kind, as in quantized models
                check_parameter(p, type(self).__name__)

    def __repr__(self) -> str:
        """The options of each group; not the state of the run, nor what no user chose."""
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            count = sum(p.numel() for p in group["params"])
            lines.append(f"Parameter Group {number}: {count:,} parameters in {len(group['params'])} tensors")
            shown = {key: value for key, value in group.items() if key in self.defaults or key in GROUP_OPTIONS}
            hidden = ("params", "param_names", "format_version")
            lines += [f"    {key}: {value}" for key, value in sorted(shown.items()) if key not in hidden]
        return "\n".join([*lines, ")"])

    # --- saving and loading --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = {"nonfinite": self.nonfinite, "skipped_steps": self.skipped_steps, "_warned": self._warned}
        return {**super().__getstate__(), **own}  # pyright: ignore[reportAttributeAccessIssue]

    def __setstate__(self, state: dict[str, Any]) -> None:
        _keep_apart(type(self))
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch's, for its own step functions; no option here
        self._pending_loss = []
        self._checks = StateChecks()
        self._state_names = set()
        self.__dict__.setdefault("_warned", set())

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`, without the empty entries that reading ``state[p]`` leaves."""
        saved = super().state_dict()
        if any(isinstance(entry, dict) and not entry for entry in saved["state"].values()):
            saved["state"] = {key: entry for key, entry in saved["state"].items() if entry}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :meth:`torch.optim.Optimizer.load_state_dict`, but checked first and kept in its own dtype.

        torch casts state to the parameter's dtype, which would silently halve the precision of the float32
        accumulators of a 16-bit parameter; here only the device is changed. Entries that wrappers such as Lookahead
        keep beside the optimizer's own are kept. Numbers and lists, as JSON has them, become tensors.

        Raises:
            ZooError: the state comes from another run, or one of the optimizer's own entries is missing or of another
                shape. The optimizer is as it was.
        """
        loaded: list[dict[int, dict[str, Any]]] = []

        def take(_: torch.optim.Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            loaded.append(self._checked_state(incoming))
            ours = entries_of_parameters(incoming)
            return {**incoming, "state": {key: each for key, each in incoming["state"].items() if key not in ours}}

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

    def _check_saved_groups(self, incoming: Mapping[str, Any]) -> None:
        """Raise where incoming groups, as many and as large as this optimizer's, cannot be or are of another run."""
        for group in incoming["param_groups"]:
            self._check_group({**self.defaults, **group, "params": []}, frozenset())

    def _after_loading(self) -> None:
        """Called when state and groups have been replaced, before the caller's own hooks."""
        for group in self.param_groups:  # a state from before an option existed
            for option, value in self.defaults.items():
                group.setdefault(option, value)

    def _checked_state(self, incoming: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The incoming state by position of the parameter, on the parameters' devices; raises where it cannot be."""
        missing = [key for key in ("state", "param_groups") if key not in incoming]
        require(not missing, f"This is no optimizer's state: it has no {missing}.", "Load what state_dict() returned.")
        groups: list[Group] = incoming["param_groups"]
        mine: list[Group] = self.param_groups
        sizes = [len(group["params"]) for group in groups], [len(group["params"]) for group in mine]
        require(
            sizes[0] == sizes[1],
            f"The state's parameter groups hold {sizes[0]} parameters; this optimizer's hold {sizes[1]}.",
            "Build the optimizer over the same groups before loading.",
        )
        versions = {group.get("format_version", FORMAT_VERSION) for group in groups}  # there was none before it was 1
        require(
            versions == {FORMAT_VERSION},
            f"The state has format_version {', '.join(map(str, versions))}; this pylo-zoo reads {FORMAT_VERSION}.",
            "Load it with the release of pylo-zoo that wrote it, or a later one.",
        )
        for theirs, ours in zip(groups, mine, strict=True):
            names = [list(group.get("param_names") or ()) for group in (theirs, ours)]
            require(
                names[0] == names[1] or sorted(names[0]) != sorted(names[1]),
                f"The state's parameters are the same in another order: {names[0][:3]}…, here {names[1][:3]}….",
                "States are matched by position: build the optimizer over the parameters in the order they had.",
            )
        self._check_saved_groups(incoming)
        keys = [key for group in groups for key in group["params"]]
        parameters = [p for group in mine for p in group["params"]]
        entries = entries_of_parameters(incoming)
        for key in keys:  # JSON turns the numbers of parameters into text
            if key not in entries and str(key) in entries:
                entries[key] = entries.pop(str(key))
        unknown = [key for key in entries if key not in keys]
        require(not unknown, f"The state has entries of no parameter: {sorted(unknown, key=str)}.", "Save it again.")
        saved_groups = [group for group in groups for _ in group["params"]]
        return {
            index: self._checked_entry(index, entries[key], p, {**self.defaults, **group})
            for index, (key, p, group) in enumerate(zip(keys, parameters, saved_groups, strict=True))
            if key in entries
        }

    def _checked_entry(self, index: int, entry: Mapping[str, Any], p: Tensor, group: Group) -> dict[str, Any]:
        """The state of one parameter on its device: the optimizer's own entries checked, others as they are.

        A parameter that has not been stepped may have entries of wrappers alone.
        """
        what = f"The state of parameter {index}, of shape {tuple(p.shape)},"
        require(isinstance(entry, Mapping), f"{what} is {type(entry).__name__}.", "Load what state_dict() returned.")
        expected: dict[str, Tensor] = {}
        if p.is_floating_point():
            expected = self.expected_state(torch.empty(p.shape, device="meta", dtype=p.dtype), group)
        own = {name: value for name, value in entry.items() if name in expected or name in OWN_STATE}
        others = {name: moved_to(value, p.device) for name, value in entry.items() if name not in own}
        return {**fitted(own, expected, p.device, what), **others} if own or not others else others


def _with_names(group: Group) -> Iterable[tuple[Tensor, str]]:
    return zip(group["params"], group.get("param_names") or (), strict=False)


def entries_of_parameters(incoming: Mapping[str, Any]) -> dict[Any, Any]:
    """The entries of a state that belong to parameters, or number some. Wrappers use other keys for entries of none."""
    keys = {key for group in incoming["param_groups"] for key in group["params"]}

    def of_parameter(key: Any) -> bool:
        return key in keys or isinstance(key, int) or (isinstance(key, str) and key.isdecimal())

    return {key: entry for key, entry in incoming["state"].items() if of_parameter(key)}


_APART: set[type[ZooOptimizer]] = set()


def _keep_apart(cls: type[ZooOptimizer]) -> None:
    """Keep the making of state out of compiled graphs, which then find it made and need no second one; and kernels.

    Done when a class is first built, as torch does with hooks of ``step``: dynamo takes most of a second to import,
    which ``import pylo_zoo`` need not spend, and torch's own ``add_param_group`` does.
    """
    if cls not in _APART:
        _APART.add(cls)
        for name in ("_prime", "_check", "_take_apart", "_count_skipped"):
            if hasattr(cls, name):
                setattr(cls, name, torch.compiler.disable(getattr(cls, name)))


def state_dtype(p: Tensor) -> torch.dtype:
    """The dtype of accumulators: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def wants_master(p: Tensor, group: Group) -> bool:
    """Whether ``p`` is narrower than its state and its group wants a master copy."""
    return group["master_weights"] and p.dtype != state_dtype(p)


def master_copy(p: Tensor, group: Group) -> dict[str, Tensor]:
    """The state that ``master_weights`` adds to a 16-bit parameter: ``master [*shape]``, float32."""
    return {"master": p.detach().to(state_dtype(p)).contiguous()} if wants_master(p, group) else {}


def wide_value(p: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The value ``[*shape]`` that an update is computed on and written to, in :func:`state_dtype`.

    The parameter itself where its dtype allows it; else its master copy, or a copy for this step. Where a parameter is
    no longer its master rounded, somebody has written to it since, and its own value is taken.
    """
    if "master" not in state:
        return p.detach().to(state_dtype(p))
    master = state["master"]
    return master.copy_(torch.where(master.to(p.dtype) == p, master, p.to(master.dtype)))


def _is_real_scalar(value: Any) -> bool:
    """Whether ``value`` is a real number, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)
