"""ELO (SPEC §3): the ``nn`` subtree alone; what meta-training adds to it is not part of the optimizer."""

from __future__ import annotations

from pylo_zoo.config import ELOBehavior, MLPArchitecture
from pylo_zoo.converters.base import Family, Leaves, Table, axis, record
from pylo_zoo.converters.tables import NN, hidden_layers, mlp


def table(architecture: MLPArchitecture) -> Table:
    return mlp(NN, architecture.hidden_layers)


def infer(leaves: Leaves) -> MLPArchitecture:
    return record(
        MLPArchitecture,
        hidden_size=axis(leaves, (*NN, "b0"), -1),
        hidden_layers=hidden_layers(leaves, NN),
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
)
