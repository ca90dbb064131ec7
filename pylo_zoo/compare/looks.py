"""How an optimizer looks in a figure: the same in every report, so that two of them can be laid side by side."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK = COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
"""Okabe and Ito's, which stay apart for colour-blind readers."""
SOLID, DASHED, DOTTED, BROKEN = STYLES = ("-", "--", ":", "-.")
MARKERS: dict[str, str] = dict(zip(COLOURS, "osD^vPX", strict=True))


class Look(NamedTuple):
    """Of a line."""

    color: str
    linestyle: str

    @property
    def marker(self) -> str:
        """A second sign of the colour, for who cannot tell colours."""
        return MARKERS[self.color]


KNOWN = {
    "adamw": Look(BLUE, SOLID),
    "muon": Look(VERMILION, SOLID),
    "velo": Look(GREEN, SOLID),
    "velo-sample": Look(GREEN, DASHED),
    "celo": Look(PINK, SOLID),
    "celo-adam": Look(PINK, DASHED),
    "celo2": Look(ORANGE, SOLID),
    "celo2-base": Look(ORANGE, DASHED),
    "elo": Look(SKY, SOLID),
    "elo-celo2": Look(SKY, DASHED),
    "sgd": Look(BLACK, SOLID),
    "adafac-mlp": Look(BLACK, DASHED),
    "mulo": Look(BLACK, DOTTED),
}
FREE = [Look(colour, style) for style in (BROKEN, DOTTED, DASHED) for colour in COLOURS]
FREE = [look for look in FREE if look not in KNOWN.values()]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each of ``labels``: a known name has its own; another one's follows from its letters.

    Where two unknown names meet, the later one in the alphabet takes the next look that is free.
    """
    found = {label: KNOWN[label] for label in labels if label in KNOWN}
    for label in sorted({*labels} - {*found}):
        start = zlib.crc32(label.encode()) % len(FREE)
        order = [*FREE[start:], *FREE[:start]]
        found[label] = next((look for look in order if look not in found.values()), order[0])
    return {label: found[label] for label in labels}
