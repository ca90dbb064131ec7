"""The toy family in torch: its network, and the optimizer that trains with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.nets import PROBE_ELEMENTS, Affine, FixedDecays
from pylo_zoo.ops.accumulators import advance
from pylo_zoo.ops.layout import Axes
from pylo_zoo.ops.trace import record
from pylo_zoo.optim.base import Group, LearnedOptimizer, ParamStep
from pylo_zoo.optim.options import SharedOptions, Unpack

from .converter import ToyArchitecture, ToyBehavior

EPS = 1e-8


class ToyNet(FixedDecays, nn.Module):
    """``2 → hidden → 1``; its ``state_dict`` has the names that the table fills."""

    def __init__(self, architecture: ToyArchitecture, behavior: ToyBehavior) -> None:
        super().__init__()
        self.architecture, self.behavior = architecture, behavior
        self.hidden = Affine(2, architecture.hidden_size)
        self.out = Affine(architecture.hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``features [..., 2]`` → step ``[..., 1]``."""
        return self.out(torch.tanh(self.hidden(features)))

    def probe_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"features": (PROBE_ELEMENTS, 2)}

    def probe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"mlp": self(inputs["features"])}


class Toy(LearnedOptimizer):
    """Steps by an MLP over the gradient and its momentum, both divided by the root mean square of the gradient.

    State per parameter: ``momentum`` and ``second_moment``, ``[1, *shape]``.
    """

    families = ("toy",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        weights: str | Artifact = "toy-released",
        **options: Unpack[SharedOptions],
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults, weights, clip_norm, **options)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p)[None] for name in ("momentum", "second_moment")}

    def update(self, item: ParamStep, step: Tensor, context: None) -> None:
        p, g, state, decays = item.p, item.g, item.state, item.meta.decays
        advance(state["momentum"], g, decays.momentum)
        advance(state["second_moment"], g.square(), decays.rms)
        rms = state["second_moment"][0].sqrt() + EPS
        delta = item.meta.net(torch.stack([g / rms, state["momentum"][0] / rms], dim=-1))[..., 0]
        delta = self.behavior.step_mult * delta
        record("step", delta)
        p.sub_(item.group["lr"] * (delta + item.group["weight_decay"] * p))
