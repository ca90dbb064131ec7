"""``pylo-zoo verify DIR_OR_NAME``: check an artifact against its JAX original."""

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
            help="An artifact directory, a registry name, hf://ORG/NAME, or random:FAMILY for random weights.",
            autocompletion=complete.names,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_URI", help="The original checkpoint.  [default: the copy that convert kept]"),
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Verify every family and every registry entry whose files are available.")
    ] = False,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="With --all: fail if the files of an entry are unavailable.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Compare with the vectors stored by an earlier proof; needs no JAX.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the chain of quantities that comes closest to its bounds.")
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=output.finite,
            metavar="X",
            help="Largest allowed float64 error of a step, relative to the update.  [default: 1e-10]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=output.MAX_SEED, help="Seed of the random inputs.")] = 0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with all results.", readable=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table for a model card.", readable=False)
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.", readable=False)] = None,
    token: output.Token = None,
    lock: output.Lock = None,
    offline: output.Offline = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare an artifact with its JAX original.

    The check compares every intermediate quantity of single steps, and whole runs. It also plants faults and must catch
    them.

    The exit status is 0 if parity passes, 1 if it fails or could not be checked, 2 on wrong usage. The report and the
    vectors for --replay are also written to the artifact directory.
    """
    if all == (target is not None):
        raise typer.BadParameter("Pass one DIR_OR_NAME, or --all.")
    if all and (source is not None or replay or explain):
        raise typer.BadParameter("--all cannot be combined with --source, --replay or --explain.")
    if require_all and not all:
        raise typer.BadParameter("--require-all requires --all.")
    if replay and (source is not None or max_error is not None or seed):
        raise typer.BadParameter("--replay cannot be combined with --source, --max-error or --seed.")
    from pylo_zoo.parity import targets

    pages = targets.Pages(html, markdown, junit)
    targets.check_pages(pages)
    access = output.access(offline=offline, lock=lock, quiet=quiet, token=token)
    with output.progress(quiet=quiet) as progress:
        settings = targets.VerifySettings(seed=seed, progress=progress)
        settings = settings if max_error is None else targets.VerifySettings(seed, max_error, progress)
        if all:
            results = targets.verify_all(access, settings)
        elif replay:
            results = targets.VerifyResults([targets.replay_target(target or "", access=access)])
        else:
            report = targets.verify_target(target or "", source, access=access, settings=settings)
            results = targets.VerifyResults([report])
    if all:
        _show_all(results, json, quiet)
    else:
        _show(results.reports[0], explain, json, quiet)
    targets.write_pages(results, pages)
    _raise_failures(results, require_all)


def _show(report: Report, explain: bool, json: bool, quiet: bool) -> None:
    from pylo_zoo.report import tables

    human = report.status if quiet else lambda console: tables.print_report(report, console, explained=explain)
    output.emit(report.to_dict(), human, json=json)


def _show_all(results: VerifyResults, json: bool, quiet: bool) -> None:
    from pylo_zoo.report import tables

    status = "passed" if results.passed else "failed"
    data = {
        "status": status,
        "reports": [report.to_dict() for report in results.reports],
        "missing": results.missing,
        "broken": results.broken,
    }
    human = (
        status if quiet else lambda console: tables.summary(results.reports, results.missing, results.broken, console)
    )
    output.emit(data, human, json=json)


def _raise_failures(results: VerifyResults, require_all: bool) -> None:
    """Raise an error unless everything passed."""
    from pylo_zoo.parity import jax_is_missing
    from pylo_zoo.report import phrases

    for name, reason in results.broken.items():
        raise ZooError(f"{name} could not be checked: {reason}", "See the report for the other entries.")

    for report in results.reports:
        if report.status == "not_run":
            install = "Run pip install 'pylo-zoo[jax]', or use --replay if the artifact has stored vectors."
            hint = install if jax_is_missing() else "This artifact cannot be verified here."
            raise ZooError(f"Parity of {report.name} was not checked: {report.reason}.", hint)
    failed: Sequence[str] = [report.name for report in results.reports if not report.passed]
    if failed:
        missed = [control.name for report in results.reports for control in report.missed]
        if any(report.untried for report in results.reports):
            raise ZooError("The run proves nothing because it could try no planted fault.", "Report it as a bug.")
        if missed:
            raise ZooError(
                f"{', '.join(failed)}: the run proves nothing because it missed a planted fault ({', '.join(missed)}).",
                "Report it as a bug, with the checkpoint.",
            )
        first = next(report for report in results.reports if not report.passed)
        raise ZooError(
            f"{', '.join(failed)} does not compute what its original computes.", phrases.where_to_look(first)
        )
    if require_all and results.missing:
        raise ZooError(
            f"The files of these entries are unavailable: {', '.join(results.missing)}.",
            "Fetch them online with `pylo-zoo convert NAME`, or leave --require-all out.",
        )
