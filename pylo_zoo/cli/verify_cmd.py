"""``pylo-zoo verify DIR_OR_NAME``: does the artifact compute what its JAX original computes?"""

from __future__ import annotations

from typing import Annotated

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.errors import ZooError

EXAMPLES = """
pylo-zoo verify zoo/celo
pylo-zoo verify zoo/mine --source theta.state --json
pylo-zoo verify velo-sample
"""


def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="DIR_OR_NAME",
            help="An artifact's directory, or a registry name.",
            autocompletion=complete.names,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_URI", help="The original checkpoint.  [default: the copy that convert kept]"),
    ] = None,
    offline: output.Offline = False,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare an artifact with its JAX original.

    Exits with status 1 unless parity passes. The report is also written to the artifact's parity.json.
    """
    from pylo_zoo import parity

    access = output.access(offline=offline, lock=None, update_lock=False, quiet=quiet)
    report = parity.verify_target(target, source, access=access)
    output.emit(report.to_dict(), report.status if quiet else report.render, json=json)
    if report.status == "not_run":
        hint = (
            "pip install 'pylo-zoo[jax]'." if parity.jax_is_missing() else "No proof of this artifact is possible here."
        )
        raise ZooError(f"Parity of {report.name} was not checked: {report.reason}.", hint)
    if not report.passed:
        raise ZooError(
            f"{report.name} does not compute what its original computes.",
            "Each FAILED line names the worst parameter; convert the original again, or report a bug.",
        )
