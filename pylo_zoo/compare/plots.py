"""The figures of a comparison, as PNG: loss by steps and by seconds, held-out data, and where the time goes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pylo_zoo.compare import words
from pylo_zoo.compare.figures import Band, Course, band, diverged, smoothed
from pylo_zoo.compare.looks import Look, looks
from pylo_zoo.compare.plan import LAST
from pylo_zoo.compare.running import Outcome
from pylo_zoo.errors import ZooError
from pylo_zoo.parity.phrases import clipped, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 6.0, 4.2, 200
"""Inches and dots: 1,200 pixels wide, with letters that a phone still shows large enough."""
POINTS = 600
"""Of a curve: more than the figure has room for."""
GREY = "#555555"
FAR = 20
"""Where the longest time is so many times the shortest, the scale is logarithmic."""


def check() -> None:
    """Refuse where there is nothing to draw with.

    Raises:
        ZooError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ZooError("matplotlib, which draws the figures, is missing.", "pip install 'pylo-zoo[train]'") from error


def draw(found: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """Every figure, by file name; the same runs give the same bytes with the same matplotlib.

    Raises:
        ZooError: matplotlib is missing.
    """
    check()
    window = found["last"]
    seeds = len(found["seeds"])
    about = {
        "one": "one seed; ",
        "equal": f"{seeds} seeds, all the same; ",
        "several": f"median of {seeds} seeds, shaded: min–max; ",
    }[words.spreads(found)]
    smooth = f"{about}averaged over {window} steps"

    def by_steps(axes: Axes) -> None:
        _curves(axes, outcomes, lambda each: band([_thinned(_steps(each, i, window)) for i in _sound(each)]))
        _finish(axes, "Training loss by steps", smooth, "step")

    def by_seconds(axes: Axes) -> None:
        _curves(axes, outcomes, lambda each: band([_thinned(_seconds(each, i, window)) for i in _sound(each)]))
        _finish(axes, "Training loss by time", smooth, "seconds, without tuning and evaluations")

    def held_out(axes: Axes) -> None:
        metric = found["task"]["metric"]
        better = "higher" if found["task"]["higher_is_better"] else "lower"
        _curves(axes, outcomes, lambda each: band([_held_out(each, i, metric) for i in _sound(each)]), dots=True)
        _finish(axes, f"Held out: {metric.replace('_', ' ')}", f"{about}{better} is better", "step")

    pictures: dict[str, Callable[[Axes], None]] = {"loss-steps.png": by_steps, "loss-seconds.png": by_seconds}
    if found["task"]["metric"]:
        pictures["held-out.png"] = held_out
    pictures["optimizer-time.png"] = lambda axes: _times(axes, found["optimizers"])
    return {
        name: _png(content, outcomes if name != "optimizer-time.png" else (), dots=name == "held-out.png")
        for name, content in pictures.items()
    }


def _png(content: Callable[[Axes], None], named: Sequence[Outcome], *, dots: bool) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():  # whatever the user's own settings are
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


def _sound(outcome: Outcome) -> list[int]:
    """Runs to draw: those that did not diverge, which would cut the band short or blow it up; if all did, those."""
    whole = [i for i, course in enumerate(outcome.courses) if not _broken(course)]
    return whole or [i for i, course in enumerate(outcome.courses) if course.losses]


def _broken(course: Course) -> bool:
    return diverged(course, max(1, round(LAST * len(course.losses)))) is not None


def _steps(outcome: Outcome, i: int, window: int) -> tuple[list[float], list[float]]:
    losses = smoothed(outcome.courses[i].losses, window)
    return [float(step + 1) for step in range(len(losses))], losses


def _seconds(outcome: Outcome, i: int, window: int) -> tuple[list[float], list[float]]:
    passed, times = 0.0, []
    for each in outcome.courses[i].seconds:
        passed += each
        times.append(passed)
    return times, smoothed(outcome.courses[i].losses, window)


def _held_out(outcome: Outcome, i: int, metric: str) -> tuple[list[float], list[float]]:
    known = {step: each[metric] for step, each in sorted(outcome.courses[i].evaluations.items()) if metric in each}
    return [float(step) for step in known], list(known.values())


def _thinned(curve: tuple[Sequence[float], Sequence[float]]) -> tuple[list[float], list[float]]:
    """A curve of at most some 600 points, the last one among them."""
    x, y = curve
    every = max(1, math.ceil(len(x) / POINTS))
    kept = sorted({*range(0, len(x), every), len(x) - 1} if x else ())
    return [x[i] for i in kept], [y[i] for i in kept]


def _curves(axes: Axes, outcomes: Sequence[Outcome], curve: Callable[[Outcome], Band], *, dots: bool = False) -> None:
    values: list[float] = []
    known = _looks(outcomes)
    for outcome in outcomes:
        found = curve(outcome)
        look = known[outcome.recipe.label]
        axes.plot(found.x, found.middle, linewidth=1.8, zorder=3, **_line(look, dots=dots))
        if found.low != found.high:
            axes.fill_between(found.x, found.low, found.high, color=look.color, alpha=0.15, linewidth=0, zorder=2)
        if not _lost(outcome):
            values += [value for value in (*found.low, *found.high) if math.isfinite(value)]
    _limit(axes, values)
    axes.set_xlim(left=0)
    axes.grid(color="#dddddd", linewidth=0.6, zorder=1)


def _lost(outcome: Outcome) -> bool:
    """Whether every run diverged."""
    return all(map(_broken, outcome.courses))


def _limit(axes: Axes, values: Sequence[float]) -> None:
    """Have ``values`` fill the height; what diverged leaves it."""
    if not values:
        return
    low, high = min(values), max(values)
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(low / 1.25, high * 1.25)
    else:
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)


def _looks(outcomes: Sequence[Outcome]) -> dict[str, Look]:
    return looks([outcome.recipe.label for outcome in outcomes])


def _line(look: Look, *, dots: bool) -> dict[str, Any]:
    return {**look._asdict(), **({"marker": look.marker, "markersize": 4} if dots else {})}


def _times(axes: Axes, optimizers: Sequence[Mapping[str, Any]]) -> None:
    """For each optimizer its part of a step, below the model's: bars, or points where a bar would be a hairline."""
    known = [each for each in optimizers if each["share"] is not None]
    known_looks = looks([each["label"] for each in optimizers])
    parts = [each[key] for each in known for key in ("model_ms", "optimizer_ms")]
    low, high = min(parts, default=1.0), max(parts, default=1.0)
    far = low > 0 and high > FAR * low
    if far:  # the length of a bar means nothing there, the place of a point does
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    for place, each in enumerate(known):
        share = f" ({100 * each['share']:.0f} %)"
        for shift, key, colour, more in (
            (-0.19, "model_ms", "#9a9a9a", " model"),
            (0.19, "optimizer_ms", known_looks[each["label"]].color, f" optimizer{share}"),
        ):
            value = each[key]
            if far:
                axes.hlines(place + shift, low / 2, value, color=colour, linewidth=1.2, zorder=2)
                axes.plot([value], [place + shift], "o", color=colour, markersize=8, zorder=3)
            else:
                axes.barh(place + shift, value, color=colour, height=0.34, zorder=2)
            axes.annotate(
                f"{number(value, 3)} ms{more}", (value, place + shift), (8, 0), textcoords="offset points", va="center"
            )
    if far:
        axes.set_xlim(low / 2, high * (2 * high / low) ** 0.9)  # room for the text of the longest
    else:
        axes.set_xlim(0, 1.7 * high or 1.0)
    axes.set_yticks(range(len(known)), [_safe(each["label"]) for each in known], **{"parse_math": False})
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    about = "medians, with the optimizer's share of both" + ("; the scale is logarithmic" if far else "")
    _finish(axes, "Where a step's time goes", about, "milliseconds a step")


def _finish(axes: Axes, title: str, about: str, unit: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontweight="bold").set_parse_math(False)
    axes.text(0, 1.025, about, transform=axes.transAxes, color=GREY, fontsize=9.5).set_parse_math(False)
    axes.set_xlabel(unit, color=GREY)
    axes.tick_params(length=0, which="both")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, outcomes: Sequence[Outcome], *, dots: bool) -> None:
    from matplotlib.lines import Line2D

    lost = {True: " (diverged)", False: ""}
    known = _looks(outcomes)
    handles = [
        Line2D(
            [],
            [],
            linewidth=2.2,
            label=_safe(outcome.recipe.label) + lost[_lost(outcome)],
            **_line(known[outcome.recipe.label], dots=dots),
        )
        for outcome in outcomes
    ]
    columns = min(len(handles), 4 if len(handles) != 5 else 3)
    made = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.4)
    for text in made.get_texts():
        text.set_parse_math(False)


def _safe(text: str) -> str:
    """``text`` in letters that the font has, and not longer than fits."""
    return clipped("".join(each if 32 <= ord(each) < 0x17F else "?" for each in text), 24)
