"""Draws the plot of a model card: the errors of the parity check and their bounds, as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pylo_zoo.errors import ZooError
from pylo_zoo.report import phrases
from pylo_zoo.report.records import Check, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 150
"""Inches and dots per inch: 1,200 pixels. A model card shows at most 800."""
ROW = 0.2
"""Height of a row in inches."""
MAX_ROWS = 48
LOOKS = {"float64": ("#0072B2", "o", -0.17), "float32": ("#D55E00", "s", 0.17)}
"""Color, marker and vertical shift of each dtype. Color-blind readers can distinguish the colors and the shapes."""
GRAY = "#555555"
LOWEST, HIGHEST = 1e-20, 1e6


@dataclass(frozen=True)
class Point:
    """An error and its bound, or None if it is not checked against a bound."""

    dtype: str
    error: float
    allowed: float | None

    @property
    def passed(self) -> bool:
        return self.allowed is None or self.error <= self.allowed

    @property
    def share(self) -> float:
        """The error as a fraction of the bound, for sorting."""
        if not self.allowed or not math.isfinite(self.error):
            return 0.0 if self.passed else math.inf
        return self.error / self.allowed


@dataclass(frozen=True)
class Row:
    """A row of the plot: its name and one point per dtype."""

    name: str
    points: Sequence[Point]


def parity_png(report: Report) -> bytes:
    """Draw ``report`` as one PNG. The same report and matplotlib version give the same bytes.

    The plot shows the largest error of each level, then the intermediate quantities in the order of computation, each
    with its bound, and the error over the steps of the longest trajectory.

    Raises:
        ZooError: matplotlib is missing, or the report has no comparisons.
    """
    if not report.checks:
        raise ZooError(f"The parity report of {report.name} has no comparisons to draw.", "Run `pylo-zoo verify DIR`.")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ZooError(
            "The plot needs matplotlib, which is not installed.", "Run pip install 'pylo-zoo[publish]'."
        ) from error

    with matplotlib.rc_context():  # ignore the user's settings
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9.5})
        figure = _figure(report)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        # The version of matplotlib is left out, because it is not part of the report.
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _figure(report: Report) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    levels, chain, longest = list(_level_rows(report)), _quantity_rows(report), _longest_run(report)
    heights = [(levels, 1.9 * ROW), (chain, ROW)]  # names of levels have two lines
    sizes = [(len(rows) + 0.8) * height for rows, height in heights if rows] + ([2.0] if longest else [])
    figure = Figure(figsize=(WIDTH, sum(sizes) + 0.62 * len(sizes) + 0.75))
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06))
    figure.suptitle(
        f"{_clip(report.name, 36)}: torch and its JAX original, {phrases.WORDS[report.status].lower()}",
        **{"fontsize": 11.5, "fontweight": "bold", "parse_math": False},
    )
    all_axes = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
    axes = iter(all_axes)
    if levels:
        title = "Largest error of each comparison: float64 shows faults, float32 adds rounding"
        _draw_rows(next(axes), levels, title, "error, in the unit of each row")
    if chain:
        title = "Intermediate quantities of a step, at the point closest to their bound"
        _draw_rows(
            next(axes),
            chain,
            title,
            "error, relative to the largest value of the quantity (for the parameter: of its update)",
        )
    if longest:
        _draw_trajectory(next(axes), longest)
    _legend(figure, all_axes[0])
    return figure


# --- what is drawn -----------------------------------------------------------------------------------------------


def _level_rows(report: Report) -> Iterator[Row]:
    """The largest error of each level, in the order of the table in the card."""
    table = phrases.rows(report)
    for label, level in dict.fromkeys((row.label, row.level) for row in table):
        points = [Point(row.dtype, row.error.error, row.error.allowed) for row in table if row.label == label]
        yield Row(f"{label}\n{phrases.UNITS[level]}", points)


def _quantity_rows(report: Report) -> list[Row]:
    """One row per quantity. A group (``features/…``) has one row, which shows the quantity closest to its bound."""
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
            [max(points, key=lambda point: point.share) for points in by_dtype.values()],
        )
        for group, by_dtype in groups.items()
    ]
    if len(rows) <= MAX_ROWS:
        return rows
    closest = sorted(rows, key=lambda row: -max(point.share for point in row.points))[:MAX_ROWS]
    return [row for row in rows if row in closest]


def _longest_run(report: Report) -> list[Check]:
    """The trajectories of the run with the most steps."""
    runs = [check for check in report.of_level("trajectory") if len(check.by_step) > 1]
    name = max(runs, key=lambda check: check.steps).name if runs else ""
    return [check for check in runs if check.name == name]


# --- drawing -----------------------------------------------------------------------------------------------------


def _draw_rows(axes: Axes, rows: Sequence[Row], title: str, unit: str) -> None:
    """Draw each row: a dot for the error, a bar for the bound, and a line between them."""
    values = [value for row in rows for point in row.points for value in (point.error, point.allowed)]
    low, high = _exponent_range(value for value in values if value is not None)
    zero, infinite = 10.0 ** (low - 1.0), 10.0 ** (high + 1.0)
    for index, row in enumerate(rows):
        if index % 2:
            axes.axhspan(index - 0.5, index + 0.5, color="#f3f3f3", zorder=0, linewidth=0)
        for point in row.points:
            color, marker, shift = LOOKS[point.dtype]
            y = index + shift
            x = zero if point.error == 0 else min(max(point.error, zero), infinite)
            x = x if math.isfinite(point.error) else infinite
            if point.allowed:
                bound = min(max(point.allowed, zero), infinite)
                axes.plot([x, bound], [y, y], color=color, linewidth=1.0, alpha=0.4, zorder=2)
                axes.plot([bound], [y], color=color, marker="|", markersize=8, markeredgewidth=2.2, zorder=3)
            if point.passed:
                face = "white" if point.error == 0 else color
                axes.plot([x], [y], color=color, marker=marker, markerfacecolor=face, markersize=4.6, zorder=4)
            else:
                axes.plot([x], [y], color=color, marker="X", markersize=9, markeredgecolor="black", zorder=5)
    axes.set_xscale("log")
    axes.set_xlim(zero / 10**0.5, infinite * 10**0.5)
    stride = max(1, math.ceil((high - low) / 9))
    ticks = [10.0**power for power in range(low, high + 1) if power % stride == 0]
    labels = [_power_label(power) for power in range(low, high + 1) if power % stride == 0]
    has_infinite = any(not math.isfinite(point.error) for row in rows for point in row.points)
    has_zero = any(point.error == 0 for row in rows for point in row.points)
    ticks = [*([zero] if has_zero else []), *ticks, *([infinite] if has_infinite else [])]
    axes.set_xticks(ticks, [*(["0"] if has_zero else []), *labels, *(["∞"] if has_infinite else [])])
    axes.set_yticks(range(len(rows)), [_clip(row.name, 60) for row in rows], **{"parse_math": False})
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.minorticks_off()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=1)
    _finish(axes, title, unit)


def _draw_trajectory(axes: Axes, checks: Sequence[Check]) -> None:
    """Draw the error of the worst parameter after each step, and the bounds of all parameters as a band."""
    from matplotlib.ticker import MaxNLocator

    positive: list[float] = []
    for check in checks:
        color, _, _ = LOOKS[check.dtype]
        style = "-" if check.layout == checks[0].layout else ":"
        steps = range(1, len(check.by_step) + 1)
        shown = [value if 0 < value < math.inf else math.nan for value in check.by_step]
        positive += [value for value in shown if math.isfinite(value)]
        axes.plot(steps, shown, color=color, linewidth=1.4, linestyle=style, zorder=3)
        limits = [error.allowed for error in check.errors.values() if error.allowed]
        if limits and style == "-":
            positive += limits
            axes.fill_between([1, len(check.by_step)], min(limits), max(limits), color=color, alpha=0.13, linewidth=0)
            axes.axhline(max(limits), color=color, linewidth=1.0, linestyle="--", zorder=2)
    axes.set_yscale("log")
    low, high = _exponent_range(positive)
    axes.set_ylim(10.0 ** (low - 0.2), 10.0 ** (high + 0.2))
    stride = max(1, math.ceil((high - low) / 6))
    powers = [power for power in range(low, high + 1) if power % stride == 0]
    axes.set_yticks([10.0**power for power in powers], [_power_label(power) for power in powers])
    axes.minorticks_off()
    axes.set_xlim(1, max(check.steps for check in checks))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="#dddddd", linewidth=0.6, zorder=1)
    axes.set_ylabel("error / movement")
    title = f"Trajectory “{_clip(checks[0].name, 20)}”, both sides run separately: worst parameter (dashed: bounds)"
    _finish(axes, title, "step")


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left").set_parse_math(False)
    axes.set_xlabel(unit, color=GRAY)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, axes: Axes) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **look)

    handles = [
        entry(f"error, {dtype}", color=color, marker=marker, markersize=5)
        for dtype, (color, marker, _) in LOOKS.items()
    ]
    handles.append(entry("allowed", color=GRAY, marker="|", markersize=9, markeredgewidth=2.2))
    handles.append(entry("no error", color=GRAY, marker="o", markersize=5, markerfacecolor="white"))
    handles.append(entry("above its bound", color=GRAY, marker="X", markersize=9, markeredgecolor="black"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, handletextpad=0.3)


def _exponent_range(values: Iterable[float]) -> tuple[int, int]:
    """Exponents of 10 that enclose all positive finite ``values``, clipped to [LOWEST, HIGHEST]."""
    finite = [min(max(value, LOWEST), HIGHEST) for value in values if 0 < value < math.inf]
    low = math.floor(math.log10(min(finite))) if finite else -16
    return low, max(math.ceil(math.log10(max(finite))) if finite else 0, low + 1)


def _power_label(exponent: int) -> str:
    return f"$10^{{{exponent}}}$"


def _clip(text: str, most: int) -> str:
    """``text`` clipped to ``most`` characters, with ``?`` for characters that the font lacks."""
    known = (each if each in "\n“”…" or 32 <= ord(each) < 0x17F or 0x391 <= ord(each) < 0x3CA else "?" for each in text)
    return phrases.clipped("".join(known), most)
