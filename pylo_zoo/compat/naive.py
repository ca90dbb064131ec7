"""PyLO's ``*_naive`` optimizers except MuLO_naive: PyLO's argument names, order and defaults with our update rules.

The signatures come from github.com/Belilovsky-Lab/pylo (docs/migrating-from-pylo.md names the commits).
:mod:`pylo_zoo.compat.arguments` defines how each argument applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.compat import arguments
from pylo_zoo.compat.arguments import apply_arguments
from pylo_zoo.compat.base import DecayAfterUpdate, PerParameterClipping, PyLOOptimizer
from pylo_zoo.compat.weights import Key, load_network, load_velo
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, ELO, ELO_CELO2, AdafacLO, VeLO
from pylo_zoo.optim.base import Group
from pylo_zoo.optim.checks import check_max_norm

Floats = Sequence[float] | Tensor
Rate = float | Tensor

MULO_MOMENTUM = (0.15216392, 0.14245212, 0.06812963)
MULO_RMS = (0.01079706,)
MULO_ADAFACTOR = (0.18621896, -0.10864615, -0.06185547)
"""Learned offsets of the published μLO's decays, which its file does not contain (SPEC §3)."""


class VeLO_naive(PyLOOptimizer, DecayAfterUpdate, VeLO):
    """:class:`pylo_zoo.optim.VeLO` with PyLO's arguments: lr 1e-3, 10,000 steps, decay of the updated parameter.

    Args:
        params, lr, num_steps, weight_decay: as for VeLO.
        hf_key_rnn, hf_key_mlp: repositories, files or directories of the LSTM and the MLPs; or, the same value in both,
            a registry name, an artifact or its directory.
        others: see :data:`pylo_zoo.compat.arguments.VELO`.

    Raises:
        ZooError: as for VeLO, or an argument is unsupported.
    """

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
    ) -> None:
        values = dict(locals())
        artifact = apply_arguments(load_velo(hf_key_rnn, hf_key_mlp), arguments.VELO, values, VeLO_naive.__init__)
        super().__init__(params, num_steps, lr, weight_decay, artifact)


class CELO2_naive(PyLOOptimizer, CELO2):
    """:class:`pylo_zoo.optim.CELO2` with PyLO's arguments: ``adam_lr_mult`` 1.

    Args:
        params: a group may set ``is_embedding=True``, which selects AdamW, and ``use_adamw_for_1d``.
        lr, weight_decay, adam_lr_mult, adam_betas, adam_eps: as for CELO2.
        adam_weight_decay: None uses this constructor's ``weight_decay``, even in groups with another one.
        use_adamw_for_1d: False uses the learned rule for all parameters, including embeddings.
        clip_grad, clip_norm: True clips the global norm to ``clip_norm``.
        grad_clip_val: maximum absolute value of a gradient's elements, under AdamW as well.
        hf_key, checkpoint_path, network: see :func:`pylo_zoo.compat.weights.load_network`.
        others: see :data:`pylo_zoo.compat.arguments.CELO2`.

    Raises:
        ZooError: as for CELO2, or an argument is unsupported.
    """

    clip_adam_gradients = True
    pickled_attributes = ("use_adamw_for_1d",)

    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-3,
        weight_decay: float = 0.0,
        adam_lr_mult: float = 1.0,
        adam_weight_decay: float | None = None,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        use_adamw_for_1d: bool = True,
        orthogonalize: bool = True,
        clip_grad: bool = False,
        clip_norm: float = 1.0,
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
        hf_key: Key = "DiamondXL/celo2",
        checkpoint_path: str | Path | None = None,
        network: nn.Module | Artifact | None = None,
    ) -> None:
        values = dict(locals())
        artifact = load_network("celo2", hf_key, checkpoint_path, network)
        artifact = apply_arguments(artifact, arguments.CELO2, values, CELO2_naive.__init__)
        self.use_adamw_for_1d = use_adamw_for_1d
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            adam_lr_mult=adam_lr_mult,
            adam_betas=adam_betas,
            adam_eps=adam_eps,
            clip_norm=clip_norm if clip_grad else None,
            weights=artifact,
            adam_weight_decay=weight_decay if adam_weight_decay is None else adam_weight_decay,
            grad_clip_val=grad_clip_val,
        )

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(with_rule(param_group, self.use_adamw_for_1d))


class ELO_CELO2_naive(PyLOOptimizer, ELO_CELO2):
    """:class:`pylo_zoo.optim.ELO_CELO2` with PyLO's arguments: those of :class:`CELO2_naive` except AdamW's betas, eps.

    In the original, AdamW shares the learned rule's first momentum and second moment, so its betas are
    ``initial_momentum_decays[0]`` and ``initial_rms_decays[-1]``.

    Raises:
        ZooError: as for ELO_CELO2, or an argument is unsupported.
    """

    pickled_attributes = ("use_adamw_for_1d",)

    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-3,
        weight_decay: float = 0.1,
        clip_grad: bool = True,
        clip_norm: float = 1.0,
        adam_lr_mult: float = 1.0,
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
        artifact = load_network("elo-celo2", hf_key, checkpoint_path, network)
        artifact = apply_arguments(artifact, arguments.CELO2, values, ELO_CELO2_naive.__init__)
        self.use_adamw_for_1d = use_adamw_for_1d
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            adam_lr_mult=adam_lr_mult,
            adam_betas=(artifact.behavior.initial_momentum_decays[0], artifact.behavior.initial_rms_decays[-1]),
            clip_norm=clip_norm if clip_grad else None,
            weights=artifact,
            adam_weight_decay=weight_decay if adam_weight_decay is None else adam_weight_decay,
            grad_clip_val=grad_clip_val,
        )

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(with_rule(param_group, self.use_adamw_for_1d))


class ELO_naive(PyLOOptimizer, ELO):
    """:class:`pylo_zoo.optim.ELO` with PyLO's arguments.

    Args:
        params, lr, weight_decay: as for ELO.
        clip_grad, clip_norm: True clips the global norm to ``clip_norm``.
        hf_key, checkpoint_path, network: see :func:`pylo_zoo.compat.weights.load_network`.
        others: see :data:`pylo_zoo.compat.arguments.ELO`.

    Raises:
        ZooError: as for ELO, or an argument is unsupported.
    """

    def __init__(
        self,
        params: Any,
        lr: Rate = 0.001,
        exp_mult: float = 0.001,
        weight_decay: float = 0.0,
        hidden_size: int = 32,
        hidden_layers: int = 1,
        initial_momentum_decays: Floats = (0.9, 0.99, 0.999),
        initial_rms_decays: Floats = (0.999,),
        initial_adafactor_decays: Floats = (0.9, 0.99, 0.999),
        clip_grad: bool = False,
        clip_norm: float = 1.0,
        hf_key: Key = "DiamondXL/elo",
        checkpoint_path: str | Path | None = None,
        network: nn.Module | Artifact | None = None,
    ) -> None:
        values = dict(locals())
        artifact = apply_arguments(
            load_network("elo", hf_key, checkpoint_path, network), arguments.ELO, values, ELO_naive.__init__
        )
        super().__init__(params, lr, weight_decay, clip_norm if clip_grad else None, artifact)


class AdafacLO_naive(PyLOOptimizer, DecayAfterUpdate, PerParameterClipping, AdafacLO):
    """:class:`pylo_zoo.optim.AdafacLO` with PyLO's arguments and decay of the updated parameter.

    Args:
        params, lr, weight_decay: as for AdafacLO.
        max_grad_norm: maximum norm of each parameter's gradient; ``p.grad`` is not modified.
        hf_key: see :func:`pylo_zoo.compat.weights.load_network`.
        others: see :data:`pylo_zoo.compat.arguments.ADAFAC`. The ``*_decays`` are learned offsets; the defaults are the
            published μLO's.

    Raises:
        ZooError: as for AdafacLO, or an argument is unsupported.
    """

    pickled_attributes = ("max_grad_norm",)

    def __init__(
        self,
        params: Any,
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
        artifact = apply_arguments(load_mulo(hf_key), arguments.ADAFAC, values, AdafacLO_naive.__init__)
        self.max_grad_norm = check_max_norm("max_grad_norm", max_grad_norm)
        super().__init__(params, lr, weight_decay, weights=artifact)


def load_mulo(hf_key: Key) -> Artifact:
    """The artifact of ``hf_key``. PyLO's files contain no decay offsets, so they get the published μLO's."""
    offsets = {"momentum_decays": MULO_MOMENTUM, "rms_decays": MULO_RMS, "adafactor_decays": MULO_ADAFACTOR}
    return load_network("mulo", hf_key, settings={name: list(value) for name, value in offsets.items()})


def with_rule(param_group: Group, use_adamw_for_1d: bool) -> Group:
    """The group with ``rule`` set from PyLO's ``is_embedding`` and ``use_adamw_for_1d`` (SPEC §6)."""
    group = dict(param_group)
    adamw = group.pop("use_adamw_for_1d", use_adamw_for_1d)
    rule = ("adamw" if group.get("is_embedding") else None) if adamw else "learned"
    if rule is not None and group.setdefault("rule", rule) not in (None, rule):
        raise ZooError(
            f"A parameter group has rule={group['rule']!r}, but is_embedding and use_adamw_for_1d select {rule!r}.",
            "Set either rule or PyLO's two options.",
        )
    return group if rule is None else {**group, "rule": rule}
