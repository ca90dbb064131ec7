"""PyLO's optimizers by name: ``from pylo_zoo.compat.pylo import VeLO`` instead of ``from pylo.optim import VeLO``.

Arguments, their order and their defaults are PyLO's (arXiv 2506.10315, github.com/Belilovsky-Lab/pylo). Each one maps
to an argument of this package or raises an error with a reason; docs/migrating-from-pylo.md lists them. The training
recipe is PyLO's: VeLO's lr of 1e-3, ``adam_lr_mult`` 1 in CELO2, weight decay of the updated parameter in VeLO,
AdafacLO and MuLO, an lr divided by width in MuLO, and per-parameter gradient clipping by ``max_grad_norm``.

The update rules are this package's, so trajectories differ where PyLO deviates from the originals. PyLO reads torch's
``(out, in)`` as JAX's ``(in, out)`` and has three rules for ties, which changes the updates of square matrices and
convolutions by 29 to 180 %. These deviations are not reproduced, and PyLO's state dicts cannot be loaded.

Each class is a subclass of one in :mod:`pylo_zoo.optim`: ``isinstance(VeLO_naive(…), pylo_zoo.optim.VeLO)``. The names
without a suffix are the naive classes, as in PyLO without its CUDA extensions.
"""

from pylo_zoo.compat.cuda import CELO2_CUDA, ELO_CELO2_CUDA, ELO_CUDA, AdafacLO_CUDA, MuLO_CUDA, VeLO_CUDA
from pylo_zoo.compat.mulo import MuLO_naive
from pylo_zoo.compat.naive import AdafacLO_naive, CELO2_naive, ELO_CELO2_naive, ELO_naive, VeLO_naive

VeLO = VeLO_naive
CELO2 = CELO2_naive
ELO = ELO_naive
ELO_CELO2 = ELO_CELO2_naive
AdafacLO = AdafacLO_naive
MuLO = MuLO_naive

__all__ = [
    "CELO2",
    "CELO2_CUDA",
    "ELO",
    "ELO_CELO2",
    "ELO_CELO2_CUDA",
    "ELO_CUDA",
    "AdafacLO",
    "AdafacLO_CUDA",
    "AdafacLO_naive",
    "CELO2_naive",
    "ELO_CELO2_naive",
    "ELO_naive",
    "MuLO",
    "MuLO_CUDA",
    "MuLO_naive",
    "VeLO",
    "VeLO_CUDA",
    "VeLO_naive",
]
