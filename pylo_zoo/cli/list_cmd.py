"""``pylo-zoo list``: the published checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from pylo_zoo.registry import Entry


def list_checkpoints(json: output.Json = False, quiet: output.Quiet = False) -> None:
    """List the checkpoints in the registry (with -q their names alone)."""
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
    human = "\n".join(entry.name for entry in entries) if quiet else _table(entries)
    output.emit(data, human, json=json)


def _table(entries: Iterable[Entry]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", style="cyan", no_wrap=True, min_width=26)
    table.add_column("family", no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("licence", no_wrap=True)
    table.add_column("trained", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for entry in entries:
        trained = "yes" if entry.trained else "no"
        origin = entry.weights.origin
        table.add_row(entry.name, entry.family, output.size(entry.bytes), entry.license, trained, origin)
    return table
