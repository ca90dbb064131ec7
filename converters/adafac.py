"""AdafacMLP (small_fc_lopt) and μLO (SPEC §3): ELO's tree and learned decay offsets."""

from __future__ import annotations

from dataclasses import replace

from pylo_zoo.config import AdafacBehavior, MLPArchitecture, MuLOBehavior
from pylo_zoo.converters import elo
from pylo_zoo.converters.base import IDENTITY, Family, Naming, Rename, Table

DECAYS: Table = tuple(
    Rename(((name,),), name, IDENTITY) for name in ("momentum_decays", "rms_decays", "adafactor_decays")
)


OFFSETS = frozenset(path for row in DECAYS for path in row.leaves)


def table(architecture: MLPArchitecture) -> Table:
    return (*elo.table(architecture), *DECAYS)


ADAFAC_MLP = Family(
    name="adafac-mlp",
    title="AdafacMLP (small_fc_lopt)",
    paper="2203.11860",
    optimizer="pylo_zoo.optim:AdafacLO",
    architecture=MLPArchitecture,
    behavior=AdafacBehavior,
    released=MLPArchitecture(hidden_size=32, hidden_layers=2),
    net="pylo_zoo.nets:AdafacNet",
    table=table,
    infer=elo.infer,
    defaults={"lr": 1.0, "weight_decay": 0.0, "clip_norm": None},
    reference="pylo_zoo.reference.adafac:ADAFAC_MLP",
    parity_hyper={"lr": 1.0},
    advice=("It reads neither the loss nor the length of the run, so it cannot anneal by itself.",),
)


def pylo_table(architecture: MLPArchitecture) -> Table:
    """PyLO's files have only the network. The decay offsets are constants in PyLO's code (SPEC §3)."""
    return (*elo.pylo_table(architecture), *DECAYS)


MULO = replace(
    ADAFAC_MLP,
    name="mulo",
    title="μLO",
    paper="2406.00153",
    optimizer="pylo_zoo.optim:MuLO",
    behavior=MuLOBehavior,
    reference="pylo_zoo.reference.adafac:MULO",
    advice=(
        "It divides the steps of matrices by their width multiplier, which comes from `mup`'s shapes or from a group's "
        "`width_mult`. Without either, it assumes the base width.",
    ),
    pylo=Naming(pylo_table, elo.pylo_infer, optional=OFFSETS),
)
