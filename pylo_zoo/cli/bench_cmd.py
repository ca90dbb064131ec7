"""``pylo-zoo bench``: what a step costs, in time and memory, beside fused AdamW's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylo_zoo.cli import output
from pylo_zoo.cli.training import PLAIN
from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.bench import BenchPlan, Report
    from pylo_zoo.bench.run import Progress

EXAMPLES = """
pylo-zoo bench --optimizers celo2,muon --backends fused
pylo-zoo bench --shapes all --seconds 1800 --out times.json
pylo-zoo bench --optimizers zoo/celo --shapes resnet18 --threads 1
pylo-zoo bench --from times.json
"""


def bench(
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Separated by commas: see below, a name of `pylo-zoo list`, or an artifact's directory.",
        ),
    ] = "all",
    shapes: Annotated[
        str, typer.Option(metavar="NAMES", help="gpt, resnet18, square, many, tiny; all is all but tiny.")
    ] = "gpt",
    backends: Annotated[
        str, typer.Option(metavar="NAMES", help="eager, fused, or both by all; torch's own have no choice.")
    ] = "all",
    steps: Annotated[
        int, typer.Option(min=3, max=output.MOST_STEPS, metavar="N", help="Pairs of steps, at most.")
    ] = 30,
    seconds: Annotated[
        float,
        typer.Option(
            callback=output.finite, metavar="X", help="For everything; what has begun still gets three pairs."
        ),
    ] = 300.0,
    threads: Annotated[
        int | None, typer.Option(min=1, max=output.MOST_THREADS, metavar="N", help="[default: torch's]")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="Of the parameters: float32, bfloat16, float16 or float64.")
    ] = "float32",
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure a step's peak, each in a new process.")
    ] = True,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every time as JSON, too.")] = None,
    saved: Annotated[Path | None, typer.Option("--from", metavar="FILE", help="Show what --out wrote.")] = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Time an optimizer's step against fused AdamW's.

    Pairs of steps are made in turn, in one process; memory is measured as well.

    Optimizers: velo, celo, celo-adam, celo2, celo2-base, elo, elo-celo2, adafac-mlp, mulo with random weights of the
    published sizes (the time does not depend on their values), velo-sample, muon, adamw, adamw-foreach, adamw-loop;
    celo2-rule is CELO2 without Newton–Schulz, newton-schulz that alone, against its matrix products.

    Machines are noisy: quote the ratio with its quartiles, and the machine.
    """
    from pylo_zoo.bench import BenchPlan, read, write
    from pylo_zoo.bench import bench as measure
    from pylo_zoo.bench.run import names_of

    if saved is not None:
        report = read(saved)
    else:
        names = names_of(optimizers), names_of(shapes), names_of(backends)
        plan = BenchPlan(*names, steps, seconds, threads, device, dtype, memory)
        if out is not None and (out.is_dir() or not out.parent.is_dir()):
            raise ZooError(f"{out} cannot be written.", "Give a file in a directory that is there.")
        with output.progress(quiet=quiet, every=PLAIN) as tell:
            report = measure(plan, _beginning(plan, tell, quiet=quiet))
    if out is not None:
        write(report, out)
    human = _essential(report) if quiet else lambda console: _show(report, console)
    output.emit(report.to_dict(), human, json=json)
    _judge(report)


def _beginning(plan: BenchPlan, tell: Progress, *, quiet: bool) -> Progress:
    """``tell``, which says before all else how much there is to do, and how long that may take."""

    def listen(what: str, done: int, total: int) -> None:
        if done == 0:
            new = ", each one's memory in a new process (--no-memory leaves that out)" if plan.memory else ""
            output.note(f"{total} to measure{new}; --seconds ends it after {plan.seconds:g}", quiet=quiet)
        tell(what, done, total)

    return listen


def _judge(report: Report) -> None:
    """Exit status 1 where the figures are not what they seem."""
    if report.diverged:
        cell = report.diverged[0]
        raise ZooError(
            f"{cell.optimizer} on {cell.shapes} ended in NaN or infinities: its times are those of such numbers.",
            "Use other weights, or another dtype.",
        )
    if failed := [each for each in report.left_out if each.failed]:
        raise ZooError(f"{failed[0].optimizer} on {failed[0].shapes}: {failed[0].why}.", "Leave it out, or make room.")
    if not report.cells:
        raise ZooError("Nothing was measured.", "Give more --seconds, or other --shapes.")


def _essential(report: Report) -> str:
    return "\n".join(f"{cell.shapes} {cell.optimizer} {cell.backend} {cell.ratio.median:.4g}" for cell in report.cells)


def _show(report: Report, console: Console) -> None:
    from rich.table import Table

    from pylo_zoo.bench import tables

    machine = report.machine
    console.print(output.printable(tables.about_machine(machine, report.asked["dtype"])))
    for name, cells in tables.by_shapes(report).items():
        console.print(f"\n{output.printable(tables.title(name, cells))}", style="bold")
        columns = tables.fitting(cells, machine, console.width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(column.heading, no_wrap=True, justify="left" if column is columns[0] else "right")
        for cell in cells:
            table.add_row(*(output.printable(column.text(cell, machine)) for column in columns))
        console.print(table)
    console.print(f"\n{tables.LEGEND}")
    for line in tables.absences(report):
        console.print(f"Left out: {output.printable(line)}.")
