"""Parity: tests whether an artifact computes in torch what its original computes in JAX.

A proof compares the leaves bit for bit, the network's forward pass on random inputs, every intermediate quantity of
single steps from synchronized states, and the parameters over whole runs, in float64 and float32 and in both layouts.
It must also catch planted faults. The JAX side reads the original file and never uses the artifact's weights. See
``docs/parity.md``.
"""

from __future__ import annotations

from pylo_zoo.parity.jax_mode import jax_is_missing
from pylo_zoo.parity.proof import verify, without_jax
from pylo_zoo.parity.vectors import replay
from pylo_zoo.report.records import Report

__all__ = ["Report", "jax_is_missing", "replay", "verify", "without_jax"]
