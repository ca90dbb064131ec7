"""μLO (arXiv 2406.00153; SPEC §3): AdafacMLP with maximal update parametrization (μP)."""

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
from pylo_zoo.optim.mlp_rule import Limits, SharedMLPs


class MuLO(AdafacLO):
    """μLO: :class:`~pylo_zoo.optim.adafac.AdafacLO` with the step of each matrix-like parameter divided by its width.

    The width multiplier is the ratio of a parameter's input width to that of the base model. It is

    1. the ``width_mult`` of the parameter's group, if set; else
    2. from ``parameter.infshape``, if ``mup.set_base_shapes(model, …)`` has set it: ``width_mult()`` if two dimensions
       are infinite (hidden weights), 1 if fewer are (input and output weights, biases, norms); else
    3. 1: the model has its base width or standard parametrization.

    ``copy.deepcopy`` and wrappers that create new parameters, such as FSDP, lose ``infshape``.
    :func:`~pylo_zoo.optim.param_groups` copies it to ``width_mult`` in the groups; call it before wrapping the model.
    The first step warns if ``mup`` is imported and no parameter has a width. Widths on some parameters only are an
    error.

    The multiplier divides the learned step, not the weight decay. In gradients, NaN becomes 0 and infinities become the
    largest finite number. Arguments, state and other errors are AdafacLO's. The model is responsible for the rest of μP
    (initialization, readout multiplier).

    Raises:
        ZooError: a ``width_mult`` is not a positive finite number, or only some parameters have ``infshape``.
    """

    plan_options = ("width_mult",)

    def prepare(
        self, items: Sequence[ParamStep], step: Tensor, loss: Loss | None, moments: Tensor | None = None
    ) -> SharedMLPs:
        if "mup" in sys.modules and not any(_has_width(item.parameter, item.group) for item in items):
            self._warn_once(
                "width",
                "mup is in use, but no parameter has a width, so steps are not scaled. Call mup.set_base_shapes on "
                "this model (deepcopy and FSDP lose its result) and build groups with param_groups(model), or set "
                "width_mult in each group, 1.0 for the base width.",
            )
        return super().prepare(items, step, loss, moments)

    def limits(self, group: Group) -> Limits:
        return Limits(replace_nonfinite=True)

    def step_mult(self, item: ParamStep) -> float:
        return self.behavior.step_mult / _width_mult(item.parameter, item.group)

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        super()._check_group(group, explicit)
        for p in group["params"]:
            _width_mult(p, group)
        by_infshape = [p for each in self.param_groups if "width_mult" not in each for p in each["params"]]
        missing = [p for p in by_infshape if not hasattr(p, "infshape")]
        if 0 < len(missing) < len(by_infshape):
            raise ZooError(
                f"{len(missing)} of {len(by_infshape)} parameters have no infshape and no width_mult, the first of "
                f"shape {tuple(missing[0].shape)}.",
                "Call mup.set_base_shapes after the model is complete, or set width_mult in their groups.",
            )


def infshape_width(parameter: Tensor) -> float | None:
    """The width multiplier from the ``mup`` package's ``infshape``, or None if the parameter has none.

    Raises:
        ZooError: more than two dimensions are infinite, or the multiplier is not a positive finite number.
    """
    infshape = getattr(parameter, "infshape", None)
    if infshape is None:
        return None
    if infshape.ninf() > 2:
        raise ZooError(
            f"A parameter of shape {tuple(parameter.shape)} is infinite in {infshape.ninf()} dimensions.",
            "Set width_mult in a separate group: μP defines widths for at most two infinite dimensions.",
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
        ZooError: ``width`` is not a positive finite number.
    """
    value = as_float(width) if isinstance(width, Real) and not isinstance(width, bool) else math.nan
    if not (math.isfinite(value) and value > 0):
        raise ZooError(f"{name} is {quoted(width)}.", "Set it to width / base width, a positive finite number.")
    return value


__all__ = ["MuLO", "check_width", "infshape_width"]
