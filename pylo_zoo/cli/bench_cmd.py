"""``pylo-zoo bench``: the time and memory of an optimizer step, compared with fused AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylo_zoo.cli import output
from pylo_zoo.cli.training import LINE_SECONDS
from pylo_zoo.errors import ZooError, count

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.experiments.bench import BenchPlan, Report
    from pylo_zoo.experiments.bench.run import Progress

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
            help="Optimizers, separated by commas: a name from the list above, a name from `pylo-zoo list`, an "
            "artifact directory, or random:FAMILY.",
        ),
    ] = "all",
    shapes: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Parameter shapes: gpt, resnet18, square, many, tiny, or all (all except tiny)."
        ),
    ] = "gpt",
    backends: Annotated[
        str, typer.Option(metavar="NAMES", help="eager, fused, or all (both). Ignored for torch's own optimizers.")
    ] = "all",
    steps: Annotated[
        int, typer.Option(min=3, max=output.MAX_STEPS, metavar="N", help="Maximum number of step pairs to time.")
    ] = 30,
    seconds: Annotated[
        float,
        typer.Option(
            callback=output.finite,
            metavar="X",
            help="Time limit for the whole benchmark. A measurement that has started gets at least three pairs.",
        ),
    ] = 300.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=output.MAX_THREADS, metavar="N", help="CPU threads.  [default: torch's]"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="Parameter dtype: float32, bfloat16, float16 or float64.")
    ] = "float32",
    memory: Annotated[
        bool,
        typer.Option(
            "--memory/--no-memory", help="Measure the peak memory of a step, in a new process per measurement."
        ),
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every measurement as JSON.", readable=False)
    ] = None,
    saved: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Print the results in a file that --out wrote.", readable=False),
    ] = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Time an optimizer step and compare it with fused AdamW.

    The optimizer and AdamW take turns in one process, one step each. Peak memory is measured too.

    Learned optimizers: every family, such as velo or celo2-base, with random weights of the published sizes (the time
    does not depend on the values), and velo-sample. Baselines: muon, adamw, adamw-foreach, adamw-loop. Parts:
    celo2-rule is CELO2 without Newton–Schulz, newton-schulz is Newton–Schulz alone, compared with its matrix products.

    Timings are noisy: quote the ratio with its quartiles, and name the machine.
    """
    from pylo_zoo.artifact import check_not_own_file
    from pylo_zoo.experiments.bench import BenchPlan, read, write
    from pylo_zoo.experiments.bench import bench as measure
    from pylo_zoo.experiments.bench.run import names_of
    from pylo_zoo.files import check_target

    if saved is not None:
        report = read(saved)
    else:
        names = names_of(optimizers), names_of(shapes), names_of(backends)
        plan = BenchPlan(*names, steps, seconds, threads, device, dtype, memory)
        if out is not None:
            check_target(out)
            check_not_own_file(out)
        with output.naming_option("--optimizers"), output.progress(quiet=quiet, every=LINE_SECONDS) as progress:
            report = measure(plan, _announcing(plan, progress, quiet=quiet))
    if out is not None:
        write(report, out)
    human = _summary(report) if quiet else lambda console: _show(report, console)
    output.emit(report.to_dict(), human, json=json)
    _check(report)


def _announcing(plan: BenchPlan, progress: Progress, *, quiet: bool) -> Progress:
    """``progress``, with a note before the first measurement: how many there are and the time limit."""

    def announce(what: str, done: int, total: int) -> None:
        if done == 0:
            memory = ", with memory in a new process (skip that with --no-memory)" if plan.memory else ""
            output.note(
                f"{count(total, 'measurement')}{memory}; time limit {plan.seconds:g} s (--seconds)", quiet=quiet
            )
        progress(what, done, total)

    return announce


def _check(report: Report) -> None:
    """Raise an error if measurements failed, diverged or are missing."""
    if report.diverged:
        cell = report.diverged[0]
        raise ZooError(
            f"{cell.optimizer} on {cell.shapes} diverged to NaN or infinity, so its times are not representative.",
            "Use other weights or another dtype.",
        )
    if failed := [each for each in report.left_out if each.failed]:
        raise ZooError(
            f"{failed[0].optimizer} on {failed[0].shapes}: {failed[0].why}.", "Leave it out of --optimizers."
        )
    if not report.cells:
        raise ZooError("Nothing was measured.", "Increase --seconds or choose other --shapes.")


def _summary(report: Report) -> str:
    return "\n".join(f"{cell.shapes} {cell.optimizer} {cell.backend} {cell.ratio.median:.4g}" for cell in report.cells)


def _show(report: Report, console: Console) -> None:
    from rich.table import Table

    from pylo_zoo.experiments.bench import tables

    machine = report.machine
    console.print(output.printable(tables.about_machine(machine, report.asked["dtype"])))
    terms: set[str] = set()
    for name, cells in tables.by_shapes(report).items():
        console.print(f"\n{output.printable(tables.title(name, cells))}", style="bold")
        columns = tables.fitting(cells, machine, console.width)
        terms |= {column.heading for column in columns} | {cell.optimizer for cell in cells}
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(column.heading, no_wrap=True, justify="left" if column is columns[0] else "right")
        for cell in cells:
            table.add_row(*(output.printable(column.text(cell, machine)) for column in columns))
        console.print(table)
    if terms:
        console.print(f"\n{tables.legend(terms)}")
    for line in tables.absences(report):
        console.print(f"Left out: {output.printable(line)}.")
    for line in tables.incomplete(report):
        console.print(f"{output.printable(line)}.")
