"""μLO (arXiv 2406.00153; SPEC §3): AdafacMLP under the maximal update parametrization."""

from __future__ import annotations

import torch
from torch import Tensor

from pylo_zoo.optim.adafac import AdafacLO, adafac_update
from pylo_zoo.optim.base import Item


class MuLO(AdafacLO):
    """μLO: :class:`~pylo_zoo.optim.adafac.AdafacLO` with each matrix-like parameter's step divided by its width.

    The width multiplier is the group's ``width_mult`` where it has one, else ``p.infshape.width_mult()`` of the
    ``mup`` package where the parameter is infinite in two dimensions, else 1. Non-finite gradients are replaced: NaN
    by 0, infinities by the largest finite number. Arguments, state and errors are AdafacLO's.
    """

    def update(self, item: Item, step: Tensor, context: None) -> None:
        step_mult = self.behavior.step_mult / _width_mult(item)
        adafac_update(item, torch.nan_to_num(item.g), step, self.behavior.exp_mult, step_mult)


def _width_mult(item: Item) -> float:
    if "width_mult" in item.group:
        return item.group["width_mult"]
    infshape = getattr(item.parameter, "infshape", None)
    return infshape.width_mult() if infshape is not None and infshape.ninf() == 2 else 1.0
