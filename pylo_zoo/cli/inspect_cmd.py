"""``pylo-zoo inspect FILE``: describe a checkpoint and list what prevents its conversion."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import output
from pylo_zoo.errors import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pylo_zoo.convert import Inspection

EXAMPLES = """
pylo-zoo inspect theta.state
pylo-zoo inspect theta.state --json
"""


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File or directory of a checkpoint.", readable=False)],
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
) -> None:
    """Describe a checkpoint and what prevents its conversion.

    It prints format, family, architecture and every leaf. It writes nothing.
    """
    from pylo_zoo import convert

    inspection = convert.inspect(file)
    output.emit(inspection.to_dict(), lambda console: _show(inspection, file, console), json=json)


def _show(inspection: Inspection, file: Path, console: Console) -> None:
    console.print(output.printable(inspection.file), style="bold cyan", soft_wrap=True)
    exported = "byte for byte" if inspection.exact else "as a theta.state (--theta), not byte for byte"
    _rows(
        console,
        {
            "format": inspection.format,
            "size": f"{output.size(inspection.bytes)} ({count(inspection.bytes, 'byte')})",
            "sha256": inspection.sha256,
            "registry": inspection.matched or "no entry has this sha256",
            "family": " or ".join(inspection.families) or "unknown",
            **({"export": exported} if inspection.families else {}),
        },
    )
    for title, values in (
        ("Architecture", inspection.architecture),
        ("Behavior, as stored in its files", inspection.behavior),
    ):
        if values:
            console.print(f"\n{title}", style="bold")
            _rows(console, values)
    console.print(f"\n{count(len(inspection.leaves), 'leaf')}", style="bold")
    leaves = [
        (output.printable(leaf.path), " × ".join(map(str, leaf.shape)) or "scalar", leaf.dtype)
        for leaf in inspection.leaves
    ]
    widest = [max((len(leaf[column]) for leaf in leaves), default=0) for column in range(3)]
    width = max(min(widest[0], console.width - widest[1] - widest[2] - 6), 1)  # a longer path widens only its own line
    for path, shape, dtype in leaves:
        console.print(f"  {path:<{width}}  {shape:<{widest[1]}}  {dtype}", soft_wrap=True)
    if inspection.problems:
        console.print("\nProblems that prevent conversion", style="bold red")
        for problem in inspection.problems:
            console.print(f"  {output.printable(problem)}")
    if inspection.needs:
        console.print("\nTo convert it anyway, run", style="bold")
    elif not inspection.problems:
        console.print("\nReady to convert", style="bold green")
    if inspection.needs or not inspection.problems:
        for family in inspection.families:
            flags = "".join(f" {flag}" for flag in inspection.needs)
            path = output.printable(shlex.quote(str(file)))
            console.print(f"  pylo-zoo convert {family} --source {path}{flags}", soft_wrap=True)
        for note in inspection.notes:
            console.print(f"  {output.printable(note)}")


def _rows(console: Console, values: Mapping[str, Any]) -> None:
    width = max(map(len, values))
    for key, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        console.print(f"  {key:<{width}}  {output.printable(text)}", soft_wrap=True)
