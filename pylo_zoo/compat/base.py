"""Base classes of the optimizers with PyLO's names: parameter groups, states, weight decay and clipping as in PyLO."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim.base import Group, LearnedOptimizer, ParamStep, state_dtype
from pylo_zoo.optim.checks import check_max_norm
from pylo_zoo.optim.contract import ParamGrad
from pylo_zoo.optim.mlp_rule import MLPRuleOptimizer

GROUP_ARGUMENTS = frozenset(
    [
        "params",
        "lr",
        "weight_decay",
        "num_steps",
        "adam_lr_mult",
        "adam_weight_decay",
        "adam_betas",
        "adam_eps",
        "grad_clip_val",
        "max_grad_norm",
        "use_adamw_for_1d",
    ]
)
"""Arguments of PyLO's constructors that a parameter group may set here."""
PYLO_STATE = frozenset(
    ["mom", "rms", "fac_vec_row", "fac_vec_col", "fac_vec_v", "exp_avg_sq_r", "exp_avg_sq_c", "fac_r", "fac_c"]
)


class PyLOOptimizer(LearnedOptimizer):
    """Base class of the optimizers with PyLO's names.

    A parameter group may set PyLO's ``is_embedding``, which implies ``layout="jax"`` (SPEC §1).
    """

    pickled_attributes: ClassVar[tuple[str, ...]] = ()
    """Additional attributes that pickling and copying keep."""

    @property
    def network(self) -> nn.Module:
        """The network for the first parameter's device and dtype."""
        p = self.param_groups[0]["params"][0]
        return self._meta_network(p.device, state_dtype(p)).net

    def add_param_group(self, param_group: Group) -> None:
        group = dict(param_group)
        own = set(inspect.signature(type(self)).parameters) - GROUP_ARGUMENTS
        if wrong := sorted(own & group.keys()):
            raise ZooError(
                f"A parameter group sets {', '.join(wrong)}.",
                f"Pass it to {type(self).__name__}(): here it belongs to the whole optimizer.",
            )
        if group.pop("is_embedding", False):
            group.setdefault("layout", "jax")
        super().add_param_group(group)

    def _check_group(self, group: Group, explicit: frozenset[str]) -> None:
        super()._check_group(group, explicit)
        check_max_norm("max_grad_norm", group.get("max_grad_norm"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Like the other optimizers of the package, but reject states written by PyLO, which has other accumulators."""
        entries = state_dict.get("state", {}).values()
        if "loss_buffer" in state_dict or any(PYLO_STATE & set(entry) for entry in entries):
            raise ZooError(
                "This state was written by PyLO, whose accumulators have other shapes.",
                "Load the model's weights and start with a new optimizer state.",
            )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.pickled_attributes}}


class DecayAfterUpdate(MLPRuleOptimizer):
    """Applies weight decay to the updated parameter: ``p ← p − lr·step``, then ``p ← p − lr·weight_decay·p``.

    This is PyLO's order for VeLO, AdafacLO and MuLO. The originals and :mod:`pylo_zoo.optim` decay the old value.
    """

    def decay(self, group: Group) -> float:
        return 0.0

    def after_update(self, item: ParamStep) -> None:
        if decay := item.group["weight_decay"]:
            item.p.sub_(item.group["lr"] * decay * item.p)


class PerParameterClipping(LearnedOptimizer):
    """Clips the norm of each parameter's gradient to ``max_grad_norm``. Groups may override it; None disables it."""

    max_grad_norm: float | None

    def _begin(self, grads: Sequence[ParamGrad]) -> Sequence[ParamStep]:
        items = super()._begin(grads)
        for item in items:
            max_norm = item.group.get("max_grad_norm", self.max_grad_norm)
            item.own_scale = None
            if max_norm is not None and max_norm != math.inf:  # like torch.nn.utils.clip_grad_norm_ for one parameter
                item.own_scale = (max_norm / (torch.linalg.vector_norm(item.g) + 1e-6)).clamp(max=1.0)
        return items
