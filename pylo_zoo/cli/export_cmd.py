"""``pylo-zoo export DIR``: an artifact back into the JAX checkpoint that it was converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pylo_zoo.cli import output


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact's directory.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as theta.state.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Write the original checkpoint again, byte for byte."""
    from pylo_zoo import convert

    data, sha256 = convert.export_file(directory, out, force=force)
    values = {"file": str(out), "bytes": len(data), "sha256": sha256, "identical": True}
    human = str(out) if quiet else f"{out}: {len(data):,} bytes, the source's own\n  sha256 {sha256}"
    output.emit(values, human, json=json)
