"""PyLO's optimizers by its names: ``from pylo_zoo.compat.pylo import VeLO`` instead of ``from pylo.optim import VeLO``.

Arguments, their order and their defaults are PyLO's (arXiv 2506.10315, github.com/Belilovsky-Lab/pylo), each mapped to
this package's or refused with a reason; docs/migrating-from-pylo.md has them one by one. What belongs to a training
recipe is as in PyLO: VeLO's lr of 1e-3, ``adam_lr_mult`` 1 in CELO2, weight decay applied to the updated parameter in
VeLO, AdafacLO and MuLO, the lr that MuLO divides by width, gradients clipped one parameter at a time by
``max_grad_norm``.

The update rules are this package's, so trajectories differ where PyLO's deviate from the originals: it reads torch's
``(out, in)`` as JAX's ``(in, out)`` and has three rules for ties, which changes the updates of square matrices and of
convolutions by 29 to 180 %. None of that is reproduced. Nor are its state dicts: each has its own layout.

Each class is one of :mod:`pylo_zoo.optim`'s, too: ``isinstance(VeLO_naive(…), pylo_zoo.optim.VeLO)``. The names
without a suffix are the naive ones, as in PyLO without its CUDA extensions.
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
