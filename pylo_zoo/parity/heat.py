"""The heat maps of a report: errors of single steps by parameter, and by setting or by report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pylo_zoo.parity import phrases
from pylo_zoo.parity.phrases import DTYPES, brief, number
from pylo_zoo.parity.report import Check, Error, Report

TONES = ((0.001, "a"), (0.01, "b"), (0.03, "c"), (0.1, "d"), (0.3, "e"), (1.0, "f"))
"""Shades of a cell, by the share of the bound that is used up to there; "x" is beyond, "z" no error, "n" no bound, "l"
one so loose that keeping to it says little."""


def tone(error: Error) -> str:
    """The shade for ``error``."""
    if error.allowed is None:
        return "n"
    if not error.passed:
        return "x"
    share = error.excess
    if phrases.loose(error):
        return "l"
    return "z" if error.error == 0 else next((name for limit, name in TONES if share <= limit), "x")


def magnitude(error: float) -> str:
    """log10 of ``error`` to one decimal."""
    if not math.isfinite(error):
        return number(error)
    return f"{math.log10(error):.1f}".replace("-0.0", "0.0").replace("-", "−") if error > 0 else "0"


@dataclass(frozen=True)
class Cell:
    """One cell: shade, text and tooltip."""

    tone: str
    text: str
    title: str = ""


@dataclass(frozen=True)
class Column:
    """One column: text at its head, in full, what kind of setting it is, how many quantities are off in it.

    ``starts`` is whether another kind of setting begins here.
    """

    text: str
    full: str
    kind: str
    off: int = 0
    starts: bool = False


@dataclass(frozen=True)
class Line:
    """One row: name and shape of the parameter, and a cell a column, None where nothing was tried."""

    name: str
    shape: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class HeatMap:
    """What the map is of, a dtype if anything, the columns and the rows."""

    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]


def cell(errors: Iterable[Error]) -> Cell | None:
    """``errors`` in one: the largest that is held against a bound as a number, the nearest to its bound as a shade."""
    every = list(errors)
    found = [each for each in every if each.allowed is not None]
    if not found:
        return Cell("n", "·", "not compared") if every else None
    largest, nearest = max(found, key=phrases.size), max(found, key=lambda each: each.excess)
    title = f"{number(largest.error)} of {number(largest.allowed)}"
    if nearest.excess > largest.excess:
        title += f"; nearest to its bound: {number(nearest.error)} of {number(nearest.allowed)}"
    return Cell(tone(nearest), ("" if nearest.passed else "✕\u2009") + magnitude(largest.error), title)


def heat_maps(report: Report) -> list[HeatMap]:
    """Parameters by setting, single steps, the worse of the two layouts: a map for each dtype that was compared."""
    found = [_heat_map(report, dtype) for dtype in DTYPES]
    return [each for each in found if each.lines]


def _heat_map(report: Report, dtype: str) -> HeatMap:
    steps = [check for check in report.of_level("step") if check.dtype == dtype]
    names = list(dict.fromkeys(name for check in steps for name in check.errors))
    settings: dict[tuple[str, str], list[Check]] = {}
    for check in steps:
        settings.setdefault((check.kind, check.name), []).append(check)
    columns: list[Column] = []
    for (kind, name), checks in settings.items():
        off = len({what for check in checks for what in check.broken})
        columns.append(Column(brief(name), name, kind, off, bool(columns) and columns[-1].kind != kind))
    return HeatMap(dtype, columns, _lines(names, phrases.shapes(report), [*settings.values()]))


def _lines(names: Sequence[str], shapes: Mapping[str, str], columns: Sequence[Sequence[Check]]) -> list[Line]:
    return [
        Line(
            name,
            shapes.get(name, ""),
            [cell(check.errors[name] for check in checks if name in check.errors) for checks in columns],
        )
        for name in names
    ]


def overview(reports: Sequence[Report]) -> HeatMap:
    """Parameters by report: single float64 steps, the worst of all settings and layouts."""
    steps = [[check for check in report.of_level("step") if check.dtype == "float64"] for report in reports]
    names = list(dict.fromkeys(name for checks in steps for check in checks for name in check.errors))
    shapes: dict[str, str] = {name: shape for report in reports for name, shape in phrases.shapes(report).items()}
    return HeatMap("", [Column(report.name, report.family, "") for report in reports], _lines(names, shapes, steps))
