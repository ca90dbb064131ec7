"""``pylo-zoo list``: list the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from pylo_zoo.registry import Entry

EXAMPLES = """
pylo-zoo list
pylo-zoo list --json
pylo-zoo list -q
"""


def list_checkpoints(json: output.Json = False, quiet: output.Quiet = False) -> None:
    """List the checkpoints in the registry (with -q only their names)."""
    from pylo_zoo.registry import load_registry

    entries = load_registry().values()
    data = {
        "checkpoints": [
            {
                "name": entry.name,
                "family": entry.family,
                "summary": entry.summary,
                "bytes": entry.bytes,
                "license": entry.license,
                "trained": entry.trained,
                "sources": [source.uri for source in entry.sources],
            }
            for entry in entries
        ]
    }
    human = "\n".join(output.printable(entry.name) for entry in entries) if quiet else _table(entries)
    output.emit(data, human, json=json)


def _table(entries: Iterable[Entry]) -> Callable[[Console], None]:
    rows: list[tuple[str, ...]] = [("name", "family", "size", "license", "trained", "from")]
    for entry in entries:
        trained = "yes" if entry.trained else "no"
        cells = (entry.name, entry.family, output.size(entry.bytes), entry.license, trained, entry.weights.origin)
        rows.append(tuple(map(output.printable, cells)))  # a plugin's registry may contain control characters
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def show(console: Console) -> None:
        from rich.table import Table

        # A narrow terminal shows fewer columns; `info` prints all of them.
        fitting = [i for i in range(len(widths)) if sum(widths[: i + 1]) + 2 * i <= console.width or i == 0]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for i in fitting:
            justify = "right" if rows[0][i] == "size" else "left"
            table.add_column(rows[0][i], style="cyan" if i == 0 else None, no_wrap=True, justify=justify)
        for row in rows[1:]:
            table.add_row(*(row[i] for i in fitting))
        console.print(table)

    return show
