"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

from pylo_zoo.errors import MAX_WARNING, one_line

INTERNAL = ("pylo_zoo", "torch")
"""Packages whose frames are skipped when a warning looks for the user's line."""


def warn(message: str) -> None:
    """Issue ``message`` as one printable line, attributed to the nearest caller outside pylo_zoo and torch."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(one_line(message, MAX_WARNING), stacklevel=level)


__all__ = ["warn"]
