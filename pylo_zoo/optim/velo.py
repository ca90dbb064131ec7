"""VeLO (arXiv 2211.09760; SPEC §4): an LSTM a tensor writes the weights of an MLP a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.nets import Control
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.accumulators import new_accumulators
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule, velo_rule
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.base import Group, ParamStep
from pylo_zoo.optim.lstm_controlled import MAX_GRADIENT, LSTMControlledOptimizer, decoupled
from pylo_zoo.optim.mlp_rule import Limits, MLPRuleOptimizer, Network


class Written(Sequence[Network]):
    """What the LSTM wrote for N tensors: layers ``[N, …]`` and step sizes ``[N]``; an item is that of one tensor."""

    def __init__(self, layers: Sequence[Layer], multipliers: Tensor, likes: Sequence[Tensor]) -> None:
        self.layers, self.multipliers, self._likes = layers, multipliers, likes

    def __len__(self) -> int:
        return len(self._likes)

    def __getitem__(self, k: int) -> Network:  # pyright: ignore[reportIncompatibleMethodOverride]
        like = self._likes[k]
        return Network([(w[k].to(like), b[k].to(like)) for w, b in self.layers], self.multipliers[k].to(like))

    def __iter__(self) -> Iterator[Network]:
        return (self[k] for k in range(len(self)))


class VeLO(MLPRuleOptimizer, LSTMControlledOptimizer):
    """VeLO. Needs the training loss: ``opt.step(loss)``.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        num_steps: steps that the run will take.
        lr: multiplies every step; VeLO needs no tuning, and 1 is what it was trained with.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        weights: registry name, artifact directory or loaded artifact, of family velo.
        decay, accumulate: :class:`~pylo_zoo.optim.lstm_controlled.LSTMControlledOptimizer`.
        nonfinite, master_weights, backend: :class:`~pylo_zoo.optim.base.LearnedOptimizer`. A loss that is not finite
            stays in the loss buffer for good: use ``nonfinite="skip"`` where one may come.

    Raises:
        ZooError: bad arguments, weights of another family, or a step without a loss.
    """

    families = ("velo",)
    looks_ahead = True

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        weights: str | Artifact = "velo",
        decay: str = "decoupled",
        accumulate: int | str = 1,
        nonfinite: str = "propagate",
        master_weights: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            params, num_steps, lr, weight_decay, weights, decay, accumulate, nonfinite, master_weights, backend
        )

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return {**super().new_state(p, group, axes), **new_accumulators(p, axes)}

    def lstm_inputs(self, items: Sequence[ParamStep], run_features: Tensor) -> Tensor:
        def row(item: ParamStep) -> Tensor:
            taken = item.moments
            if taken is None:
                taken = conditioning.moments(item.look(), item.state["momentum"], item.state["second_moment"])
            return taken.to(run_features)

        moments = torch.stack([row(item) for item in items])
        of_tensors = conditioning.tensor_features(moments, [item.parameter.shape for item in items])
        return torch.cat([run_features.expand(len(items), -1), of_tensors], dim=1)

    def contexts(self, items: Sequence[ParamStep], control: Control) -> Written:
        net: Any = self._meta(control.hidden.device, control.hidden.dtype).net
        layers = net.write(control.controls)
        record("controls", control.controls)  # pyright: ignore[reportArgumentType]
        for k, (weight, _) in enumerate(layers):
            record(f"written/{k}", weight)
        likes = [item.state["momentum"] for item in items]
        return Written(layers, self.behavior.step_mult * control.lr_mult, likes)

    @property
    def rule(self) -> Rule:
        return velo_rule(self.behavior.exp_mult)

    def limits(self, group: Group) -> Limits:
        return Limits(MAX_GRADIENT)

    def decay(self, group: Group) -> float:
        return decoupled(group)

    def networks(self, prepared: Sequence[Network], positions: Sequence[int]) -> tuple[Sequence[Layer], Tensor]:
        assert isinstance(prepared, Written)
        layers, multipliers = prepared.layers, prepared.multipliers
        if len(positions) < len(prepared):
            layers = [(w[positions], b[positions]) for w, b in layers]
            multipliers = multipliers[positions]
        return [(w.float(), b.float()) for w, b in layers], multipliers  # float64 if some parameter is
