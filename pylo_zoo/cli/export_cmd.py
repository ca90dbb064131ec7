"""``pylo-zoo export DIR``: write an artifact as a JAX checkpoint, the original one if its format was flax msgpack."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from pylo_zoo.cli import output
from pylo_zoo.errors import count

EXAMPLES = """
pylo-zoo export zoo/celo --out theta.state
pylo-zoo export zoo/mine --out theta.state --theta --force
"""


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of an artifact.", readable=False)],
    out: Annotated[Path, typer.Option(help="The file to write, such as theta.state.", readable=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    theta: Annotated[
        bool, typer.Option("--theta", help="Write a JAX theta.state, whatever format the source had.")
    ] = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Write the original checkpoint, byte for byte.

    With --theta, write the weights as a theta.state for JAX instead.
    """
    from pylo_zoo import convert

    data, identical = convert.export_file(directory, out, force=force, theta=theta)
    sha256 = hashlib.sha256(data).hexdigest()
    values = {"file": str(out), "bytes": len(data), "sha256": sha256, "identical": identical}
    content = "identical to the source" if identical else "same weights as the source"
    path = output.printable(str(out))
    human = path if quiet else f"{path}: {count(len(data), 'byte')}, {content}\n  sha256 {sha256}"
    output.emit(values, human, json=json)
