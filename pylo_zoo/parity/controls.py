"""Negative controls: faults that real ports have had, planted in the torch side, which this very run has to catch.

A fault of the data is another artifact; a fault of the code replaces a function of the torch side while it lasts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.formats import Source
from pylo_zoo.nets import in_range
from pylo_zoo.ops.accumulators import Decays, advance, advance_all, advance_factored
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.features import Inputs, normalize
from pylo_zoo.ops.layout import Axes, Layout, axes_of
from pylo_zoo.optim import optimizer_class
from pylo_zoo.parity import forward, plan, trajectory
from pylo_zoo.parity.explain import first_difference
from pylo_zoo.parity.forward import Network
from pylo_zoo.parity.leaves import check_leaves
from pylo_zoo.parity.report import Check, Control
from pylo_zoo.parity.steps import Walk, compare
from pylo_zoo.parity.trajectory import Original

STEPS = 3
"""So many steps of a walk each fault is tried on."""


Substitutions = Sequence[tuple[Callable[..., Any], Callable[..., Any]]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name, what: for the report.
        code: functions of the torch side that have it, each with what takes its place.
        data: makes the artifact that has it; None where the artifact has nothing to go wrong in this way.
        needs: a quantity of the original without which there is nothing to go wrong; "" where there always is.
        regime: of the gradients that show it.
    """

    name: str
    what: str
    code: Substitutions = field(default_factory=list)
    data: Callable[[Artifact], Artifact | None] | None = None
    needs: str = ""
    regime: str = "ordinary"


# --- faults of the data ------------------------------------------------------------------------------------------


def _with(artifact: Artifact, name: str, tensor: Tensor) -> Artifact | None:
    if torch.equal(tensor, artifact.tensors[name]):
        return None
    return replace(artifact, tensors={**artifact.tensors, name: tensor.contiguous()})


def _matrices(artifact: Artifact) -> list[str]:
    """The network's weights of two axes and more, those of an MLP first."""
    found = [name for name, tensor in artifact.state_dict().items() if tensor.ndim > 1 and min(tensor.shape[-2:]) > 1]
    return sorted(found, key=lambda name: (not name.startswith("mlp"), name))


def _untransposed(artifact: Artifact) -> Artifact | None:
    for name in _matrices(artifact):
        tensor = artifact.tensors[name]
        if (made := _with(artifact, name, tensor.mT.reshape(tensor.shape))) is not None:
            return made
    return None


def _one_bit(artifact: Artifact) -> Artifact | None:
    name = _matrices(artifact)[0]
    tensor = artifact.tensors[name]
    bits = tensor.clone().view(torch.int32)
    bits.view(-1)[int(tensor.abs().argmax())] ^= 1
    return _with(artifact, name, bits.view(torch.float32))


def _gates(artifact: Artifact) -> Artifact | None:
    made = artifact
    for name in ("controller.lstm.weight", "controller.lstm.bias"):
        if name not in made.tensors:
            return None
        i, g, f, o = made.tensors[name].chunk(4)
        made = _with(made, name, torch.cat([i, f, g, o])) or made
    return None if made is artifact else made


def _decays(artifact: Artifact) -> Artifact | None:
    learned = artifact.tensors.get("momentum_decays")
    if learned is not None and (made := _with(artifact, "momentum_decays", learned.roll(1))) is not None:
        return made
    behavior = artifact.behavior
    momentum: tuple[float, ...] = getattr(behavior, "initial_momentum_decays", ())
    if len(set(momentum)) > 1:
        changes = {"initial_momentum_decays": momentum[1:] + momentum[:1]}
    elif momentum and momentum != getattr(behavior, "initial_rms_decays", momentum):
        changes = {"initial_momentum_decays": behavior.initial_rms_decays, "initial_rms_decays": momentum}
    else:
        return None
    return replace(artifact, behavior=replace(behavior, **changes))


def _iterations(artifact: Artifact) -> Artifact | None:
    behavior = artifact.behavior
    if not getattr(behavior, "orthogonalize", False) or behavior.ns_iters < 2:
        return None
    return replace(artifact, behavior=replace(behavior, ns_iters=behavior.ns_iters - 1))


# --- faults of the code ------------------------------------------------------------------------------------------


def _tied(shape: tuple[int, ...], kept: Layout) -> Axes:
    axes = axes_of(shape, kept)
    if axes.factored is None or shape[axes.factored[0]] != shape[axes.factored[1]]:
        return axes
    return axes._replace(factored=axes.factored[::-1])


def _as_jax(shape: tuple[int, ...], kept: Layout) -> Axes:
    return axes_of(shape, "jax")


def _doubled(x: Tensor, mean_square: Tensor, eps: float) -> Tensor:
    return normalize(x, mean_square, 2 * eps)


def _adam_doubled(
    m: Tensor, v: Tensor, g: Tensor, count: Tensor, betas: tuple[Tensor, Tensor], eps: float, eps_root: float = 0.0
) -> Tensor:
    return adam_direction(m, v, g, count, betas, 2 * eps, 2 * eps_root)


def _adam_late(
    m: Tensor, v: Tensor, g: Tensor, count: Tensor, betas: tuple[Tensor, Tensor], eps: float, eps_root: float = 0.0
) -> Tensor:
    m_hat, v_hat = (old[0] / (1 - beta**count) for old, beta in zip((m, v), betas, strict=True))
    adam_direction(m, v, g, count, betas, eps, eps_root)
    return m_hat / (eps + torch.sqrt(v_hat + eps_root))


def _unguarded(state: Mapping[str, Tensor], gradient: Tensor, decay: Tensor, axes: Axes) -> None:
    square = gradient.square()
    if axes.factored is None:
        advance(state["diag"], square, decay)
        return
    d1, d0 = axes.factored
    advance(state["row"], square.mean(dim=d0, keepdim=True), decay)
    advance(state["col"], square.mean(dim=d1, keepdim=True), decay)


def _unclipped(decays: Tensor) -> Tensor:
    return decays


_before: dict[int, Tensor] = {}


def _remembering(state: Mapping[str, Tensor], gradient: Tensor, decays: Decays, axes: Axes) -> None:
    _before[state["momentum"].data_ptr()] = state["momentum"].clone()
    advance_all(state, gradient, decays, axes)


def _late(p: Tensor, g: Tensor, m: Tensor, *others: Any, **more: Any) -> Inputs:
    return Inputs(p, g, _before.pop(m.data_ptr()), *others, **more)


FAULTS = (
    Fault("tied axes", "of two axes of one size, the other is taken for the largest", ((axes_of, _tied),), needs="row"),
    Fault("layout", "torch's order of axes is read as JAX's", ((axes_of, _as_jax),), needs="row"),
    Fault("epsilon", "the epsilon of the feature normaliser is doubled", ((normalize, _doubled),)),
    Fault("Adam's epsilon", "the epsilons of Adam's rule are doubled", ((adam_direction, _adam_doubled),)),
    Fault(
        "old accumulator",
        "features read the momentum from before this step's gradient",
        ((advance_all, _remembering), (Inputs, _late)),
    ),
    Fault("Adam's old moments", "Adam's rule reads the moments from before this step", ((adam_direction, _adam_late),)),
    Fault(
        "guard",
        "1e-30 is not added to the squared gradient",
        ((advance_factored, _unguarded),),
        needs="row",
        regime="zeros",
    ),
    Fault("clip of decays", "decays are not clipped to [0, 1]", ((in_range, _unclipped),), regime=plan.BELOW),
    Fault("decays", "the decays are permuted", data=_decays),
    Fault("transposed weight", "a matrix is read without transposing it", data=_untransposed),
    Fault("one bit", "the last bit of one weight is flipped", data=_one_bit),
    Fault("gate order", "the LSTM's gates stand in another order", data=_gates),
    Fault("Newton–Schulz", "one iteration is left out", data=_iterations),
)
"""What every run is tried with."""


# --- trying them -------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """Where a fault showed: quantity, parameter, error and bound."""

    by: str
    case: str = ""
    error: float | None = None
    allowed: float | None = None


Comparison = Callable[[Artifact], "Shown | None"]
"""Compares an artifact that may have a fault with the original; None where nothing shows."""


def run(artifact: Artifact, source: Source, walks: Mapping[str, Walk], *, right: bool) -> Iterator[Control]:
    """Plant each fault, and see whether single steps in float64 show it, or else the leaves.

    Args:
        artifact: the torch side, without fault.
        source: the original file.
        walks: the reference's side, by regime.
        right: whether the artifact agrees with the original; planting another fault in a wrong one shows nothing.
    """
    for fault in FAULTS:
        if not right:
            yield Control(fault.name, fault.what, "not applicable", "the torch side is wrong without it")
            continue
        if fault.regime not in walks:
            yield Control(fault.name, fault.what, "not applicable", f"this family has no run {fault.regime!r}")
            continue
        walked = walks[fault.regime].first(STEPS)
        if fault.needs and not any(quantity == fault.needs for _, quantity in walked.ledger.keys):
            yield Control(fault.name, fault.what, "not applicable", f"this family has no {fault.needs}")
            continue

        def compared(faulty: Artifact, walked: Walk = walked) -> Shown | None:
            shown = first_difference([compare(faulty, walked, "float64", "torch")])
            if shown is None:
                return None if check_leaves(faulty, source).passed else Shown("leaves")
            link = next(link for link in shown.chain if link.quantity == shown.quantity)
            return Shown(shown.quantity, shown.case, link.error, link.allowed)

        yield plant(fault, artifact, compared)


def plant(fault: Fault, artifact: Artifact, compared: Comparison) -> Control:
    """Plant ``fault``, and see whether ``compared`` notices."""
    if fault.data is not None:
        faulty = fault.data(artifact)
        if faulty is None:
            return Control(fault.name, fault.what, "not applicable", "this checkpoint has none to go wrong")
        shown = compared(faulty)
    else:
        with substituted(fault.code, optimizer_class(artifact.family).__module__) as calls:
            shown = compared(artifact)
        if not calls:
            used = fault.code[0][0].__name__
            return Control(fault.name, fault.what, "not applicable", f"this family does not use {used}")
    if shown is None:
        return Control(fault.name, fault.what, "missed", "nothing")
    return Control(fault.name, fault.what, "caught", *shown)


# --- every level by itself ---------------------------------------------------------------------------------------


def _nan(artifact: Artifact, name: str) -> Artifact:
    changed = artifact.tensors[name].clone()
    changed.view(-1)[int(changed.abs().argmax())] = torch.nan
    return replace(artifact, tensors={**artifact.tensors, name: changed})


def _scaled(artifact: Artifact, name: str) -> Artifact:
    changed = artifact.tensors[name].clone()
    changed.view(-1)[int(changed.abs().argmax())] *= 1.01
    return replace(artifact, tensors={**artifact.tensors, name: changed})


WEIGHT_FAULTS: Sequence[tuple[str, str, Callable[[Artifact, str], Artifact]]] = (
    ("weight", "one weight is off by a hundredth", _scaled),
    ("NaN", "one weight is not a number", _nan),
)
"""What each level alone has to show: name, meaning, and the artifact with one weight of that name changed."""
LEVELS = ("leaves", "network", "single steps", "whole runs")
SHORT = 3
"""Steps of a whole run in which these faults are looked for."""


def by_level(
    artifact: Artifact,
    source: Source,
    network: Network,
    walked: Walk,
    original: Original,
    step_check: Callable[[Any], Check],
    *,
    right: bool,
) -> Iterator[Control]:
    """Plant faults that every level has to show by itself, so that no comparison passes whatever it is given.

    Args:
        artifact: the torch side, without fault.
        source: the original file.
        network: the original's outputs.
        walked: the reference's side of single steps, ordinary ones.
        original: the reference's ordinary whole run.
        step_check: judges single steps as the report does.
        right: whether the artifact agrees with the original.
    """
    short = _beginning(original)

    def checks(level: str, faulty: Artifact) -> Iterator[Check]:
        if level == "network":
            yield next(iter(forward.checks(faulty, network)))
        elif level == "single steps":
            yield step_check(compare(faulty, walked.first(1), "float64", "torch"))
        else:
            yield from trajectory.checks(faulty, short, ("float64",))

    def shown(level: str, faulty: Artifact) -> Shown | None:
        if level == "leaves":
            return None if check_leaves(faulty, source).passed else Shown("leaves")
        found = next((check for check in checks(level, faulty) if not check.passed), None)
        if found is None:
            return None
        error = found.errors[found.worst]
        return Shown(found.broken[0] if error.passed and found.broken else found.worst, "", error.error, error.allowed)

    for level in LEVELS:
        for name, what, change in WEIGHT_FAULTS:
            title, what = f"{name}, by {level}", f"{what}: seen by {level} alone"
            if not right:
                yield Control(title, what, "not applicable", "the torch side is wrong without it")
                continue
            found = (shown(level, change(artifact, tensor)) for tensor in _matrices(artifact))
            first = next((each for each in found if each is not None), None)  # a weight may have no effect
            yield Control(title, what, "missed", "nothing") if first is None else Control(title, what, "caught", *first)


def _beginning(original: Original) -> Original:
    course = replace(original.course, steps=min(SHORT, original.course.steps), layouts=("torch",))
    n = course.steps
    return replace(
        original, course=course, grads=original.grads[:n], losses=original.losses[:n], truth=original.truth[: n + 1]
    )


@contextmanager
def substituted(pairs: Substitutions, optimizer: str) -> Iterator[list[str]]:
    """Within this context, the torch side calls the second of each pair where it called the first.

    Gives a list that fills with the names of what was called. The modules of parity itself keep the right ones.

    Args:
        pairs: functions, and what takes their place.
        optimizer: module of the optimizer, which another package may have brought.
    """
    calls: list[str] = []

    def counted(right: Callable[..., Any], wrong: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(right.__name__)
            return wrong(*args, **kwargs)

        return call

    roots = ("pylo_zoo", optimizer.partition(".")[0])
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in roots and not name.startswith(__package__ or __name__)
    ]
    places = [
        (module, name, right, counted(right, wrong))
        for right, wrong in pairs
        for module in modules
        for name, value in list(vars(module).items())
        if value is right
    ]
    try:
        for module, name, _, wrong in places:
            setattr(module, name, wrong)
        yield calls
    finally:
        for module, name, right, _ in places:
            setattr(module, name, right)
