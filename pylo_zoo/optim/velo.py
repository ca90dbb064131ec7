"""VeLO (arXiv 2211.09760; SPEC §4): a per-tensor LSTM generates the weights of a per-parameter MLP."""

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
from pylo_zoo.optim.kernel_batch import KernelBatch
from pylo_zoo.optim.lstm_controlled import MAX_GRADIENT, LSTMControlledOptimizer, decoupled_decay
from pylo_zoo.optim.mlp_rule import Limits, MLPRuleOptimizer, Network, Networks, moments_of
from pylo_zoo.optim.options import SharedOptions, Unpack


class GeneratedMLPs(Networks):
    """The MLPs that the LSTM generated for N tensors: layers ``[N, …]`` and multipliers ``[N]``.

    An element is the network of one tensor, in the dtype and on the device of its ``like``.
    """

    def __init__(self, layers: Sequence[Layer], multipliers: Tensor, likes: Sequence[Tensor]) -> None:
        self.layers, self.multipliers, self._likes = layers, multipliers, likes

    def __len__(self) -> int:
        return len(self._likes)

    def __getitem__(self, k: int) -> Network:  # pyright: ignore[reportIncompatibleMethodOverride]
        like = self._likes[k]
        return Network([(w[k].to(like), b[k].to(like)) for w, b in self.layers], self.multipliers[k].to(like))

    def __iter__(self) -> Iterator[Network]:
        return (self[k] for k in range(len(self)))

    def select(self, batch: KernelBatch) -> tuple[Sequence[Layer], Tensor]:
        layers, multipliers = self.layers, self.multipliers
        if len(batch.positions) < len(self):
            index = batch.index(multipliers.device)
            layers = [(w[index], b[index]) for w, b in layers]
            multipliers = multipliers[index]
        kind = batch.items[0].parameter.device, torch.float32
        if (layers[0][0].device, layers[0][0].dtype) != kind:  # on the first parameter's device, float64 if any is
            layers = [(w.to(*kind), b.to(*kind)) for w, b in layers]
        return layers, multipliers


class VeLO(MLPRuleOptimizer, LSTMControlledOptimizer):
    """VeLO. Needs the training loss: ``opt.step(loss)``.

    A loss that is not finite stays in the loss buffer forever: use ``nonfinite="skip"`` if one can occur.

    Args:
        params: parameters or parameter groups (:class:`~pylo_zoo.optim.base.LearnedOptimizer`).
        num_steps: planned number of steps.
        lr: factor on every step; VeLO was trained with 1 and needs no tuning.
        weight_decay: decoupled, ``p ← p − lr·(step + weight_decay·p)``.
        weights: registry name, artifact directory or loaded artifact of family velo.
        decay, accumulate: see :class:`~pylo_zoo.optim.lstm_controlled.LSTMControlledOptimizer`.
        options: see :class:`~pylo_zoo.optim.options.SharedOptions`.

    State of a parameter: ``momentum [3, *shape]``, ``second_moment [1, *shape]``, ``row`` and ``col`` if the second
    moment is factored, else ``diag``, and ``lstm_hidden`` and ``lstm_cell`` ``[H]``.

    Raises:
        ZooError: an argument is invalid, the weights belong to another family, or a step has no loss.
    """

    families = ("velo",)
    prepare_reads_state = True

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        weights: str | Artifact = "velo",
        decay: str = "decoupled",
        accumulate: int | str = 1,
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, num_steps, lr, weight_decay, weights, decay, accumulate, **options)

    def new_state(self, p: Tensor, group: Group, axes: Axes) -> dict[str, Tensor]:
        return {**super().new_state(p, group, axes), **new_accumulators(p, axes)}

    def lstm_inputs(self, items: Sequence[ParamStep], run_features: Tensor, moments: Tensor | None) -> Tensor:
        if moments is None:
            moments = torch.stack([moments_of(item).to(run_features) for item in items])
        ranks = self.lstm_ranks(items, run_features)
        assert ranks is not None
        tensor_features = conditioning.tensor_features(moments.to(run_features), ranks)
        return torch.cat([run_features.expand(len(items), -1), tensor_features], dim=1)

    def lstm_ranks(self, items: Sequence[ParamStep], like: Tensor) -> Tensor | None:
        return self._keep("ranks", items, lambda items: _ranks(items).to(like)).to(like)

    def contexts(self, items: Sequence[ParamStep], control: Control) -> GeneratedMLPs:
        meta = self._meta_network(control.hidden.device, control.hidden.dtype)
        net: Any = meta.net
        if self._uses_kernels and not torch.compiler.is_compiling():
            written, layers = self._keep("written", items, lambda items: _layers(net, meta.bank, len(items)))
            torch.mm(control.controls, meta.bank, out=written)  # pyright: ignore[reportArgumentType]
        else:
            layers = net.write(control.controls)
        record("controls", control.controls)  # pyright: ignore[reportArgumentType]
        for k, (weight, _) in enumerate(layers):
            record(f"written/{k}", weight)
        likes = [item.state["momentum"] for item in items]
        return GeneratedMLPs(layers, self.behavior.step_mult * control.lr_mult, likes)

    @property
    def rule(self) -> Rule:
        return velo_rule(self.behavior.exp_mult)

    def limits(self, group: Group) -> Limits:
        return Limits(MAX_GRADIENT)

    def decay(self, group: Group) -> float:
        return decoupled_decay(group)


def _ranks(items: Sequence[ParamStep]) -> Tensor:
    return conditioning.ranks([item.parameter.shape for item in items])


def _layers(net: Any, bank: Tensor, count: int) -> tuple[Tensor, list[Layer]]:
    """Memory for the generated weights of ``count`` tensors, and the layers in it."""
    written = bank.new_empty(count, bank.shape[1])
    return written, net.split_written(written)
