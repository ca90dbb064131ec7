"""``pylo-zoo inspect FILE``: what a checkpoint is, and what would stop its conversion."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pylo_zoo.convert import Inspection

EXAMPLES = """
pylo-zoo inspect theta.state
pylo-zoo inspect theta.state --json
"""


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint's file, or its directory.")],
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
) -> None:
    """Show what a file is, and what would stop its conversion.

    Format, family, architecture and every leaf. Nothing is written.
    """
    from pylo_zoo import convert

    found = convert.inspect(file)
    output.emit(found.to_dict(), lambda console: _show(found, file, console), json=json)


def _show(found: Inspection, file: Path, console: Console) -> None:
    console.print(output.printable(found.file), style="bold cyan", soft_wrap=True)
    exported = "byte for byte" if found.exact else "as a theta.state (--theta); not byte for byte"
    _rows(
        console,
        {
            "format": found.format,
            "size": f"{output.size(found.bytes)} ({found.bytes:,} bytes)",
            "sha256": found.sha256,
            "registry": found.matched or "no entry has this sha256",
            "family": " or ".join(found.families) or "none that is known",
            **({"export": exported} if found.families else {}),
        },
    )
    for title, values in (("Architecture", found.architecture), ("Behaviour, as its files say", found.behavior)):
        if values:
            console.print(f"\n{title}", style="bold")
            _rows(console, values)
    console.print(f"\n{len(found.leaves)} leaves", style="bold")
    leaves = [
        (output.printable(leaf.path), " × ".join(map(str, leaf.shape)) or "scalar", leaf.dtype) for leaf in found.leaves
    ]
    widest = [max((len(leaf[column]) for leaf in leaves), default=0) for column in range(3)]
    # A long name pushes its own line out rather than all of them, and nothing is cut off.
    width = max(min(widest[0], console.width - widest[1] - widest[2] - 6), 1)
    for path, shape, dtype in leaves:
        console.print(f"  {path:<{width}}  {shape:<{widest[1]}}  {dtype}", soft_wrap=True)
    if found.problems:
        console.print("\nWhat stops a conversion", style="bold red")
        for problem in found.problems:
            console.print(f"  {output.printable(problem)}")
    if found.needs:
        console.print("\nIt converts, if that is meant, with", style="bold")
    elif not found.problems:
        console.print("\nNothing stops a conversion", style="bold green")
    if found.needs or not found.problems:
        for family in found.families:
            flags = "".join(f" {flag}" for flag in found.needs)
            path = output.printable(shlex.quote(str(file)))
            console.print(f"  pylo-zoo convert {family} --source {path}{flags}", soft_wrap=True)
        for note in found.notes:
            console.print(f"  {output.printable(note)}")


def _rows(console: Console, values: Mapping[str, Any]) -> None:
    width = max(map(len, values))
    for key, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        console.print(f"  {key:<{width}}  {output.printable(text)}", soft_wrap=True)
