"""``pylo-zoo verify DIR_OR_NAME``: does the artifact compute what its JAX original computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pylo_zoo.cli import output
from pylo_zoo.errors import ZooError


def verify(
    target: Annotated[str, typer.Argument(metavar="DIR_OR_NAME", help="An artifact's directory, or a registry name.")],
    source: Annotated[
        Path | None, typer.Option(help="The original checkpoint.  [default: the copy that convert kept]")
    ] = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare an artifact with its JAX original; exit with status 1 unless parity passes.

    The report is also written to the artifact's parity.json.
    """
    from pylo_zoo import parity

    report = parity.verify_target(target, source)
    output.emit(report.to_dict(), report.status if quiet else report.render, json=json)
    if report.status == "not_run":
        raise ZooError(
            f"Parity of {report.name} was not checked: {report.reason}.", "Put that right, and verify again."
        )
    if not report.passed:
        raise ZooError(
            f"{report.name} does not compute what its original computes.",
            "Each FAILED line names the worst parameter; convert the original again, or report a bug.",
        )
