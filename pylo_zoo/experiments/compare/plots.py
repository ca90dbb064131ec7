"""The figures of a comparison as PNG: loss by steps and by seconds, held-out metric, and step times."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pylo_zoo.errors import ZooError, count
from pylo_zoo.experiments.compare import words
from pylo_zoo.experiments.compare.figures import Band, RunRecord, band, diverged, smoothed
from pylo_zoo.experiments.compare.plan import LAST
from pylo_zoo.experiments.compare.running import Outcome
from pylo_zoo.experiments.compare.styles import Style, styles
from pylo_zoo.report.phrases import clipped, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 6.0, 4.2, 200
"""Size in inches and resolution: 1,200 pixels wide, with text that is readable on a phone."""
POINTS = 600
"""Maximum number of points per curve."""
GRAY = "#555555"
STEP = "step"
"""The label of an axis with whole numbers."""
LOG_RATIO = 20
"""If the ratio of the longest to the shortest time is larger, the scale is logarithmic."""


def check() -> None:
    """Check that matplotlib is installed.

    Raises:
        ZooError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ZooError(
            "The figures need matplotlib, which is not installed.", "Run pip install 'pylo-zoo[train]'."
        ) from error


def draw(results: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """All figures by file name. The bytes depend only on the runs and matplotlib's version.

    Raises:
        ZooError: matplotlib is missing.
    """
    check()
    window = results["last"]
    seeds = len(results["seeds"])
    about = {
        "one": "one seed; ",
        "equal": f"{seeds} seeds, all equal; ",
        "several": f"median of {seeds} seeds, shaded: min–max; ",
    }[words.seed_variation(results)]
    smooth = f"{about}averaged over {count(window, 'step')}"

    def by_steps(axes: Axes) -> None:
        _curves(axes, outcomes, lambda each: band([_thinned(_steps(each, i, window)) for i in _drawn_runs(each)]))
        _finish(axes, "Training loss by steps", smooth, STEP)

    def by_seconds(axes: Axes) -> None:
        _curves(axes, outcomes, lambda each: band([_thinned(_seconds(each, i, window)) for i in _drawn_runs(each)]))
        _finish(axes, "Training loss by time", smooth, "seconds, without tuning and evaluations")

    def held_out(axes: Axes) -> None:
        metric = results["task"]["metric"]
        better = "higher" if results["task"]["higher_is_better"] else "lower"
        _curves(axes, outcomes, lambda each: band([_held_out(each, i, metric) for i in _drawn_runs(each)]), dots=True)
        _finish(axes, f"Held out: {metric.replace('_', ' ')}", f"{about}{better} is better", STEP)

    pictures: dict[str, Callable[[Axes], None]] = {"loss-steps.png": by_steps, "loss-seconds.png": by_seconds}
    if results["task"]["metric"]:
        pictures["held-out.png"] = held_out
    pictures["optimizer-time.png"] = lambda axes: _times(axes, results["optimizers"])
    return {
        name: _png(content, outcomes if name != "optimizer-time.png" else (), dots=name == "held-out.png")
        for name, content in pictures.items()
    }


def _png(content: Callable[[Axes], None], named: Sequence[Outcome], *, dots: bool) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():  # the user's settings must not change the figures
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10.5, "axes.titlesize": 12})
        figure = Figure(figsize=(WIDTH, HEIGHT))
        figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06))
        content(figure.subplots())
        if named:
            _legend(figure, named, dots=dots)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


# --- curves ------------------------------------------------------------------------------------------------------


def _drawn_runs(outcome: Outcome) -> list[int]:
    """The runs that did not diverge, or all runs if all diverged. A diverged run would shorten or widen the band."""
    finite = [i for i, record in enumerate(outcome.records) if not _has_diverged(record)]
    return finite or [i for i, record in enumerate(outcome.records) if record.losses]


def _has_diverged(record: RunRecord) -> bool:
    return diverged(record, max(1, round(LAST * len(record.losses)))) is not None


def _steps(outcome: Outcome, i: int, window: int) -> tuple[list[float], list[float]]:
    losses = smoothed(outcome.records[i].losses, window)
    return [float(step + 1) for step in range(len(losses))], losses


def _seconds(outcome: Outcome, i: int, window: int) -> tuple[list[float], list[float]]:
    elapsed, times = 0.0, []
    for each in outcome.records[i].seconds:
        elapsed += each
        times.append(elapsed)
    return times, smoothed(outcome.records[i].losses, window)


def _held_out(outcome: Outcome, i: int, metric: str) -> tuple[list[float], list[float]]:
    known = {step: each[metric] for step, each in sorted(outcome.records[i].evaluations.items()) if metric in each}
    return [float(step) for step in known], list(known.values())


def _thinned(curve: tuple[Sequence[float], Sequence[float]]) -> tuple[list[float], list[float]]:
    """About :data:`POINTS` points of a curve, including the last one."""
    x, y = curve
    every = max(1, math.ceil(len(x) / POINTS))
    kept = sorted({*range(0, len(x), every), len(x) - 1} if x else ())
    return [x[i] for i in kept], [y[i] for i in kept]


def _curves(axes: Axes, outcomes: Sequence[Outcome], curve: Callable[[Outcome], Band], *, dots: bool = False) -> None:
    values: list[float] = []
    known = _outcome_styles(outcomes)
    for outcome in outcomes:
        line = curve(outcome)
        style = known[outcome.recipe.label]
        axes.plot(line.x, line.middle, linewidth=1.8, zorder=3, **_line_arguments(style, dots=dots))
        if line.low != line.high:
            axes.fill_between(line.x, line.low, line.high, color=style.color, alpha=0.15, linewidth=0, zorder=2)
        if not _all_diverged(outcome):
            values += [value for value in (*line.low, *line.high) if math.isfinite(value)]
    _set_limits(axes, values)
    axes.set_xlim(left=0)
    axes.grid(color="#dddddd", linewidth=0.6, zorder=1)


def _all_diverged(outcome: Outcome) -> bool:
    return all(map(_has_diverged, outcome.records))


def _set_limits(axes: Axes, values: Sequence[float]) -> None:
    """Fit the y-axis to ``values``; diverged curves leave it."""
    if not values:
        return
    low, high = min(values), max(values)
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(low / 1.25, high * 1.25)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _outcome_styles(outcomes: Sequence[Outcome]) -> dict[str, Style]:
    return styles([outcome.recipe.label for outcome in outcomes])


def _line_arguments(style: Style, *, dots: bool) -> dict[str, Any]:
    return {**style._asdict(), **({"marker": style.marker, "markersize": 4} if dots else {})}


def _times(axes: Axes, optimizers: Sequence[Mapping[str, Any]]) -> None:
    """The model's and the optimizer's part of a step: as bars, or as points on a logarithmic scale."""
    known = [each for each in optimizers if each["share"] is not None]
    known_styles = styles([each["label"] for each in optimizers])
    parts = [each[key] for each in known for key in ("model_ms", "optimizer_ms")]
    low, high = min(parts, default=1.0), max(parts, default=1.0)
    logarithmic = low > 0 and high > LOG_RATIO * low
    if logarithmic:  # the length of a bar has no meaning on this scale
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    for place, each in enumerate(known):
        share = f" ({100 * each['share']:.0f} %)"
        for shift, key, color, label in (
            (-0.19, "model_ms", "#9a9a9a", " model"),
            (0.19, "optimizer_ms", known_styles[each["label"]].color, f" optimizer{share}"),
        ):
            value = each[key]
            if logarithmic:
                axes.hlines(place + shift, low / 2, value, color=color, linewidth=1.2, zorder=2)
                axes.plot([value], [place + shift], "o", color=color, markersize=8, zorder=3)
            else:
                axes.barh(place + shift, value, color=color, height=0.34, zorder=2)
            axes.annotate(
                f"{number(value, 3)} ms{label}", (value, place + shift), (8, 0), textcoords="offset points", va="center"
            )
    if logarithmic:
        axes.set_xlim(low / 2, high * (2 * high / low) ** 0.9)  # leave space for the text of the longest bar
    else:
        axes.set_xlim(0, 1.7 * high or 1.0)
    axes.set_yticks(range(len(known)), [_drawable(each["label"]) for each in known], **{"parse_math": False})
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    about = "medians, with the optimizer's share of the step" + ("; logarithmic scale" if logarithmic else "")
    _finish(axes, "Step time of model and optimizer", about, "milliseconds per step")


def _finish(axes: Axes, title: str, about: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"{title}\n", loc="left", fontweight="bold").set_parse_math(False)
    axes.text(0, 1.025, about, transform=axes.transAxes, color=GRAY, fontsize=9.5).set_parse_math(False)
    axes.set_xlabel(unit, color=GRAY)
    if unit == STEP:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(length=0, which="both")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, outcomes: Sequence[Outcome], *, dots: bool) -> None:
    from matplotlib.lines import Line2D

    known = _outcome_styles(outcomes)
    handles = [
        Line2D(
            [],
            [],
            linewidth=2.2,
            label=_drawable(outcome.recipe.label) + (" (diverged)" if _all_diverged(outcome) else ""),
            **_line_arguments(known[outcome.recipe.label], dots=dots),
        )
        for outcome in outcomes
    ]
    columns = min(len(handles), 4 if len(handles) != 5 else 3)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.4)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _drawable(text: str) -> str:
    """``text`` in characters that the font has, clipped to the available space."""
    return clipped("".join(each if 32 <= ord(each) < 0x17F else "?" for each in text), 24)
