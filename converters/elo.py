"""ELO (SPEC §3): the ``nn`` subtree. The subtrees that meta-training adds are not part of the optimizer."""

from __future__ import annotations

from pylo_zoo.config import ELOBehavior, MLPArchitecture
from pylo_zoo.converters.base import Family, Leaves, Naming, Table, axis_size, make_record
from pylo_zoo.converters.tables import NN, count_numbered, hidden_layers, mlp, unchanged


def table(architecture: MLPArchitecture) -> Table:
    return mlp(NN, architecture.hidden_layers)


def infer(leaves: Leaves) -> MLPArchitecture:
    return make_record(
        MLPArchitecture,
        hidden_size=axis_size(leaves, (*NN, "b0"), -1),
        hidden_layers=hidden_layers(leaves, NN),
    )


def pylo_table(architecture: MLPArchitecture) -> Table:
    """PyLO's ``hidden_layers`` counts the layers between ``input`` and ``output``: one less than here."""
    last = architecture.hidden_layers
    layers = {0: "input", last: "output"} | {i: f"linear_{i - 1}" for i in range(1, last)}
    return unchanged(
        {
            f"network.{name}.{kind}": f"mlp.layers.{i}.{kind}"
            for i, name in layers.items()
            for kind in ("weight", "bias")
        }
    )


def pylo_infer(leaves: Leaves) -> MLPArchitecture:
    return make_record(
        MLPArchitecture,
        hidden_size=axis_size(leaves, ("network.input.bias",), 0),
        hidden_layers=1 + count_numbered(leaves, r"network\.linear_(\d{1,4})\.(?:weight|bias)"),
    )


ELO = Family(
    name="elo",
    title="ELO",
    paper="2506.10315",
    optimizer="pylo_zoo.optim:ELO",
    architecture=MLPArchitecture,
    behavior=ELOBehavior,
    released=MLPArchitecture(hidden_size=32, hidden_layers=2),
    net="pylo_zoo.nets:ELONet",
    table=table,
    infer=infer,
    defaults={"lr": 1e-3, "weight_decay": 0.0, "clip_norm": None},
    reference="pylo_zoo.reference.adafac:ELO",
    parity_hyper={"lr": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0},
    advice=("Tune the learning rate, and use a schedule.",),
    pylo=Naming(pylo_table, pylo_infer),
)
