"""``torch.optim`` optimizers: learned update rules, one file per family, and Muon."""

from pylo_zoo import converters
from pylo_zoo.optim.adafac import AdafacLO
from pylo_zoo.optim.base import LearnedOptimizer
from pylo_zoo.optim.celo import Celo
from pylo_zoo.optim.celo2 import CELO2
from pylo_zoo.optim.celo_adam import CeloAdam
from pylo_zoo.optim.elo import ELO
from pylo_zoo.optim.elo_celo2 import ELO_CELO2
from pylo_zoo.optim.factory import create_optimizer
from pylo_zoo.optim.groups import param_groups, routes
from pylo_zoo.optim.mulo import MuLO
from pylo_zoo.optim.muon import Muon, muon, muon_route
from pylo_zoo.optim.route_table import Route, Routes
from pylo_zoo.optim.velo import VeLO

__all__ = [
    "CELO2",
    "ELO",
    "ELO_CELO2",
    "AdafacLO",
    "Celo",
    "CeloAdam",
    "LearnedOptimizer",
    "MuLO",
    "Muon",
    "Route",
    "Routes",
    "VeLO",
    "create_optimizer",
    "muon",
    "muon_route",
    "optimizer_class",
    "param_groups",
    "routes",
]


def optimizer_class(family: str) -> type[LearnedOptimizer]:
    """The optimizer class for checkpoints of ``family``.

    Raises:
        ZooError: the family is unknown.
    """
    converter = converters.get(family)
    return converter.load(converter.optimizer)
