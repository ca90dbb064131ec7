"""Parameter groups for a model: which layout and which rule each parameter has, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from pylo_zoo.errors import ZooError


@dataclass(frozen=True)
class Route:
    """Where one parameter goes: its group's ``layout`` and ``rule``, and the reason.

    ``rule`` is "learned", "adamw", or None where the checkpoint decides by the number of axes: CELO2 gives vectors and
    scalars to AdamW, CELO2-base to its rule.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    rule: str | None
    reason: str


def param_groups(
    model: nn.Module, *, adamw: Sequence[str] = (), learned: Sequence[str] = (), **options: Any
) -> list[dict[str, Any]]:
    """Sort a model's parameters into groups with ``layout`` and ``rule`` (SPEC §1, §6).

    Args:
        model: parameters that need no gradient are left out; a shared parameter counts once, where it is first met.
        adamw: names, or patterns with ``*``, of parameters to give to AdamW in any case.
        learned: names, or patterns with ``*``, of parameters to give to the learned rule in any case.
        options: further options of every group, such as ``weight_decay=0.1``.

    Returns:
        Groups for any optimizer of this package. Those without an AdamW path ignore ``rule``.

    Raises:
        ZooError: a pattern matches no parameter.
    """
    parameters = dict(model.named_parameters())
    groups: dict[tuple[str, str | None], dict[str, Any]] = {}
    for route in routes(model, adamw=adamw, learned=learned):
        group = groups.setdefault(
            (route.layout, route.rule), {"params": [], "layout": route.layout, "rule": route.rule, **options}
        )
        group["params"].append(parameters[route.name])
    return list(groups.values())


def routes(model: nn.Module, *, adamw: Sequence[str] = (), learned: Sequence[str] = ()) -> list[Route]:
    """What :func:`param_groups` decides for each parameter, in the model's order, with the reason."""
    found = [_overruled(route, adamw, learned) for route in _by_module(model)]
    for pattern in (*adamw, *learned):
        if not any(fnmatchcase(route.name, pattern) for route in found):
            raise ZooError(f"No parameter is called {pattern!r}.", "Names are those of model.named_parameters().")
    return found


def _overruled(route: Route, adamw: Iterable[str], learned: Iterable[str]) -> Route:
    for rule, patterns in (("adamw", adamw), ("learned", learned)):
        for pattern in patterns:
            if fnmatchcase(route.name, pattern):
                return Route(route.name, route.shape, route.layout, rule, f"named by {rule}={pattern!r}")
    return route


def _by_module(model: nn.Module) -> Iterator[Route]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            name = f"{prefix}.{own_name}" if prefix else own_name
            layout, rule, reason = _route(module, tuple(parameter.shape))
            yield Route(name, tuple(parameter.shape), layout, rule, reason)


def _route(module: nn.Module, shape: tuple[int, ...]) -> tuple[str, str | None, str]:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "jax", "adamw", "embedding table (vocabulary, dim)"
    if len(shape) < 2:
        return "torch", None, "fewer than two axes: as the checkpoint has it"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "torch", "learned", "convolution (out, in, *spatial)"
    if len(shape) == 2:
        return "torch", "learned", "matrix (out, in)"
    if len(shape) == 3:
        return "jax", "learned", "stacked matrices (stack, in, out)"
    return "torch", "learned", "read as a convolution (out, in, *spatial)"
