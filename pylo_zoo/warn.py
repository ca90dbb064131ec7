"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

OWN = ("pylo_zoo", "torch")


def warn(message: str) -> None:
    """Warn, in the name of the nearest caller outside this package and torch."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


__all__ = ["warn"]
