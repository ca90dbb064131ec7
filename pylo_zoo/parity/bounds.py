"""How far a right port may be off: derived from the rounding that the original itself shows."""

from __future__ import annotations

import numpy as np

FACTOR = 64
"""How many times the original's own float32 error. Two right programs round in another order, and an error measured on
the one element of a scalar can be small by luck: the largest ratio seen in a right port is 14."""
FLOOR = 64
"""Roundings (machine epsilons) of a quantity's largest value that are allowed in any case."""
MAX_ERROR = 1e-10
"""No float64 step may be off by more, in units of the update, whatever the rounding."""

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}


def allowed(noise: np.ndarray, dtype: str, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """The bound on an error.

    Args:
        noise: error of the original in float32 against itself in float64; the same in float64 is taken to be smaller by
            the ratio of the two machine epsilons. Where it is infinite, float64 is held to ``MAX_ERROR``.
        dtype: of the sides compared.
        scale: largest value of the quantity, in the units of the error.
    """
    found = FACTOR * noise * (EPS[dtype] / EPS["float32"]) + FLOOR * EPS[dtype] * scale
    return np.where(np.isinf(found), MAX_ERROR, found) if dtype == "float64" else found


def ulps(error: float, value: float, dtype: str) -> float:
    """``error`` in units of the last place of ``value``."""
    with np.errstate(all="ignore"):
        return float(error / np.spacing(np.dtype(dtype).type(abs(value))))
