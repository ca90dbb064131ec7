"""VeLO (SPEC §4): a per-tensor LSTM, a bank of MLPs, and Google's gin configuration."""

from __future__ import annotations

import re

from pylo_zoo.config import (
    ADAFACTOR_DECAYS,
    MOMENTUM_DECAYS,
    RMS_DECAYS,
    HyperNetArchitecture,
    VeLOBehavior,
)
from pylo_zoo.converters.base import UNUSED, Family, GinClass, Leaves, Naming, Table, axis_size, make_record
from pylo_zoo.converters.tables import (
    CONTROLLED_HYPER,
    CONTROLLER,
    CONTROLS,
    FF_STACK,
    GROUPS,
    HIDDEN,
    count_numbered,
    hidden_layers,
    mlp,
    unchanged,
)

ALWAYS_ON = (
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
"""Switches of Google's class that SPEC §4 requires to be on."""

ALWAYS_OFF = (
    "precondition_output",
    "constant_loss",
    "with_validation_feature_dim",
    "validation_mode",
)
"""Switches of Google's class that SPEC §4 requires to be off."""

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
        **dict.fromkeys(ALWAYS_ON, True),
        **dict.fromkeys(ALWAYS_OFF, False),
        "clip_param_scale_amount": None,
        "rnn_state_decay": 0.0,
    },
    ignored=frozenset({"reparam_decay", "summarize_each_layer", "summarize_all_control"}),
)
"""The arguments of Google's class. Its ``ff_mult`` is a constant, 100, which is also the record's default."""


def table(architecture: HyperNetArchitecture) -> Table:
    """The renames of VeLO and Celo. The first axis of the MLP's leaves is the bank's."""
    return (*CONTROLLER, *CONTROLS, *mlp(FF_STACK, architecture.ff_hidden_layers, GROUPS))


def infer(leaves: Leaves) -> HyperNetArchitecture:
    return make_record(
        HyperNetArchitecture,
        lstm_hidden_size=axis_size(leaves, HIDDEN, -1),
        param_inits=axis_size(leaves, ("rnn_params", "rnn_to_controls", "b"), 0),
        ff_hidden_size=axis_size(leaves, (*FF_STACK, "b0"), -1),
        ff_hidden_layers=hidden_layers(leaves, FF_STACK),
    )


PYLO_CONTROLLER = {
    "mix_layer1": f"{UNUSED}rnn_params.linear",
    "mix_layer2": "controller.pooled",
    "final_mix_layer": "controller.direct",
    "lstm.linear": "controller.lstm",
    "rnn_to_controls": "controller.controls",
    "step_size": "controller.step_size",
}
"""PyLO's names of the affine maps. Its weights are in torch's layout, so nothing is transposed."""


def pylo_table(architecture: HyperNetArchitecture) -> Table:
    """The names in PyLO's two files, VeLO_RNN and VeLO_MLP."""
    names = {"lstm_init_state.0": "controller.initial_hidden", "lstm_init_state.1": "controller.initial_cell"}
    for theirs, ours in PYLO_CONTROLLER.items():
        weight, bias = (".w", ".b") if ours.startswith(UNUSED) else (".weight", ".bias")
        names |= {f"{theirs}.weight": ours + weight, f"{theirs}.bias": ours + bias}
    last = architecture.ff_hidden_layers
    layers = {0: ("input_weights_", "input_bias_"), last: ("output_weights_", "output_bias_")}
    layers |= {i: (f"hidden_weights_.{i - 1}", f"hidden_bias_.{i - 1}") for i in range(1, last)}
    for i, (weight, bias) in layers.items():
        names |= {weight: f"mlp.layers.{i}.weight", bias: f"mlp.layers.{i}.bias"}
    return unchanged(names, like={row.tensor: row.like for row in CONTROLLER if row.like})


def pylo_infer(leaves: Leaves) -> HyperNetArchitecture:
    return make_record(
        HyperNetArchitecture,
        lstm_hidden_size=axis_size(leaves, ("lstm_init_state.0",), -1),
        param_inits=axis_size(leaves, ("rnn_to_controls.bias",), 0),
        ff_hidden_size=axis_size(leaves, ("input_bias_",), -1),
        ff_hidden_layers=1 + count_numbered(leaves, r"hidden_(?:weights|bias)_\.(\d{1,4})"),
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
    reference="pylo_zoo.reference.velo:VELO",
    parity_hyper=CONTROLLED_HYPER,
    gin=HYPER_V2,
    containers={"flax-checkpoint": {"use_bugged_next_lstm_state": True}},
    assumed={"flax-checkpoint": {"use_bugged_loss_features": True}},  # Google's loader leaves its class's default
    pylo=Naming(
        pylo_table,
        pylo_infer,
        ignored=re.compile(r"(?:input|output)_(?:weights|bias)|hidden_(?:weights|bias)\.\d{1,4}"),  # scratch
        hint="Pass a directory with both of PyLO's files, VeLO_RNN and VeLO_MLP.",
    ),
)
