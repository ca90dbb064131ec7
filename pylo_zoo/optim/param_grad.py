"""The parameters that a step updates, with their gradients and groups."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.optim.checks import needs_update

Group = dict[str, Any]

_layout = attrgetter("layout")


class ParamGrad(NamedTuple):
    """A parameter that a step updates, its gradient (read-only) and its group."""

    parameter: Tensor
    gradient: Tensor
    group: Group


def find_gradients(groups: Iterable[Group]) -> list[ParamGrad]:
    """The parameters that have a gradient, except empty ones, in the order of ``groups``, each once.

    torch accepts a parameter that is listed twice, with a warning.

    Raises:
        ZooError: a gradient is sparse.
    """
    grads = [ParamGrad(p, g, group) for group in groups for p in group["params"] if (g := p.grad) is not None]
    if len({id(each.parameter) for each in grads}) < len(grads):
        first: dict[int, ParamGrad] = {}
        for each in grads:
            first.setdefault(id(each.parameter), each)
        grads = list(first.values())
    gradients = [each.gradient for each in grads]
    if all(map(Tensor.numel, gradients)) and {torch.strided}.issuperset(map(_layout, gradients)):
        return grads
    return [each for each in grads if needs_update(each.parameter, each.group)]
