"""``pylo-zoo info NAME``: all that is known about one checkpoint, and how to train with it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pylo_zoo.registry import Entry, Source

EXAMPLES = """
pylo-zoo info celo
pylo-zoo info velo-sample --json
"""


def info(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name that `pylo-zoo list` shows.", autocompletion=complete.names),
    ],
    json: output.Json = False,
) -> None:
    """Show all that is known about a checkpoint.

    Its files and their addresses, sha256, licence, behaviour, defaults and paper, and how to train with it.
    """
    from pylo_zoo.registry import get

    entry = get(name)
    output.emit(_data(entry), lambda console: _show(entry, console), json=json)


def _data(entry: Entry) -> dict[str, Any]:
    from pylo_zoo import config

    optional = {"architecture": entry.architecture, "learned_decays": entry.learned_decays, "paper": entry.paper}
    return {
        "name": entry.name,
        "family": entry.family,
        "summary": entry.summary,
        "license": entry.license,
        "trained": entry.trained,
        "bytes": entry.bytes,
        "sources": [_source(source) for source in entry.sources],
        "behavior": config.to_dict(entry.behavior),
        "defaults": dict(entry.defaults),
        **{key: value and config.to_dict(value) for key, value in optional.items()},
        "notes": entry.notes,
        "usage": _usage(entry),
    }


def _source(source: Source) -> dict[str, Any]:
    """The record of a file, and where a browser finds it."""
    from pylo_zoo import config
    from pylo_zoo.fetch import parse

    described = config.to_dict(source)
    if source.scheme != "package":
        del described["package"]
    return {"uri": source.uri, "url": None if source.path else parse(source.uri).url, **described}


def _usage(entry: Entry) -> list[str]:
    """The three lines that train with ``entry``."""
    from pylo_zoo.usage import training

    return [
        f"pylo-zoo convert {entry.name} --out zoo/{entry.name}",
        *training(entry.family, f"zoo/{entry.name}"),
    ]


def _show(entry: Entry, console: Console) -> None:
    def section(title: str, rows: Mapping[str, Any]) -> None:
        console.print(f"\n{title}", style="bold")
        width = max(map(len, rows))
        for key, value in rows.items():
            indent = " " * (width + 4)
            text = textwrap.fill(
                _text(value), max(console.width - len(indent), 20), break_long_words=False, break_on_hyphens=False
            )
            console.print(f"  {key:<{width}}  " + textwrap.indent(text, indent).lstrip(), soft_wrap=True)

    data = _data(entry)
    console.print(entry.name, style="bold cyan")
    console.print(entry.summary)
    trained = "yes" if entry.trained else "no: hand-set"
    about = {"family": entry.family, "licence": entry.license, "trained": trained, "size": output.size(entry.bytes)}
    if entry.paper:
        about["paper"] = f"{entry.paper.title} (arXiv {entry.paper.arxiv})"
    if entry.notes:
        about["notes"] = entry.notes
    section("About", about)
    for source in data["sources"]:
        rows = {key: value for key, value in source.items() if value is not None}
        if rows.get("url") == rows["uri"]:
            del rows["url"]
        section("Source", rows)
    for title in ("architecture", "behavior", "learned_decays", "defaults"):
        if data[title]:
            section(title.replace("_", " ").capitalize(), data[title])
    console.print("\nUse", style="bold")
    for line in data["usage"]:
        console.print(f"  {line}", soft_wrap=True)  # stays one line, to be copied


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
