"""PyLO's ``*_CUDA`` classes: the naive classes' rules on any device, with the arguments of PyLO's CUDA classes.

Where PyLO's kernels differ from its naive classes, these follow the naive ones. For example, PyLO's VeLO kernel
multiplies the weight decay by the learned step size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.compat import arguments
from pylo_zoo.compat.arguments import apply_arguments, defaults_of
from pylo_zoo.compat.mulo import MuLO_naive, check_impl
from pylo_zoo.compat.naive import (
    MULO_ADAFACTOR,
    MULO_MOMENTUM,
    MULO_RMS,
    AdafacLO_naive,
    CELO2_naive,
    ELO_CELO2_naive,
    ELO_naive,
    Floats,
    Rate,
    VeLO_naive,
    load_mulo,
)
from pylo_zoo.compat.weights import OFFSETS, Key, load_meta_training
from pylo_zoo.warn import warn


class VeLO_CUDA(VeLO_naive):
    """:class:`VeLO_naive`. ``legacy``, which selects one of PyLO's two implementations, has no effect and warns."""

    def __init__(
        self,
        params: Any,
        momentum_decays: Floats = (0.0, 0.0, 0.0),
        rms_decays: Floats = (0.0,),
        adafactor_decays: Floats = (0.0, 0.0, 0.0),
        lr: Rate = 1e-3,
        exp_mult: float = 0.001,
        step_mult: float = 0.001,
        input_size: int = 30,
        hidden_size: int = 4,
        hidden_layers: int = 1,
        initial_momentum_decays: Floats = (0.9, 0.99, 0.999),
        lstm_input_size: int = 30,
        lstm_hidden_size: int = 512,
        param_inits: int = 256,
        num_steps: int = 10000,
        initial_rms_decays: Floats = (0.999,),
        initial_adafactor_decays: Floats = (0.9, 0.99, 0.999),
        concat_weights: bool = True,
        make_separate_weights: bool = False,
        split_weights: bool = False,
        weight_decay: float = 0.0,
        clip_grad: bool = False,
        mup_lrs: Any = None,
        hf_key_rnn: Key = "Pauljanson002/VeLO_RNN",
        hf_key_mlp: Key = "Pauljanson002/VeLO_MLP",
        legacy: bool = False,
    ) -> None:
        values = dict(locals())
        if legacy:
            warn("legacy=True is ignored: pylo-zoo has one implementation.")
        super().__init__(params, **{name: values[name] for name in defaults_of(VeLO_naive.__init__)})


class CELO2_CUDA(CELO2_naive):
    """:class:`CELO2_naive`; PyLO's CUDA class has the same arguments."""


class ELO_CUDA(ELO_naive):
    """:class:`ELO_naive`; PyLO's CUDA class has the same arguments."""


class ELO_CELO2_CUDA(ELO_CELO2_naive):
    """:class:`ELO_CELO2_naive` with ``adam_lr_mult=20``, the one default that differs in PyLO's CUDA class."""

    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-3,
        weight_decay: float = 0.1,
        clip_grad: bool = True,
        clip_norm: float = 1.0,
        adam_lr_mult: float = 20.0,
        adam_weight_decay: float | None = None,
        use_adamw_for_1d: bool = True,
        orthogonalize: bool = True,
        ff_hidden_size: int = 8,
        ff_hidden_layers: int = 2,
        initial_momentum_decays: Floats = (0.9, 0.99, 0.999),
        initial_rms_decays: Floats = (0.95,),
        initial_adafactor_decays: Floats = (0.9, 0.99, 0.999),
        exp_mult: float = 0.0,
        rmsmult: float = 1.0,
        param_scale_mult: bool = False,
        ns_coeffs: Floats = (3.4445, -4.7750, 2.0315),
        ns_iters: int = 5,
        ns_eps: float = 1e-8,
        grad_clip_val: float = 1000.0,
        hf_key: Key = "DiamondXL/elo-celo2",
        checkpoint_path: str | Path | None = None,
        network: nn.Module | Artifact | None = None,
    ) -> None:
        values = dict(locals())
        super().__init__(params, **{name: values[name] for name in defaults_of(ELO_CELO2_naive.__init__)})


class AdafacLO_CUDA(AdafacLO_naive):
    """:class:`AdafacLO_naive` with the arguments of PyLO's CUDA class.

    Args:
        params, lr, weight_decay, max_grad_norm, hf_key: as for AdafacLO_naive.
        load_from_file: a file of PyLO's meta-training, ``{"state_dict": …, "decays": …}``. It overrides ``hf_key`` and
            the ``*_decays``.
        others: see :data:`pylo_zoo.compat.arguments.ADAFAC_CUDA`.

    Raises:
        ZooError: as for AdafacLO_naive.
    """

    def __init__(
        self,
        params: Any,
        lr: Rate = 1.0,
        min_dim_size_to_factor: int = 32,
        decay_rate: float = 0.8,
        decay_offset: int = 0,
        beta2_cap: float = 0.999,
        initial_momentum_decays: Floats = (0.9, 0.99, 0.999),
        initial_rms_decays: Floats = (0.999,),
        initial_adafactor_decays: Floats = (0.9, 0.99, 0.999),
        momentum_decays: Floats = MULO_MOMENTUM,
        rms_decays: Floats = MULO_RMS,
        adafactor_decays: Floats = MULO_ADAFACTOR,
        momentum_dtype: str | torch.dtype = torch.float32,
        eps: float | None = None,
        weight_decay: float = 0.0,
        clipping_threshold: float | None = None,
        max_grad_norm: float | None = None,
        unscaled_wd: bool = False,
        step_mult: float = 0.01,
        exp_mult: float = 0.001,
        load_from_file: str | Path | None = None,
        *,
        foreach: bool | None = False,
        hf_key: Key = "btherien/mulo",
    ) -> None:
        artifact = cuda_artifact(dict(locals()), AdafacLO_CUDA)
        super().__init__(params, lr=lr, max_grad_norm=max_grad_norm, weight_decay=weight_decay, hf_key=artifact)


class MuLO_CUDA(MuLO_naive):
    """:class:`MuLO_naive` with the arguments of :class:`AdafacLO_CUDA`, as keywords.

    Raises:
        ZooError: as for MuLO_naive.
    """

    def __init__(
        self,
        params: Any,
        impl: Any = AdafacLO_CUDA,
        *,
        lr: Rate = 1.0,
        min_dim_size_to_factor: int = 32,
        decay_rate: float = 0.8,
        decay_offset: int = 0,
        beta2_cap: float = 0.999,
        initial_momentum_decays: Floats = (0.9, 0.99, 0.999),
        initial_rms_decays: Floats = (0.999,),
        initial_adafactor_decays: Floats = (0.9, 0.99, 0.999),
        momentum_decays: Floats = MULO_MOMENTUM,
        rms_decays: Floats = MULO_RMS,
        adafactor_decays: Floats = MULO_ADAFACTOR,
        momentum_dtype: str | torch.dtype = torch.float32,
        eps: float | None = None,
        weight_decay: float = 0.0,
        clipping_threshold: float | None = None,
        max_grad_norm: float | None = None,
        unscaled_wd: bool = False,
        step_mult: float = 0.01,
        exp_mult: float = 0.001,
        load_from_file: str | Path | None = None,
        foreach: bool | None = False,
        hf_key: Key = "btherien/mulo",
    ) -> None:
        values = dict(locals())
        check_impl(impl)
        artifact = cuda_artifact(values, MuLO_CUDA)
        super().__init__(params, lr=lr, max_grad_norm=max_grad_norm, weight_decay=weight_decay, hf_key=artifact)


def cuda_artifact(values: dict[str, Any], owner: type[Any]) -> Artifact:
    """The artifact for constructor arguments of AdafacLO_CUDA or MuLO_CUDA."""
    if values["load_from_file"] is None:
        artifact = load_mulo(values["hf_key"])
    else:
        artifact = load_meta_training(values["load_from_file"])
        defaults = defaults_of(owner.__init__)
        values = {**values, **{name: defaults[name] for name in OFFSETS}}
    return apply_arguments(artifact, arguments.ADAFAC_CUDA, values, owner.__init__)
