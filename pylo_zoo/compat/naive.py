"""PyLO's ``*_naive`` optimizers, but for MuLO_naive: its argument names, order and defaults; our update rules.

The signatures were read from github.com/Belilovsky-Lab/pylo (docs/migrating-from-pylo.md says at which commits).
:mod:`pylo_zoo.compat.arguments` says what becomes of each argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pylo_zoo.artifact import Artifact
from pylo_zoo.compat import arguments
from pylo_zoo.compat.arguments import apply_arguments
from pylo_zoo.compat.base import DecayAfterUpdate, PerParameterClipping, PyLOOptimizer, check_norm
from pylo_zoo.compat.weights import Key, load_network, load_velo
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, ELO, ELO_CELO2, AdafacLO, VeLO
from pylo_zoo.optim.base import Group

Floats = Sequence[float] | Tensor
Rate = float | Tensor

MULO_MOMENTUM = (0.15216392, 0.14245212, 0.06812963)
MULO_RMS = (0.01079706,)
MULO_ADAFACTOR = (0.18621896, -0.10864615, -0.06185547)
"""Learned offsets of the published μLO's decays, which its file leaves out (SPEC §3)."""


class VeLO_naive(PyLOOptimizer, DecayAfterUpdate, VeLO):
    """:class:`pylo_zoo.optim.VeLO` with PyLO's arguments: lr 1e-3, 10,000 steps; decay is applied to the updated p.

    Args:
        params, lr, num_steps, weight_decay: as ours.
        hf_key_rnn, hf_key_mlp: repositories, files or directories of VeLO's halves; given the same in both, a
            registry name, an artifact or its directory.
        others: :data:`pylo_zoo.compat.arguments.VELO`.

    Raises:
        ZooError: as ours, or an argument is unsupported.
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
        given = dict(locals())
        made = apply_arguments(load_velo(hf_key_rnn, hf_key_mlp), arguments.VELO, given, VeLO_naive.__init__)
        super().__init__(params, num_steps, lr, weight_decay, made)


class CELO2_naive(PyLOOptimizer, CELO2):
    """:class:`pylo_zoo.optim.CELO2` with PyLO's arguments: ``adam_lr_mult`` 1.

    Args:
        params: a group may carry ``is_embedding=True``, which gives it to AdamW, and ``use_adamw_for_1d``.
        lr, weight_decay, adam_lr_mult, adam_betas, adam_eps: as ours.
        adam_weight_decay: None takes this constructor's ``weight_decay``, also in groups with another one.
        use_adamw_for_1d: False gives everything to the learned rule, embeddings included.
        clip_grad, clip_norm: True clips the global norm to ``clip_norm``.
        grad_clip_val: largest absolute value of a gradient's element, AdamW's included.
        hf_key, checkpoint_path, network: :func:`pylo_zoo.compat.weights.choose`.
        others: :data:`pylo_zoo.compat.arguments.CELO2`.

    Raises:
        ZooError: as ours, or an argument is unsupported.
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
        given = dict(locals())
        made = load_network("celo2", hf_key, checkpoint_path, network)
        made = apply_arguments(made, arguments.CELO2, given, CELO2_naive.__init__)
        self.use_adamw_for_1d = use_adamw_for_1d
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            adam_lr_mult=adam_lr_mult,
            adam_betas=adam_betas,
            adam_eps=adam_eps,
            clip_norm=clip_norm if clip_grad else None,
            weights=made,
            adam_weight_decay=weight_decay if adam_weight_decay is None else adam_weight_decay,
            grad_clip_val=grad_clip_val,
        )

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(with_rule(param_group, self.use_adamw_for_1d))


class ELO_CELO2_naive(PyLOOptimizer, ELO_CELO2):
    """:class:`pylo_zoo.optim.ELO_CELO2` with PyLO's arguments, those of :class:`CELO2_naive` but AdamW's betas and eps.

    AdamW reads the learned rule's first momentum and its second moment, so ``initial_momentum_decays[0]`` and
    ``initial_rms_decays[-1]`` are its betas.

    Raises:
        ZooError: as ours, or an argument is unsupported.
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
        given = dict(locals())
        made = load_network("elo-celo2", hf_key, checkpoint_path, network)
        made = apply_arguments(made, arguments.CELO2, given, ELO_CELO2_naive.__init__)
        self.use_adamw_for_1d = use_adamw_for_1d
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            adam_lr_mult=adam_lr_mult,
            adam_betas=(made.behavior.initial_momentum_decays[0], made.behavior.initial_rms_decays[-1]),
            clip_norm=clip_norm if clip_grad else None,
            weights=made,
            adam_weight_decay=weight_decay if adam_weight_decay is None else adam_weight_decay,
            grad_clip_val=grad_clip_val,
        )

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(with_rule(param_group, self.use_adamw_for_1d))


class ELO_naive(PyLOOptimizer, ELO):
    """:class:`pylo_zoo.optim.ELO` with PyLO's arguments.

    Args:
        params, lr, weight_decay: as ours.
        clip_grad, clip_norm: True clips the global norm to ``clip_norm``.
        hf_key, checkpoint_path, network: :func:`pylo_zoo.compat.weights.choose`.
        others: :data:`pylo_zoo.compat.arguments.ELO`.

    Raises:
        ZooError: as ours, or an argument is unsupported.
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
        given = dict(locals())
        made = apply_arguments(
            load_network("elo", hf_key, checkpoint_path, network), arguments.ELO, given, ELO_naive.__init__
        )
        super().__init__(params, lr, weight_decay, clip_norm if clip_grad else None, made)


class AdafacLO_naive(PyLOOptimizer, DecayAfterUpdate, PerParameterClipping, AdafacLO):
    """:class:`pylo_zoo.optim.AdafacLO` with PyLO's arguments; decay is applied to the updated parameter.

    Args:
        params, lr, weight_decay: as ours.
        max_grad_norm: largest norm of each single parameter's gradient; ``p.grad`` itself stays as it is.
        hf_key: :func:`pylo_zoo.compat.weights.choose`.
        others: :data:`pylo_zoo.compat.arguments.ADAFAC`; the ``*_decays`` are the learned offsets, with those of the
            published μLO as defaults.

    Raises:
        ZooError: as ours, or an argument is unsupported.
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
        given = dict(locals())
        made = apply_arguments(load_mulo(hf_key), arguments.ADAFAC, given, AdafacLO_naive.__init__)
        self.max_grad_norm = check_norm(max_grad_norm)
        super().__init__(params, lr, weight_decay, weights=made)


def load_mulo(hf_key: Key) -> Artifact:
    """The network of ``hf_key``; PyLO's files of it say no offsets, so they get the published μLO's."""
    offsets = {"momentum_decays": MULO_MOMENTUM, "rms_decays": MULO_RMS, "adafactor_decays": MULO_ADAFACTOR}
    return load_network("mulo", hf_key, settings={name: list(value) for name, value in offsets.items()})


def with_rule(param_group: Group, use_adamw_for_1d: bool) -> Group:
    """The group with the ``rule`` that PyLO's ``is_embedding`` and ``use_adamw_for_1d`` mean (SPEC §6)."""
    group = dict(param_group)
    adamw = group.pop("use_adamw_for_1d", use_adamw_for_1d)
    rule = ("adamw" if group.get("is_embedding") else None) if adamw else "learned"
    if rule is not None and group.setdefault("rule", rule) not in (None, rule):
        raise ZooError(
            f"A parameter group has rule={group['rule']!r}, and is_embedding and use_adamw_for_1d mean {rule!r}.",
            "Say it once: rule= is this package's word, the other two are PyLO's.",
        )
    return group if rule is None else {**group, "rule": rule}
