"""PyLO's ``MuLO_naive``: AdafacLO's rule with groups split by width, each ``lr`` divided by the width multiplier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pylo_zoo.compat import arguments
from pylo_zoo.compat.arguments import apply_arguments
from pylo_zoo.compat.base import DecayAfterUpdate, PerParameterClipping, PyLOOptimizer
from pylo_zoo.compat.naive import (
    MULO_ADAFACTOR,
    MULO_MOMENTUM,
    MULO_RMS,
    AdafacLO_naive,
    Floats,
    Rate,
    load_mulo,
)
from pylo_zoo.compat.weights import Key
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.optim import AdafacLO, MuLO
from pylo_zoo.optim.base import Group
from pylo_zoo.optim.checks import check_initialized, check_max_norm
from pylo_zoo.optim.mulo import check_width, infshape_width
from pylo_zoo.warn import warn


class MuLO_naive(PyLOOptimizer, DecayAfterUpdate, PerParameterClipping, MuLO):
    """:class:`pylo_zoo.optim.MuLO` with PyLO's arguments: those of :class:`AdafacLO_naive`, as keywords.

    As in PyLO, parameters are grouped by their width multiplier, and a group's ``lr`` is divided by it. Schedulers see
    the divided ``lr``, which also scales the weight decay. Call ``mup.set_base_shapes`` first, or set ``width_mult`` in
    the groups.

    Args:
        params: parameters or parameter groups.
        impl: the update rule: ``"naive"``, :class:`AdafacLO_naive` or its CUDA class, which are the same here.
        others: as for :class:`AdafacLO_naive`.

    Raises:
        ZooError: as for AdafacLO_naive, or a parameter has no width.
    """

    pickled_attributes = ("max_grad_norm",)

    def __init__(
        self,
        params: Any,
        impl: Any = AdafacLO_naive,
        *,
        momentum_decays: Floats = MULO_MOMENTUM,
        rms_decays: Floats = MULO_RMS,
        adafactor_decays: Floats = MULO_ADAFACTOR,
        lr: Rate = 1.0,
        exp_mult: float = 0.001,
        step_mult: float = 0.01,
        input_size: int = 39,
        hidden_size: int = 32,
        hidden_layers: int = 1,
        initial_momentum_decays: Floats = (0.9, 0.99, 0.999),
        initial_rms_decays: Floats = (0.999,),
        initial_adafactor_decays: Floats = (0.9, 0.99, 0.999),
        max_grad_norm: float | None = None,
        concat_weights: bool = True,
        make_separate_weights: bool = False,
        split_weights: bool = False,
        clip_grad: bool = False,
        weight_decay: float = 0.0,
        mup_lrs: Any = None,
        hf_key: Key = "btherien/mulo",
    ) -> None:
        values = dict(locals())
        check_impl(impl)
        artifact = apply_arguments(load_mulo(hf_key), arguments.ADAFAC, values, MuLO_naive.__init__)
        self.max_grad_norm = check_max_norm("max_grad_norm", max_grad_norm)
        super().__init__(params, lr, weight_decay, weights=artifact)

    def add_param_group(self, param_group: Group) -> None:
        before = len(self.param_groups)
        try:
            for group in split_by_width(param_group, self.defaults["lr"]):
                super().add_param_group(group)
        except (TypeError, ValueError):
            del self.param_groups[before:]
            raise


def split_by_width(param_group: Group, lr: Rate) -> Iterable[Group]:
    """Split the group by width multiplier, divide ``lr`` by it (arXiv 2203.03466) and set ``width_mult`` to 1."""
    params = param_group["params"]
    by_width: dict[float, list[Any]] = {}
    for each in [params] if isinstance(params, Tensor) else params:
        p = each[1] if isinstance(each, tuple) else each
        if isinstance(p, Tensor):
            check_initialized(p)
        by_width.setdefault(_width(p, param_group), []).append(each)
    lr = param_group.get("lr", lr)
    for width, members in by_width.items():
        yield {**param_group, "params": members, "lr": lr / width, "width_mult": 1.0}


def _width(p: Tensor, group: Group) -> float:
    if "width_mult" in group:
        return check_width(group["width_mult"], "width_mult")
    width = infshape_width(p)
    if width is None:
        raise ZooError(
            f"A parameter of shape {tuple(p.shape)} has no infshape.",
            "Call mup.set_base_shapes on the model first, or set width_mult in its group.",
        )
    return width


def check_impl(impl: Any) -> None:
    """Warn if ``impl`` names a backend; raise if it is another update rule."""
    if impl in ("cuda", "triton"):
        warn(f"impl={impl!r} is ignored: pylo-zoo chooses the backend, and every backend computes the same rule.")
    elif impl != "naive" and not (isinstance(impl, type) and issubclass(impl, AdafacLO)):
        raise ZooError(f"impl is {quoted(impl)}, not AdafacLO's update rule.", 'Use "naive" or AdafacLO_naive.')
