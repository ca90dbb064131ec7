"""ELO-CELO2 (arXiv 2506.10315; SPEC §6): CELO2's rule with other defaults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pylo_zoo.artifact import Artifact
from pylo_zoo.ops.precision import NsDtype
from pylo_zoo.optim.celo2 import CELO2
from pylo_zoo.optim.options import SharedOptions, Unpack


class ELO_CELO2(CELO2):
    """ELO-CELO2: :class:`~pylo_zoo.optim.celo2.CELO2` with weights of family elo-celo2.

    The defaults differ (``weight_decay`` 0.1, ``clip_norm`` 1, ``adam_lr_mult`` 1), and ``grad_clip_val`` clips AdamW's
    gradients as well. Arguments, state and errors are CELO2's.
    """

    families = ("elo-celo2",)
    clip_adam_gradients = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        adam_lr_mult: float = 1.0,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        clip_norm: float | None = 1.0,
        weights: str | Artifact = "elo-celo2",
        adam_weight_decay: float | None = None,
        grad_clip_val: float = 1000.0,
        ns_dtype: NsDtype = None,
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            adam_lr_mult,
            adam_betas,
            adam_eps,
            clip_norm,
            weights,
            adam_weight_decay,
            grad_clip_val,
            ns_dtype,
            **options,
        )
