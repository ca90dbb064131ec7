"""Celo (arXiv 2501.12670; SPEC §5): VeLO's update with an LSTM that reads features of the run only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.optim.base import ParamStep
from pylo_zoo.optim.options import SharedOptions, Unpack
from pylo_zoo.optim.velo import VeLO


class Celo(VeLO):
    """Celo. Needs the training loss: ``opt.step(loss)``.

    Arguments, state and errors are those of :class:`~pylo_zoo.optim.velo.VeLO`; the weights are of family celo.
    """

    families = ("celo",)
    prepare_reads_state = False

    def __init__(
        self,
        params: Any,
        num_steps: int,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        weights: str | Artifact = "celo",
        decay: str = "decoupled",
        accumulate: int | str = 1,
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, num_steps, lr, weight_decay, weights, decay, accumulate, **options)

    def lstm_inputs(self, items: Sequence[ParamStep], run_features: Tensor, moments: Tensor | None) -> Tensor:
        return run_features.expand(len(items), -1)

    def lstm_ranks(self, items: Sequence[ParamStep], like: Tensor) -> None:
        """Its LSTM reads features of the run alone."""
