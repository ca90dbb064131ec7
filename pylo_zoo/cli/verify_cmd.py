"""``pylo-zoo verify DIR_OR_NAME``: does the artifact compute what its JAX original computes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from pylo_zoo.parity import Report
    from pylo_zoo.parity.targets import VerifyResults

EXAMPLES = """
pylo-zoo verify zoo/celo
pylo-zoo verify zoo/mine --source theta.state --html parity.html
pylo-zoo verify zoo/mine --replay
pylo-zoo verify random:celo2 --explain
pylo-zoo verify --all --offline --junit parity.xml
"""


def verify(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR_OR_NAME",
            help="An artifact's directory, a registry name, hf://ORG/NAME, or random:FAMILY for random weights.",
            autocompletion=complete.names,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_URI", help="The original checkpoint.  [default: the copy that convert kept]"),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Every registry entry at hand, and every family.")] = False,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="With --all: entries whose files are unavailable fail, too.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Without JAX: compare with the vectors that the proof left.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the chain of quantities where it comes nearest to its bounds.")
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=output.finite,
            metavar="X",
            help="Largest float64 error of a step, in updates.  [default: 1e-10]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=output.LARGEST_SEED, help="Of everything random.")] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with every figure.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table for a model card.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    token: output.Token = None,
    lock: output.Lock = None,
    offline: output.Offline = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare an artifact with its JAX original.

    Every intermediate quantity of single steps is compared, and whole runs; planted faults have to be caught.

    Exits with status 0 if parity passes, 1 if it fails or could not be checked, 2 on wrong usage. The report and the
    vectors for --replay are also written into the artifact's directory.
    """
    if all == (target is not None):
        raise typer.BadParameter("Give one DIR_OR_NAME, or --all.")
    if all and (source is not None or replay or explain):
        raise typer.BadParameter("--all goes without --source, --replay and --explain.")
    if require_all and not all:
        raise typer.BadParameter("--require-all goes with --all.")
    if replay and (source is not None or max_error is not None or seed):
        raise typer.BadParameter("--replay goes without --source, --max-error and --seed.")
    from pylo_zoo.parity import targets

    pages = targets.Pages(html, markdown, junit)
    targets.check_pages(pages)
    access = output.access(offline=offline, lock=lock, quiet=quiet, token=token)
    with output.progress(quiet=quiet) as progress:
        settings = targets.VerifySettings(seed=seed, progress=progress)
        settings = settings if max_error is None else targets.VerifySettings(seed, max_error, progress)
        if all:
            found = targets.verify_all(access, settings)
        elif replay:
            found = targets.VerifyResults([targets.replay_target(target or "", access=access)])
        else:
            report = targets.verify_target(target or "", source, access=access, settings=settings)
            found = targets.VerifyResults([report])
    if all:
        _show_all(found, json, quiet)
    else:
        _show(found.reports[0], explain, json, quiet)
    targets.write_pages(found, pages)
    _judge(found, require_all)


def _show(report: Report, explain: bool, json: bool, quiet: bool) -> None:
    from pylo_zoo.parity import tables

    human = report.status if quiet else lambda console: tables.print_report(report, console, explained=explain)
    output.emit(report.to_dict(), human, json=json)


def _show_all(found: VerifyResults, json: bool, quiet: bool) -> None:
    from pylo_zoo.parity import tables

    status = "passed" if found.passed else "failed"
    data = {
        "status": status,
        "reports": [report.to_dict() for report in found.reports],
        "missing": found.missing,
        "broken": found.broken,
    }
    human = status if quiet else lambda console: tables.summary(found.reports, found.missing, found.broken, console)
    output.emit(data, human, json=json)


def _judge(found: VerifyResults, require_all: bool) -> None:
    """Raise what ends the command with status 1, unless everything passed."""
    from pylo_zoo.parity import jax_is_missing, phrases

    for name, reason in found.broken.items():
        raise ZooError(f"{name} could not be checked: {reason}", "The other entries are in the report.")

    for report in found.reports:
        if report.status == "not_run":
            install = "pip install 'pylo-zoo[jax]'; `--replay` needs no JAX, where an artifact has its vectors."
            hint = install if jax_is_missing() else "No proof of this artifact is possible here."
            raise ZooError(f"Parity of {report.name} was not checked: {report.reason}.", hint)
    failed: Sequence[str] = [report.name for report in found.reports if not report.passed]
    if failed:
        missed = [control.name for report in found.reports for control in report.missed]
        if any(report.untried for report in found.reports):
            raise ZooError("No planted fault could be tried.", "So this run proves nothing; report it.")
        if missed:
            raise ZooError(
                f"{', '.join(failed)}: a planted fault was not caught ({', '.join(missed)}).",
                "So this run proves nothing; report it, with the checkpoint.",
            )
        first = next(report for report in found.reports if not report.passed)
        raise ZooError(
            f"{', '.join(failed)} does not compute what its original computes.", phrases.where_to_look(first)
        )
    if require_all and found.missing:
        raise ZooError(
            f"{len(found.missing)} entries could not be had: {', '.join(found.missing)}.",
            "Fetch them where there is network (`pylo-zoo convert NAME`), or leave --require-all out.",
        )
