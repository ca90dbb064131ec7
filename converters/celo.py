"""Celo and celo-adam (SPEC §5). Celo has VeLO's tree with fewer inputs; celo-adam has only the controller."""

from __future__ import annotations

from pylo_zoo.config import CeloAdamBehavior, CeloBehavior, ControllerArchitecture, HyperNetArchitecture
from pylo_zoo.converters import velo
from pylo_zoo.converters.base import Family, Leaves, axis_size, make_record
from pylo_zoo.converters.tables import CONTROLLED_HYPER, CONTROLLER, HIDDEN

PAPER = "2501.12670"
DEFAULTS = {"lr": 1.0, "weight_decay": 0.0}


def infer_controller(leaves: Leaves) -> ControllerArchitecture:
    return make_record(ControllerArchitecture, lstm_hidden_size=axis_size(leaves, HIDDEN, -1))


CELO = Family(
    name="celo",
    title="Celo",
    paper=PAPER,
    optimizer="pylo_zoo.optim:Celo",
    architecture=HyperNetArchitecture,
    behavior=CeloBehavior,
    released=HyperNetArchitecture(lstm_hidden_size=64, param_inits=1, ff_hidden_size=4, ff_hidden_layers=2),
    net="pylo_zoo.nets:CeloNet",
    table=velo.table,
    infer=velo.infer,
    defaults=DEFAULTS,
    reference="pylo_zoo.reference.velo:CELO",
    parity_hyper=CONTROLLED_HYPER,
)

CELO_ADAM = Family(
    name="celo-adam",
    title="Celo-Adam",
    paper=PAPER,
    optimizer="pylo_zoo.optim:CeloAdam",
    architecture=ControllerArchitecture,
    behavior=CeloAdamBehavior,
    released=ControllerArchitecture(lstm_hidden_size=64),
    net="pylo_zoo.nets:CeloAdamNet",
    table=lambda architecture: CONTROLLER,
    infer=infer_controller,
    defaults=DEFAULTS,
    reference="pylo_zoo.reference.velo:CELO_ADAM",
    parity_hyper=CONTROLLED_HYPER,
    per_element=False,
)
