"""μLO (arXiv 2406.00153; SPEC §3): AdafacMLP under the maximal update parametrization."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.optim.adafac import AdafacLO
from pylo_zoo.optim.base import Group, Loss, ParamStep
from pylo_zoo.optim.checks import as_float
from pylo_zoo.optim.mlp_rule import Limits


class MuLO(AdafacLO):
    """μLO: :class:`~pylo_zoo.optim.adafac.AdafacLO` with each matrix-like parameter's step divided by its width.

    The width multiplier, how many times wider than the base model a parameter's inputs are, is

    1. its group's ``width_mult``, which holds for all of the group's parameters; else
    2. that of ``parameter.infshape``, which ``mup.set_base_shapes(model, …)`` leaves there: ``width_mult()`` where
       two dimensions are infinite (hidden weights), 1 where fewer are (inputs, outputs, biases, norms); else
    3. 1: a model at its base width, or in standard parametrization.

    ``infshape`` is an attribute of the parameter alone: ``copy.deepcopy`` loses it, and so do wrappers that make
    parameters of their own, such as FSDP's. :func:`~pylo_zoo.optim.param_groups` writes it into the groups as
    ``width_mult``, where it stays; build the groups before wrapping. Where ``mup`` is in use and no parameter has a
    width, the first step warns; where some have and some have not, that is an error.

    The multiplier divides the learned step, not the weight decay, which needs no scaling with width. Non-finite
    gradients are replaced: NaN by 0, infinities by the largest finite number. Arguments, state and further errors are
    AdafacLO's. The rest of the parametrization (initialization, the multiplier of the readout) is the model's.

    Raises:
        ZooError: a ``width_mult`` that is no positive finite number, or ``infshape`` on some of the parameters only.
    """

    def prepare(self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None) -> Sequence[Any]:
        if "mup" in sys.modules and not any(_has_width(item.parameter, item.group) for item in items):
            self._warn_once(
                "width",
                "mup is in use, but no parameter has a width: every step is as long as at the base width. Call "
                "mup.set_base_shapes on this very model (deepcopy and FSDP lose what it sets) and build the groups "
                "with param_groups(model), or set width_mult in each group, 1.0 for the base width.",
            )
        return super().prepare(items, step, loss)

    def limits(self, group: Group) -> Limits:
        return Limits(replace_nonfinite=True)

    def step_mult(self, item: ParamStep) -> float:
        return self.behavior.step_mult / _width_mult(item.parameter, item.group)

    def _check_group(self, group: Group, given: frozenset[str]) -> None:
        super()._check_group(group, given)
        for p in group["params"]:
            _width_mult(p, group)
        open_to_mup = [p for each in self.param_groups if "width_mult" not in each for p in each["params"]]
        bare = [p for p in open_to_mup if not hasattr(p, "infshape")]
        if 0 < len(bare) < len(open_to_mup):
            raise ZooError(
                f"{len(bare)} of {len(open_to_mup)} parameters have no infshape and no width_mult, the first of shape "
                f"{tuple(bare[0].shape)}; the others have.",
                "Call mup.set_base_shapes once the model is complete, or set width_mult in the others' groups.",
            )


def infshape_width(parameter: Tensor) -> float | None:
    """The width multiplier by the ``mup`` package's ``infshape``; None where the parameter carries none.

    Raises:
        ZooError: more than two dimensions are infinite, or the multiplier is no positive finite number.
    """
    infshape = getattr(parameter, "infshape", None)
    if infshape is None:
        return None
    if infshape.ninf() > 2:
        raise ZooError(
            f"A parameter of shape {tuple(parameter.shape)} is infinite in {infshape.ninf()} dimensions.",
            "The parametrization knows two at most: put it in a group with a width_mult of its own.",
        )
    return check_width(infshape.width_mult(), "infshape.width_mult()") if infshape.ninf() == 2 else 1.0


def _width_mult(parameter: Tensor, group: Group) -> float:
    if "width_mult" in group:
        return check_width(group["width_mult"], "width_mult")
    width = infshape_width(parameter)
    return 1.0 if width is None else width


def _has_width(parameter: Tensor, group: Group) -> bool:
    return "width_mult" in group or hasattr(parameter, "infshape")


def check_width(width: Any, name: str) -> float:
    """``width`` as a float.

    Raises:
        ZooError: it is not a positive finite number.
    """
    value = as_float(width) if isinstance(width, Real) and not isinstance(width, bool) else math.nan
    if not (math.isfinite(value) and value > 0):
        raise ZooError(f"{name} is {quoted(width)}.", "Give width over base width, a positive finite number.")
    return value


__all__ = ["MuLO", "check_width", "infshape_width"]
