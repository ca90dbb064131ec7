"""VeLO (SPEC §4): an LSTM a tensor, a bank of MLPs, and Google's gin configuration."""

from __future__ import annotations

from pylo_zoo.config import (
    ADAFACTOR_DECAYS,
    MOMENTUM_DECAYS,
    RMS_DECAYS,
    HyperNetArchitecture,
    VeLOBehavior,
)
from pylo_zoo.converters.base import Family, GinClass, Leaves, Table, axis, record
from pylo_zoo.converters.tables import CONTROLLER, CONTROLS, FF_STACK, GROUPS, HIDDEN, hidden_layers, mlp

FEATURE_SWITCHES = (
    "with_g",
    "with_m",
    "with_m_feat",
    "with_rms",
    "with_rms_feat",
    "with_rms_norm_g",
    "with_rsqrt_rms",
    "with_p",
    "with_fac_norm_g",
    "with_fac_rms",
    "with_fac_rsqrt",
    "with_grad_clip_feat",
    "with_fac_mom_mult",
    "with_rms_only_norm_g",
    "adafactor_accumulator",
    "param_scale_mult",
    "mix_layers",
)
"""Parts of the update that SPEC §4 always has."""

PROBES = (
    "precondition_output",
    "constant_loss",
    "with_validation_feature_dim",
    "validation_mode",
)
"""Changes of the update that SPEC §4 never has."""

HYPER_V2 = GinClass(
    name="HyperV2",
    defaults={
        "lstm_hidden_size": 128,
        "param_inits": 64,
        "ff_hidden_size": 4,
        "ff_hidden_layers": 2,
        "initial_momentum_decays": MOMENTUM_DECAYS,
        "initial_rms_decays": RMS_DECAYS,
        "initial_adafactor_decays": ADAFACTOR_DECAYS,
        "exp_mult": 0.001,
        "step_mult": 0.001,
        "use_bugged_next_lstm_state": False,
        "use_bugged_loss_features": True,
    },
    optional=frozenset({"ff_mult"}),
    fixed={
        **dict.fromkeys(FEATURE_SWITCHES, True),
        **dict.fromkeys(PROBES, False),
        "clip_param_scale_amount": None,
        "rnn_state_decay": 0.0,
    },
    ignored=frozenset({"reparam_decay", "summarize_each_layer", "summarize_all_control"}),
)
"""The arguments of Google's class. Its ``ff_mult`` is no argument but a constant, 100, as is the record's default."""


def table(architecture: HyperNetArchitecture) -> Table:
    """The renames of VeLO and Celo; the MLP's leaves lead with the bank's axis."""
    return (*CONTROLLER, *CONTROLS, *mlp(FF_STACK, architecture.ff_hidden_layers, GROUPS))


def infer(leaves: Leaves) -> HyperNetArchitecture:
    return record(
        HyperNetArchitecture,
        lstm_hidden_size=axis(leaves, HIDDEN, -1),
        param_inits=axis(leaves, ("rnn_params", "rnn_to_controls", "b"), 0),
        ff_hidden_size=axis(leaves, (*FF_STACK, "b0"), -1),
        ff_hidden_layers=hidden_layers(leaves, FF_STACK),
    )


VELO = Family(
    name="velo",
    title="VeLO",
    paper="2211.09760",
    optimizer="pylo_zoo.optim:VeLO",
    architecture=HyperNetArchitecture,
    behavior=VeLOBehavior,
    released=HyperNetArchitecture(lstm_hidden_size=512, param_inits=256, ff_hidden_size=4, ff_hidden_layers=2),
    net="pylo_zoo.nets:VeLONet",
    table=table,
    infer=infer,
    defaults={"lr": 1.0, "weight_decay": 0.0},
    gin=HYPER_V2,
    containers={"flax-checkpoint": {"use_bugged_next_lstm_state": True}},
    assumed={"flax-checkpoint": {"use_bugged_loss_features": True}},  # Google's loader leaves its class's default
)
