"""The report as tables, one per shape set, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pylo_zoo.errors import count
from pylo_zoo.experiments.bench.report import FEWER, Cell, LeftOut, Machine, Report
from pylo_zoo.experiments.bench.shapes import SHAPE_SETS

NONE = "–"


class Column(NamedTuple):
    """A column: heading, cell text, and rank. A narrow terminal drops high ranks first, and never rank 0."""

    heading: str
    text: Callable[[Cell, Machine], str]
    rank: int = 0


COLUMNS: Sequence[Column] = (
    Column("optimizer", lambda cell, _: cell.optimizer),
    Column("backend", lambda cell, _: cell.backend),
    Column("ms", lambda cell, _: format_number(1000 * cell.time.median) + ("" if cell.finite else " NaN")),
    Column("min ms", lambda cell, _: format_number(1000 * cell.time.least), 8),
    Column("AdamW ms", lambda cell, _: format_number(1000 * cell.against_time.median), 4),
    Column("ratio", lambda cell, _: format_number(cell.ratio.median)),
    Column("quartiles", lambda cell, _: f"{format_number(cell.ratio.lower)}–{format_number(cell.ratio.upper)}", 3),
    Column("of min", lambda cell, _: format_number(cell.least_ratio), 2),
    Column("pairs", lambda cell, _: str(len(cell.seconds)), 7),
    Column("copied B", lambda cell, machine: format_number(cell.moved_per_parameter(machine.copies)), 6),
    Column("state B", lambda cell, _: format_number(cell.state_per_parameter), 5),
    Column("peak B", lambda cell, _: format_number(cell.peak_per_parameter), 1),
    Column("peak ratio", lambda cell, _: format_number(cell.peak_ratio), 9),
)
LEGEND: Sequence[tuple[str, str]] = (
    ("ms", "ms: median step time."),
    ("ratio", "ratio: median over pairs of steps, relative to AdamW."),
    ("quartiles", "quartiles: of the ratio."),
    ("of min", "of min: ratio of the minimum times."),
    ("copied B", "copied B: bytes per parameter that this machine can copy in the time of a step."),
    ("state B", "state B: bytes per parameter of the optimizer's state."),
    ("peak B", "peak B: additional bytes per parameter during a step."),
    ("peak ratio", "peak ratio: parameters, gradients and peak, relative to AdamW."),
    ("newton-schulz", "newton-schulz is compared with its matrix products, not with AdamW."),
)
"""A term of the table, which is a heading or an optimizer, and its explanation."""


def legend(terms: Collection[str]) -> str:
    """The explanations of those ``terms`` that have one."""
    return " ".join(text for term, text in LEGEND if term in terms)


def format_number(value: float | None) -> str:
    """Three digits, such as ``0.0123``, ``12.3`` or ``1,230``; ``–`` for None."""
    if value is None:
        return NONE
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    text = f"{rounded:g}"
    return text if "e" not in text else f"{value:.1g}"


def by_shapes(report: Report) -> Mapping[str, list[Cell]]:
    """The cells by shape set. The backends of an optimizer are adjacent."""
    grouped: dict[str, dict[str, list[Cell]]] = {}
    for cell in report.cells:
        grouped.setdefault(cell.shapes, {}).setdefault(cell.optimizer, []).append(cell)
    return {name: [cell for cells in rows.values() for cell in cells] for name, rows in grouped.items()}


def fitting(cells: Sequence[Cell], machine: Machine, width: int | None) -> list[Column]:
    """The columns that fit into ``width`` characters, with two spaces between them; all columns if it is None."""
    columns = list(COLUMNS)
    while width is not None and any(column.rank for column in columns):
        if sum(_width(column, cells, machine) + 2 for column in columns) - 2 <= width:
            break
        columns.remove(max(columns, key=lambda column: column.rank))
    return columns


def _width(column: Column, cells: Sequence[Cell], machine: Machine) -> int:
    return max(len(column.heading), *(len(column.text(cell, machine)) for cell in cells))


def title(name: str, cells: Sequence[Cell]) -> str:
    """A line about a shape set."""
    about = f": {SHAPE_SETS[name].about}" if name in SHAPE_SETS else ""
    return f"{name}{about}; {count(cells[0].parameters, 'parameter')} in {count(cells[0].tensors, 'tensor')}"


def about_machine(machine: Machine, dtype: str) -> str:
    """A line about the machine, its load and the date."""
    cores, threads = count(machine.cores, "core"), count(machine.threads, "thread")
    processor = machine.cpu if machine.device == "cpu" else f"{machine.device} ({machine.cpu})"
    load = f"; load {' to '.join(f'{each:.1f}' for each in machine.load)}" if machine.load else ""
    return (
        f"{processor}, {cores}, {threads}, {dtype}, torch {machine.torch}, {machine.date[:10]}; "
        f"copies {machine.copies / 1e9:.3g} GB/s{load}" + ("; **busy**" if machine.busy else "")
    )


def markdown(*reports: Report) -> str:
    """The tables of one or more reports as Markdown, with one table per shape set."""
    parts = [
        f"Measured on: {about_machine(report.machine, report.asked['dtype'])}. Backends: {backends(report)}."
        for report in reports
    ]
    machines = {id(cell): report.machine for report in reports for cell in report.cells}
    whole = replace(
        reports[0],
        cells=tuple(cell for report in reports for cell in report.cells),
        left_out=tuple(each for report in reports for each in report.left_out),
    )
    for name, cells in by_shapes(whole).items():
        rows = [[column.text(cell, machines[id(cell)]) for column in COLUMNS] for cell in cells]
        lines = [
            f"### {title(name, cells)}",
            "",
            "| " + " | ".join(column.heading for column in COLUMNS) + " |",
            "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2),
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
        parts.append("\n".join(lines))
    if absent := absences(whole):
        parts.append("Left out:\n\n" + "\n".join(f"- {line}" for line in absent))
    if fewer := incomplete(whole):
        parts.append("Fewer pairs than asked:\n\n" + "\n".join(f"- {line}" for line in fewer))
    return "\n\n".join(parts) + "\n"


def backends(report: Report) -> str:
    """The backends that were measured."""
    return ", ".join(dict.fromkeys(cell.backend for cell in report.cells)) or NONE


def absences(report: Report) -> list[str]:
    """What was left out: a line per shape set and reason."""
    return _reasons(each for each in report.left_out if not each.why.startswith(FEWER))


def incomplete(report: Report) -> list[str]:
    """The rows with fewer pairs than asked: a line per shape set and reason."""
    return _reasons(each for each in report.left_out if each.why.startswith(FEWER))


def _reasons(left_out: Iterable[LeftOut]) -> list[str]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for each in left_out:
        grouped.setdefault((each.shapes, each.why), []).append(each.what)
    return [f"{shapes}, {', '.join(names)}: {why}" for (shapes, why), names in grouped.items()]
