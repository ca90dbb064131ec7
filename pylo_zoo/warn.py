"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

from pylo_zoo.errors import one_line

LONGEST = 1_000
"""Characters of a warning, whatever it quotes."""
OWN = ("pylo_zoo", "torch")


def warn(message: str) -> None:
    """Warn in one short printable line, in the name of the nearest caller outside this package and torch."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(one_line(message, LONGEST), stacklevel=level)


__all__ = ["warn"]
