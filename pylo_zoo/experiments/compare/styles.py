"""The line style of each optimizer in figures, which is the same in every report."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK = COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
"""The palette of Okabe and Ito, which color-blind readers can distinguish."""
SOLID, DASHED, DOTTED, DASH_DOTTED = ("-", "--", ":", "-.")
MARKERS: dict[str, str] = dict(zip(COLORS, "osD^vPX", strict=True))


class Style(NamedTuple):
    """The style of a line."""

    color: str
    linestyle: str

    @property
    def marker(self) -> str:
        """A marker per color, for readers who cannot distinguish colors."""
        return MARKERS[self.color]


KNOWN = {
    "adamw": Style(BLUE, SOLID),
    "muon": Style(VERMILION, SOLID),
    "velo": Style(GREEN, SOLID),
    "velo-sample": Style(GREEN, DASHED),
    "celo": Style(PINK, SOLID),
    "celo-adam": Style(PINK, DASHED),
    "celo2": Style(ORANGE, SOLID),
    "celo2-base": Style(ORANGE, DASHED),
    "elo": Style(SKY, SOLID),
    "elo-celo2": Style(SKY, DASHED),
    "sgd": Style(BLACK, SOLID),
    "adafac-mlp": Style(BLACK, DASHED),
    "mulo": Style(BLACK, DOTTED),
}
FREE = [Style(color, line) for line in (DASH_DOTTED, DOTTED, DASHED) for color in COLORS]
FREE = [style for style in FREE if style not in KNOWN.values()]


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each of ``labels``. Known names have a fixed style; a hash of any other name chooses a free one.

    If two names have the same hash, the later one in the alphabet gets the next free style.
    """
    chosen = {label: KNOWN[label] for label in labels if label in KNOWN}
    for label in sorted({*labels} - {*chosen}):
        start = zlib.crc32(label.encode()) % len(FREE)
        order = [*FREE[start:], *FREE[:start]]
        chosen[label] = next((style for style in order if style not in chosen.values()), order[0])
    return {label: chosen[label] for label in labels}
