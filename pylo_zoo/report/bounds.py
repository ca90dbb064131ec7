"""Error bounds for a correct port, derived from the measured rounding error of the original."""

from __future__ import annotations

import numpy as np

FACTOR = 64
"""Allowed multiple of the original's float32 error. Two correct programs may round in a different order, and the error
measured on a scalar can be small by chance. The largest ratio seen in a correct port is 14."""
FLOOR = 64
"""Number of roundings (machine epsilons) of a quantity's largest value that are always allowed."""
MAX_ERROR = 1e-10
"""Maximum error of a float64 step, relative to the update."""

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}


def allowed(noise: np.ndarray, dtype: str, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """The bound on an error.

    Args:
        noise: difference between the original's float32 and float64 results. The float64 noise is this times the ratio
            of the machine epsilons. If it is infinite, the float64 bound is ``MAX_ERROR``.
        dtype: dtype of the compared sides.
        scale: largest value of the quantity, in the units of the error.
    """
    bound = FACTOR * noise * (EPS[dtype] / EPS["float32"]) + FLOOR * EPS[dtype] * scale
    return np.where(np.isinf(bound), MAX_ERROR, bound) if dtype == "float64" else bound


def ulps(error: float, value: float, dtype: str) -> float:
    """``error`` in units in the last place of ``value``."""
    with np.errstate(all="ignore"):
        return float(error / np.spacing(np.dtype(dtype).type(abs(value))))
