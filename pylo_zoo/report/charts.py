"""The geometry of a report's charts: numbers and SVG paths. The templates contain the markup.

One path holds all marks of a series; a point is a segment of length zero that a round cap makes visible. Lengths are
in SVG units, which are pixels at the natural size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pylo_zoo.report import phrases
from pylo_zoo.report.phrases import DTYPES, clipped, number, short_name
from pylo_zoo.report.records import Check, Explanation, Report

LOWEST = 1e-19
HIGHEST = 1e6


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: position and text; the text is an exponent of ten if ``power``."""

    at: float
    text: str
    power: bool = False


@dataclass(frozen=True)
class LogScale:
    """Maps the exponents ``low`` to ``high`` to the positions ``start`` to ``end``.

    Zero is placed ``margin`` before ``start``; infinity and NaN are placed ``margin`` behind ``end``.
    """

    low: int
    high: int
    start: float
    end: float
    margin: float = 24.0

    def __call__(self, value: float) -> float:
        direction = math.copysign(1.0, self.end - self.start)
        if value == 0:
            return round(self.start - direction * self.margin, 1)
        if not math.isfinite(value):
            return round(self.end + direction * self.margin, 1)
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)

    def ticks(self, every: int) -> list[Tick]:
        """Ticks at the exponents that are multiples of ``every``."""
        exponents = [each for each in range(self.low, self.high + 1) if each % every == 0]
        return [Tick(self(10.0**each), str(each).replace("-", "−"), power=True) for each in exponents]


def log_scale(values: Iterable[float], start: float, end: float) -> LogScale:
    """A scale that covers all positive finite ``values`` between ``LOWEST`` and ``HIGHEST``."""
    finite = [min(max(value, LOWEST), HIGHEST) for value in values if math.isfinite(value) and value > 0]
    low, high = (math.log10(min(finite)), math.log10(max(finite))) if finite else (-1.0, 0.0)
    return LogScale(math.floor(low), max(math.ceil(high), math.floor(low) + 1), start, end)


# --- whole runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line: dtype, layout, path of the finite points, and path of the others."""

    dtype: str
    layout: str
    path: str
    beyond: str


@dataclass(frozen=True)
class Band:
    """The range from the tightest to the widest bound of a dtype's parameters."""

    dtype: str
    top: float
    bottom: float


@dataclass(frozen=True)
class Panel:
    """The plot of one whole run; ``label`` describes it for screen readers."""

    title: str
    failed: bool
    steps: int
    left: float
    right: float
    ticks: Sequence[Tick]
    bands: Sequence[Band]
    series: Sequence[Series]
    label: str


@dataclass(frozen=True)
class Runs:
    """Whole runs side by side on one error scale. ``labels`` at the right end have dtype, text and position."""

    width: float
    height: float
    top: float
    bottom: float
    ticks: Sequence[Tick]
    panels: Sequence[Panel]
    zero: float
    labels: Sequence[tuple[str, str, float]]


def runs(report: Report, width: float = 1000.0, height: float = 330.0) -> Runs | None:
    """The largest error of any parameter after each step of the whole runs; None if the report has no such run."""
    checks_by_run: dict[str, list[Check]] = {}
    for check in report.of_level("trajectory"):
        if check.by_step:
            checks_by_run.setdefault(check.name, []).append(check)
    if not checks_by_run:
        return None
    every = [check for checks in checks_by_run.values() for check in checks]
    limits = [e.allowed for check in every for e in check.errors.values() if e.allowed]
    top, bottom, left, right, gap = 30.0, height - 46.0, 44.0, width - 66.0, 22.0
    scale = log_scale([*(value for check in every for value in check.by_step), *limits], bottom - 24.0, top)
    weights = {name: max(2.0, math.log2(1 + max(c.steps for c in checks))) for name, checks in checks_by_run.items()}
    unit = (right - left - gap * (len(checks_by_run) - 1)) / sum(weights.values())
    panels, start = [], left
    for name, checks in checks_by_run.items():
        end = start + unit * weights[name]
        panels.append(_panel(name, checks, scale, start, end))
        start = end + gap
    last = [*checks_by_run.values()][-1]
    labels = [(check.dtype, check.dtype, scale(check.by_step[-1])) for check in last if check.layout == last[0].layout]
    labels += [(band.dtype, "bounds", (band.top + band.bottom) / 2) for band in panels[-1].bands]
    return Runs(width, height, top, bottom, scale.ticks(2), panels, scale(0.0), _spread(labels))


def _spread(labels: Sequence[tuple[str, str, float]], pitch: float = 14.0) -> list[tuple[str, str, float]]:
    """``labels`` from top to bottom, at least ``pitch`` apart."""
    spread: list[tuple[str, str, float]] = []
    for dtype, text, y in sorted(labels, key=lambda label: label[2]):
        spread.append((dtype, text, max(y, spread[-1][2] + pitch) if spread else y))
    return spread


def _panel(name: str, checks: Sequence[Check], scale: LogScale, left: float, right: float) -> Panel:
    longest = max(check.steps for check in checks)
    inner = left + 8.0, right - 8.0

    def x(step: int) -> float:
        return round(inner[0] + (inner[1] - inner[0]) * ((step - 1) / max(1, longest - 1)), 1)

    series = []
    for check in checks:
        points = [(x(step), scale(value), value) for step, value in enumerate(check.by_step, 1)]
        inside = [(px, py) for px, py, value in points if math.isfinite(value)]
        beyond = "".join(f"M{px} {py}h0" for px, py, value in points if not math.isfinite(value))
        path = "M" + "L".join(f"{px:g} {py:g}" for px, py in inside) + ("h0" if len(inside) == 1 else "")
        series.append(Series(check.dtype, check.layout, path if inside else "", beyond))
    bands = []
    for dtype in DTYPES:
        limits = [e.allowed for c in checks if c.dtype == dtype for e in c.errors.values() if e.allowed]
        if limits:
            bands.append(Band(dtype, scale(max(limits)), scale(min(limits))))
    ticks = [Tick(x(step), str(step)) for step in _steps(longest)]
    label = ", ".join(f"{c.dtype} {c.layout} layout up to {number(max(c.by_step))}" for c in checks)
    failed, title = not all(check.passed for check in checks), clipped(name, round((right - left) / 8))
    return Panel(title, failed, longest, left, right, ticks, bands, series, label)


def _steps(longest: int) -> Iterator[int]:
    yield 1
    every = next(each for each in (1, 2, 5, 10, 25, 50, 100, 10**9) if longest <= 6 * each)
    yield from (step for step in range(every, longest + 1, every) if step > 1)


# --- the chain ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """Paths of one dtype: lines from errors to bounds, bounds, errors within them, zero errors, errors beyond them."""

    dtype: str
    links: str
    bounds: str
    within: str
    zeros: str
    beyond: str


@dataclass(frozen=True)
class Step:
    """One quantity of the chain; ``off`` if it exceeds its bound, ``first`` if it is the first that does."""

    y: float
    name: str
    note: str
    off: bool = False
    first: bool = False


@dataclass(frozen=True)
class Chain:
    """Quantities from top to bottom, errors on a logarithmic scale from left to right."""

    width: float
    height: float
    left: float
    right: float
    zero: float
    ticks: Sequence[Tick]
    steps: Sequence[Step]
    marks: Sequence[Mark]


@dataclass
class _Paths:
    links: list[str] = field(default_factory=list)
    bounds: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)

    def add(self, y: float, error: float, allowed: float | None, scale: LogScale, nudge: float) -> None:
        at = scale(error)
        passed = allowed is None or error <= allowed
        kind = self.beyond if not passed else self.within if error else self.zeros
        kind.append(f"M{at:g} {y + nudge:g}h0")
        if allowed is not None:
            limit = scale(allowed)
            self.bounds.append(f"M{limit:g} {y - 4:g}v8")
            if error:
                self.links.append(f"M{at:g} {y:g}H{limit:g}")

    def mark(self, dtype: str) -> Mark:
        paths = self.links, self.bounds, self.within, self.zeros, self.beyond
        return Mark(dtype, *("".join(each) for each in paths))


Point = tuple[str, float, "float | None"]
"""dtype, error and bound."""


def _chain(entries: Sequence[tuple[str, str, Sequence[Point]]], notes: float, width: float = 1000.0) -> Chain:
    left, right, pitch, top = 218.0, width - notes, 15.0, 34.0
    values = [value for _, _, points in entries for _, *pair in points for value in pair if value is not None]
    scale = log_scale(values, left + 30.0, right - 30.0)
    paths: dict[str, _Paths] = {}
    steps: list[Step] = []
    for place, (name, note, points) in enumerate(entries):
        y = top + pitch * place
        off = any(not (allowed is None or error <= allowed) for _, error, allowed in points)
        steps.append(
            Step(
                y,
                clipped(name, 34),
                clipped(note, round(notes / 5.9)),
                off,
                off and not any(step.off for step in steps),
            )
        )
        for dtype, error, allowed in points:
            equal = len(points) == 2 and points[0][1] == points[1][1]  # one dot would hide the other
            nudge = 0.0 if not equal else -2.5 if dtype == DTYPES[0] else 2.5
            paths.setdefault(dtype, _Paths()).add(y, error, allowed, scale, nudge)
    height = top + pitch * len(entries) + 26.0
    marks = [each.mark(dtype) for dtype, each in paths.items()]
    return Chain(width, height, left, right, scale(0.0), scale.ticks(2), steps, marks)


def chain(report: Report) -> Chain | None:
    """The error of every quantity that came nearest to its bound, in both dtypes; None if the report has none."""
    quantities: dict[str, dict[str, tuple[Point, str]]] = {}
    for each in report.quantities:
        of = f", {each.case}" if each.case else ""
        note = f"{short_name(each.run)}{of}, step {each.step + 1}"
        quantities.setdefault(each.name, {})[each.dtype] = (each.dtype, each.error, each.allowed), note
    entries = [
        (name, by[DTYPES[0]][1] if DTYPES[0] in by else "", [by[dtype][0] for dtype in DTYPES if dtype in by])
        for name, by in quantities.items()
    ]
    return _chain(entries, 262.0) if entries else None


def explanation_chain(explanation: Explanation) -> Chain | None:
    """The chain of one parameter at one step; None if it is empty."""
    names = [link.quantity for link in explanation.chain]
    entries = [
        (
            f"{link.quantity} (run)"
            if link.quantity in names[place + 1 :]
            else link.quantity,  # run and parameter may share a name
            link.meaning,
            [(explanation.dtype, link.error, link.allowed if math.isfinite(link.allowed) else None)],
        )
        for place, link in enumerate(explanation.chain)
    ]
    return _chain(entries, 400.0) if entries else None


def affected(report: Report, explanation: Explanation) -> Mapping[str, list[tuple[str, str]]]:
    """Names and shapes of the parameters for which the explained quantity is "off" and for which it is "right"."""
    shapes = phrases.shapes(report)
    sides = {"off": explanation.off_in, "right": explanation.right_in}
    return {word: [(name, shapes.get(name, "")) for name in names] for word, names in sides.items()}
