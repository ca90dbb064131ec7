"""Heat maps of single-step errors by parameter, and by setting or by report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pylo_zoo.report import phrases
from pylo_zoo.report.phrases import DTYPES, number, short_name
from pylo_zoo.report.records import Check, Error, Report

TONES = ((0.001, "a"), (0.01, "b"), (0.03, "c"), (0.1, "d"), (0.3, "e"), (1.0, "f"))
"""Upper limits of the ratio of error to bound, and their shades. Other shades: "x" beyond the bound, "z" no error, "n"
no bound, "l" a loose bound."""


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
    """One column.

    Attributes:
        text, full: short and full name at its head.
        kind: kind of setting.
        off: number of quantities beyond their bounds.
        starts: whether this is the first column of its kind.
    """

    text: str
    full: str
    kind: str
    off: int = 0
    starts: bool = False


@dataclass(frozen=True)
class Line:
    """One row: name and shape of the parameter, and one cell per column; None if the setting was not run."""

    name: str
    shape: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class HeatMap:
    """A title (the dtype, or empty), columns and rows."""

    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]


def cell(errors: Iterable[Error]) -> Cell | None:
    """A cell for ``errors``: its number is the largest error, its shade that of the error nearest to its bound."""
    every = list(errors)
    bounded = [each for each in every if each.allowed is not None]
    if not bounded:
        return Cell("n", "·", "not compared") if every else None
    largest, nearest = max(bounded, key=phrases.sort_key), max(bounded, key=lambda each: each.excess)
    title = f"{number(largest.error)} of {number(largest.allowed)}"
    if nearest.excess > largest.excess:
        title += f"; nearest to its bound: {number(nearest.error)} of {number(nearest.allowed)}"
    return Cell(tone(nearest), ("" if nearest.passed else "✕\u2009") + magnitude(largest.error), title)


def heat_maps(report: Report) -> list[HeatMap]:
    """One map of parameters by setting for each compared dtype; a cell covers both layouts."""
    maps = [_heat_map(report, dtype) for dtype in DTYPES]
    return [each for each in maps if each.lines]


def _heat_map(report: Report, dtype: str) -> HeatMap:
    steps = [check for check in report.of_level("step") if check.dtype == dtype]
    names = list(dict.fromkeys(name for check in steps for name in check.errors))
    settings: dict[tuple[str, str], list[Check]] = {}
    for check in steps:
        settings.setdefault((check.kind, check.name), []).append(check)
    columns: list[Column] = []
    for (kind, name), checks in settings.items():
        off = len({quantity for check in checks for quantity in check.broken})
        columns.append(Column(short_name(name), name, kind, off, bool(columns) and columns[-1].kind != kind))
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
    """A map of parameters by report, for single float64 steps; a cell covers all settings and layouts."""
    steps = [[check for check in report.of_level("step") if check.dtype == "float64"] for report in reports]
    names = list(dict.fromkeys(name for checks in steps for check in checks for name in check.errors))
    shapes: dict[str, str] = {name: shape for report in reports for name, shape in phrases.shapes(report).items()}
    return HeatMap("", [Column(report.name, report.family, "") for report in reports], _lines(names, shapes, steps))
