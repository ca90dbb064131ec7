"""Parity: does the torch side compute what the JAX original computes?

Every leaf of the source is accounted for bit for bit; the meta-network's forward pass is compared on random inputs;
the optimizer's every intermediate quantity over single steps from synchronised states; and its parameters over whole
runs: in float64 and float32, and in both layouts. Faults planted on purpose have to be caught. The JAX side reads the
original file itself, where it is flax's through flax, and never a weight of the artifact. ``docs/parity.md`` says more.
"""

from __future__ import annotations

from pylo_zoo.parity.jax_mode import jax_is_missing
from pylo_zoo.parity.proof import verify, without_jax
from pylo_zoo.parity.report import Report
from pylo_zoo.parity.vectors import replay

__all__ = ["Report", "jax_is_missing", "replay", "verify", "without_jax"]
