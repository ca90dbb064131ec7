"""The faults of real ports that every proof plants in the torch side (:mod:`~pylo_zoo.parity.controls`).

A data fault is a changed artifact. A code fault temporarily replaces a function of the torch side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.nets import in_range
from pylo_zoo.ops.accumulators import Decays, advance, advance_all, advance_factored
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.features import Inputs, normalize
from pylo_zoo.ops.layout import Axes, Layout, axes_of
from pylo_zoo.parity import plan

Substitutions = Sequence[tuple[Callable[..., Any], Callable[..., Any]]]


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name, description: texts for the report.
        code: functions of the torch side, each with its faulty replacement.
        data: returns a faulty artifact, or None if the fault cannot occur in this artifact.
        needs: quantity that the fault affects; the fault does not apply to families without it. "" for all families.
        regime: regime of the gradients that shows the fault.
    """

    name: str
    description: str
    code: Substitutions = field(default_factory=list)
    data: Callable[[Artifact], Artifact | None] | None = None
    needs: str = ""
    regime: str = "ordinary"


# --- data faults -------------------------------------------------------------------------------------------------


def _with(artifact: Artifact, name: str, tensor: Tensor) -> Artifact | None:
    if torch.equal(tensor, artifact.tensors[name]):
        return None
    return replace(artifact, tensors={**artifact.tensors, name: tensor.contiguous()})


def matrices(artifact: Artifact) -> list[str]:
    """Names of the network's weights with two or more axes, MLP weights first."""
    names = [name for name, tensor in artifact.state_dict().items() if tensor.ndim > 1 and min(tensor.shape[-2:]) > 1]
    return sorted(names, key=lambda name: (not name.startswith("mlp"), name))


def _untransposed(artifact: Artifact) -> Artifact | None:
    for name in matrices(artifact):
        tensor = artifact.tensors[name]
        if (faulty := _with(artifact, name, tensor.mT.reshape(tensor.shape))) is not None:
            return faulty
    return None


def _flip_one_bit(artifact: Artifact) -> Artifact | None:
    name = matrices(artifact)[0]
    tensor = artifact.tensors[name]
    bits = tensor.clone().view(torch.int32)
    bits.view(-1)[int(tensor.abs().argmax())] ^= 1
    return _with(artifact, name, bits.view(torch.float32))


def _swap_gates(artifact: Artifact) -> Artifact | None:
    faulty = artifact
    for name in ("controller.lstm.weight", "controller.lstm.bias"):
        if name not in faulty.tensors:
            return None
        i, g, f, o = faulty.tensors[name].chunk(4)
        faulty = _with(faulty, name, torch.cat([i, f, g, o])) or faulty
    return None if faulty is artifact else faulty


def _permute_decays(artifact: Artifact) -> Artifact | None:
    learned = artifact.tensors.get("momentum_decays")
    if learned is not None and (faulty := _with(artifact, "momentum_decays", learned.roll(1))) is not None:
        return faulty
    behavior = artifact.behavior
    momentum: tuple[float, ...] = getattr(behavior, "initial_momentum_decays", ())
    if len(set(momentum)) > 1:
        changes = {"initial_momentum_decays": momentum[1:] + momentum[:1]}
    elif momentum and momentum != getattr(behavior, "initial_rms_decays", momentum):
        changes = {"initial_momentum_decays": behavior.initial_rms_decays, "initial_rms_decays": momentum}
    else:
        return None
    return replace(artifact, behavior=replace(behavior, **changes))


def _fewer_iterations(artifact: Artifact) -> Artifact | None:
    behavior = artifact.behavior
    if not getattr(behavior, "orthogonalize", False) or behavior.ns_iters < 2:
        return None
    return replace(artifact, behavior=replace(behavior, ns_iters=behavior.ns_iters - 1))


# --- code faults -------------------------------------------------------------------------------------------------


def _swap_tied_axes(shape: tuple[int, ...], layout: Layout) -> Axes:
    axes = axes_of(shape, layout)
    if axes.factored is None or shape[axes.factored[0]] != shape[axes.factored[1]]:
        return axes
    return axes._replace(factored=axes.factored[::-1])


def _always_jax_layout(shape: tuple[int, ...], layout: Layout) -> Axes:
    return axes_of(shape, "jax")


def _double_eps(x: Tensor, mean_square: Tensor, eps: float) -> Tensor:
    return normalize(x, mean_square, 2 * eps)


def _adam_double_eps(
    m: Tensor, v: Tensor, g: Tensor, count: Tensor, betas: tuple[Tensor, Tensor], eps: float, eps_root: float = 0.0
) -> Tensor:
    return adam_direction(m, v, g, count, betas, 2 * eps, 2 * eps_root)


def _adam_old_moments(
    m: Tensor, v: Tensor, g: Tensor, count: Tensor, betas: tuple[Tensor, Tensor], eps: float, eps_root: float = 0.0
) -> Tensor:
    m_hat, v_hat = (old[0] / (1 - beta**count) for old, beta in zip((m, v), betas, strict=True))
    adam_direction(m, v, g, count, betas, eps, eps_root)
    return m_hat / (eps + torch.sqrt(v_hat + eps_root))


def _without_guard(state: Mapping[str, Tensor], gradient: Tensor, decay: Tensor, axes: Axes) -> None:
    square = gradient.square()
    if axes.factored is None:
        advance(state["diag"], square, decay)
        return
    d1, d0 = axes.factored
    advance(state["row"], square.mean(dim=d0, keepdim=True), decay)
    advance(state["col"], square.mean(dim=d1, keepdim=True), decay)


def _without_clip(decays: Tensor) -> Tensor:
    return decays


_old_momentum: dict[int, Tensor] = {}


def _keep_old_momentum(state: Mapping[str, Tensor], gradient: Tensor, decays: Decays, axes: Axes) -> None:
    _old_momentum[state["momentum"].data_ptr()] = state["momentum"].clone()
    advance_all(state, gradient, decays, axes)


def _use_old_momentum(p: Tensor, g: Tensor, m: Tensor, *args: Any, **kwargs: Any) -> Inputs:
    return Inputs(p, g, _old_momentum.pop(m.data_ptr()), *args, **kwargs)


FAULTS = (
    Fault(
        "tied axes",
        "of two equal axes, the wrong one is the largest",
        ((axes_of, _swap_tied_axes),),
        needs="row",
    ),
    Fault("layout", "torch's order of axes is read as JAX's", ((axes_of, _always_jax_layout),), needs="row"),
    Fault("epsilon", "the epsilon of the feature normalization is doubled", ((normalize, _double_eps),)),
    Fault("Adam's epsilon", "the epsilons of Adam's rule are doubled", ((adam_direction, _adam_double_eps),)),
    Fault(
        "old accumulator",
        "features use the momentum from before the step",
        ((advance_all, _keep_old_momentum), (Inputs, _use_old_momentum)),
    ),
    Fault(
        "Adam's old moments",
        "Adam's rule uses the moments from before the step",
        ((adam_direction, _adam_old_moments),),
    ),
    Fault(
        "guard",
        "1e-30 is not added to the squared gradient",
        ((advance_factored, _without_guard),),
        needs="row",
        regime="zeros",
    ),
    Fault("clip of decays", "decays are not clipped to [0, 1]", ((in_range, _without_clip),), regime=plan.BELOW),
    Fault("decays", "the decays are permuted", data=_permute_decays),
    Fault("transposed weight", "a matrix is not transposed", data=_untransposed),
    Fault("one bit", "the last bit of one weight is flipped", data=_flip_one_bit),
    Fault("gate order", "two of the LSTM's gates are swapped", data=_swap_gates),
    Fault("Newton–Schulz", "one iteration is left out", data=_fewer_iterations),
)
"""The faults that every proof plants."""


@contextmanager
def substituted(pairs: Substitutions, optimizer: str) -> Iterator[list[str]]:
    """Within this context, the torch side calls the second function of each pair instead of the first.

    Yields a list to which the name of each replaced function is added when it is called. The modules of
    ``pylo_zoo.parity`` keep the original functions.

    Args:
        pairs: functions and their replacements.
        optimizer: module of the optimizer, which may belong to another package.
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
