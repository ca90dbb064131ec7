"""``pylo-zoo inspect FILE``: what a checkpoint is, and what would stop its conversion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pylo_zoo.convert import Inspection


def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint's file, or its directory.")],
    json: output.Json = False,
) -> None:
    """Show a checkpoint's format, family, architecture and leaves, and what would stop a conversion."""
    from pylo_zoo import convert

    found = convert.inspect(file)
    output.emit(found.to_dict(), lambda console: _show(found, file, console), json=json)


def _show(found: Inspection, file: Path, console: Console) -> None:
    from rich.table import Table

    console.print(found.file, style="bold cyan")
    _rows(
        console,
        {
            "format": found.format,
            "size": f"{output.size(found.bytes)} ({found.bytes:,} bytes)",
            "sha256": found.sha256,
            "registry": found.matched or "no entry has this sha256",
            "family": " or ".join(found.families) or "none that is known",
            "export": "byte for byte" if found.exact else "as a theta.state (--theta); not byte for byte",
        },
    )
    for title, values in (("Architecture", found.architecture), ("Behaviour, as its files say", found.behavior)):
        if values:
            console.print(f"\n{title}", style="bold")
            _rows(console, values)
    console.print(f"\n{len(found.leaves)} leaves", style="bold")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for leaf in found.leaves:
        table.add_row(f"  {leaf.path}", " × ".join(map(str, leaf.shape)) or "scalar", leaf.dtype)
    console.print(table)
    if found.problems:
        console.print("\nWhat stops a conversion", style="bold red")
        for problem in found.problems:
            console.print(f"  {problem}")
    if found.needs:
        console.print("\nIt converts, if that is meant, with", style="bold")
    elif not found.problems:
        console.print("\nNothing stops a conversion", style="bold green")
    if found.needs or not found.problems:
        for family in found.families:
            flags = "".join(f" {flag}" for flag in found.needs)
            console.print(f"  pylo-zoo convert {family} --source {file}{flags}", soft_wrap=True)
        for note in found.notes:
            console.print(f"  {note}")


def _rows(console: Console, values: Mapping[str, Any]) -> None:
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for key, value in values.items():
        table.add_row(key, str(value).lower() if isinstance(value, bool) else str(value))
    console.print(Padding(table, (0, 0, 0, 2)))
