"""The plot of a model card: how far apart the two sides are, and how far they may be, as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pylo_zoo.errors import ZooError
from pylo_zoo.parity import phrases
from pylo_zoo.parity.report import Check, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 150
"""Inches and dots: 1,200 pixels, of which a model card shows 800 or fewer."""
ROW = 0.2
"""Height of a row, in inches."""
MOST_ROWS = 48
LOOKS = {"float64": ("#0072B2", "o", -0.17), "float32": ("#D55E00", "s", 0.17)}
"""Colour, marker and shift of each dtype. Blue and vermilion stay apart for colour-blind readers; so do the shapes."""
GREY = "#555555"
LOWEST, HIGHEST = 1e-20, 1e6


@dataclass(frozen=True)
class Point:
    """An error and its bound, None where nothing is held against one."""

    dtype: str
    error: float
    allowed: float | None

    @property
    def passed(self) -> bool:
        return self.allowed is None or self.error <= self.allowed

    @property
    def share(self) -> float:
        """How much of the bound is used, for sorting."""
        if not self.allowed or not math.isfinite(self.error):
            return 0.0 if self.passed else math.inf
        return self.error / self.allowed


@dataclass(frozen=True)
class Row:
    """A line of the plot: its name and a point a dtype."""

    name: str
    points: Sequence[Point]


def parity_png(report: Report) -> bytes:
    """``report`` as one picture; the same report gives the same bytes with the same matplotlib.

    At the top the largest error of each level, below it every intermediate quantity in the order of computation, each
    against its bound; at the bottom how the longest whole run drifts apart.

    Raises:
        ZooError: matplotlib is missing, or nothing was compared.
    """
    if not report.checks:
        raise ZooError(f"The report on {report.name} compares no numbers, so there is nothing to draw.", "Verify it.")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ZooError("matplotlib, which draws the plot, is missing.", "pip install 'pylo-zoo[publish]'") from error

    with matplotlib.rc_context():  # whatever the user's own settings are
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9.5})
        figure = _figure(report)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        # The version of matplotlib is left out: it says nothing of the report.
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _figure(report: Report) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    levels, chain, longest = list(_levels(report)), _chain(report), _longest(report)
    heights = [(levels, 1.9 * ROW), (chain, ROW)]  # names of levels take two lines
    sizes = [(len(rows) + 0.8) * height for rows, height in heights if rows] + ([2.0] if longest else [])
    figure = Figure(figsize=(WIDTH, sum(sizes) + 0.62 * len(sizes) + 0.75))
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06))
    figure.suptitle(
        f"{_safe(report.name, 36)}: torch against its JAX original, {phrases.WORDS[report.status].lower()}",
        **{"fontsize": 11.5, "fontweight": "bold", "parse_math": False},
    )
    every = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
    axes = iter(every)
    if levels:
        title = "Largest error of each comparison: float64 shows meaning, float32 what rounding adds"
        _rows(next(axes), levels, title, "error, in the unit named at each row")
    if chain:
        title = "Every intermediate quantity of a step, where it came nearest to its bound"
        _rows(
            next(axes),
            chain,
            title,
            "error, relative to the largest value of the quantity (of the parameter: to its update)",
        )
    if longest:
        _course(next(axes), longest)
    _legend(figure, every[0])
    return figure


# --- what is drawn -----------------------------------------------------------------------------------------------


def _levels(report: Report) -> Iterator[Row]:
    """The largest error of each level, in the order of the table of the card."""
    found = phrases.rows(report)
    for label, level in dict.fromkeys((row.label, row.level) for row in found):
        points = [Point(row.dtype, row.error.error, row.error.allowed) for row in found if row.label == label]
        yield Row(f"{label}\n{phrases.UNITS[level]}", points)


def _chain(report: Report) -> list[Row]:
    """Every quantity; those of one group (``features/…``) in a row, for which the one nearest to its bound speaks."""
    groups: dict[str, dict[str, list[Point]]] = {}
    members: dict[str, set[str]] = {}
    for each in report.quantities:
        group = each.name.partition("/")[0]
        members.setdefault(group, set()).add(each.name)
        point = Point(each.dtype, each.error, each.allowed)
        groups.setdefault(group, {}).setdefault(each.dtype, []).append(point)
    rows = [
        Row(
            " ".join(group.replace("_", " ").split())
            + (f" ({len(members[group])})" if len(members[group]) > 1 else ""),
            [max(points, key=lambda point: point.share) for points in by.values()],
        )
        for group, by in groups.items()
    ]
    if len(rows) <= MOST_ROWS:
        return rows
    nearest = sorted(rows, key=lambda row: -max(point.share for point in row.points))[:MOST_ROWS]
    return [row for row in rows if row in nearest]


def _longest(report: Report) -> list[Check]:
    """The whole runs of the name that has most steps."""
    runs = [check for check in report.of_level("trajectory") if len(check.by_step) > 1]
    name = max(runs, key=lambda check: check.steps).name if runs else ""
    return [check for check in runs if check.name == name]


# --- drawing -----------------------------------------------------------------------------------------------------


def _rows(axes: Axes, rows: Sequence[Row], title: str, unit: str) -> None:
    """A line a row: dots for errors, bars for bounds, and a thread between the two."""
    values = [value for row in rows for point in row.points for value in (point.error, point.allowed)]
    low, high = _powers(value for value in values if value is not None)
    zero, infinite = 10.0 ** (low - 1.0), 10.0 ** (high + 1.0)
    for place, row in enumerate(rows):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", zorder=0, linewidth=0)
        for point in row.points:
            colour, marker, shift = LOOKS[point.dtype]
            y = place + shift
            x = zero if point.error == 0 else min(max(point.error, zero), infinite)
            x = x if math.isfinite(point.error) else infinite
            if point.allowed:
                bound = min(max(point.allowed, zero), infinite)
                axes.plot([x, bound], [y, y], color=colour, linewidth=1.0, alpha=0.4, zorder=2)
                axes.plot([bound], [y], color=colour, marker="|", markersize=8, markeredgewidth=2.2, zorder=3)
            if point.passed:
                face = "white" if point.error == 0 else colour
                axes.plot([x], [y], color=colour, marker=marker, markerfacecolor=face, markersize=4.6, zorder=4)
            else:
                axes.plot([x], [y], color=colour, marker="X", markersize=9, markeredgecolor="black", zorder=5)
    axes.set_xscale("log")
    axes.set_xlim(zero / 10**0.5, infinite * 10**0.5)
    every = max(1, math.ceil((high - low) / 9))
    ticks = [10.0**power for power in range(low, high + 1) if power % every == 0]
    labels = [_power(power) for power in range(low, high + 1) if power % every == 0]
    beyond = any(not math.isfinite(point.error) for row in rows for point in row.points)
    none = any(point.error == 0 for row in rows for point in row.points)
    ticks = [*([zero] if none else []), *ticks, *([infinite] if beyond else [])]
    axes.set_xticks(ticks, [*(["0"] if none else []), *labels, *(["∞"] if beyond else [])])
    axes.set_yticks(range(len(rows)), [_safe(row.name, 60) for row in rows], **{"parse_math": False})
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.minorticks_off()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=1)
    _finish(axes, title, unit)


def _course(axes: Axes, checks: Sequence[Check]) -> None:
    """The error of the worst parameter after each step, and the bounds of all parameters as a band."""
    from matplotlib.ticker import MaxNLocator

    positive: list[float] = []
    for check in checks:
        colour, _, _ = LOOKS[check.dtype]
        style = "-" if check.layout == checks[0].layout else ":"
        steps = range(1, len(check.by_step) + 1)
        shown = [value if 0 < value < math.inf else math.nan for value in check.by_step]
        positive += [value for value in shown if math.isfinite(value)]
        axes.plot(steps, shown, color=colour, linewidth=1.4, linestyle=style, zorder=3)
        limits = [error.allowed for error in check.errors.values() if error.allowed]
        if limits and style == "-":
            positive += limits
            axes.fill_between([1, len(check.by_step)], min(limits), max(limits), color=colour, alpha=0.13, linewidth=0)
            axes.axhline(max(limits), color=colour, linewidth=1.0, linestyle="--", zorder=2)
    axes.set_yscale("log")
    low, high = _powers(positive)
    axes.set_ylim(10.0 ** (low - 0.2), 10.0 ** (high + 0.2))
    every = max(1, math.ceil((high - low) / 6))
    powers = [power for power in range(low, high + 1) if power % every == 0]
    axes.set_yticks([10.0**power for power in powers], [_power(power) for power in powers])
    axes.minorticks_off()
    axes.set_xlim(1, max(check.steps for check in checks))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#dddddd", linewidth=0.6, zorder=1)
    axes.set_ylabel("error / movement")
    title = f"Whole run “{_safe(checks[0].name, 20)}”, each side on its own: worst parameter (dashed: the bounds)"
    _finish(axes, title, "step")


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left").set_parse_math(False)
    axes.set_xlabel(unit, color=GREY)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, axes: Axes) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **look)

    handles = [
        entry(f"error, {dtype}", color=colour, marker=marker, markersize=5)
        for dtype, (colour, marker, _) in LOOKS.items()
    ]
    handles.append(entry("allowed", color=GREY, marker="|", markersize=9, markeredgewidth=2.2))
    handles.append(entry("no error at all", color=GREY, marker="o", markersize=5, markerfacecolor="white"))
    handles.append(entry("beyond its bound", color=GREY, marker="X", markersize=9, markeredgecolor="black"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, handletextpad=0.3)


def _powers(values: Iterable[float]) -> tuple[int, int]:
    """Exponents between which all positive finite ``values`` lie, within reason."""
    finite = [min(max(value, LOWEST), HIGHEST) for value in values if 0 < value < math.inf]
    low = math.floor(math.log10(min(finite))) if finite else -16
    return low, max(math.ceil(math.log10(max(finite))) if finite else 0, low + 1)


def _power(exponent: int) -> str:
    return f"$10^{{{exponent}}}$"


def _safe(text: str, most: int) -> str:
    """``text`` in letters that the font has, and not longer than fits; only a line break of our own stays one."""
    known = (each if each in "\n“”…" or 32 <= ord(each) < 0x17F or 0x391 <= ord(each) < 0x3CA else "?" for each in text)
    return phrases.clipped("".join(known), most)
