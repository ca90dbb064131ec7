"""``pylo-zoo info NAME``: all that is known about one checkpoint or artifact, and how to train with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import artifact_info, complete, output
from pylo_zoo.cli.sections import section, use
from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.registry import Entry, Source

EXAMPLES = """
pylo-zoo info celo
pylo-zoo info zoo/celo
pylo-zoo info hf://ORG/NAME@v1 --card
pylo-zoo info velo-sample --json
"""


def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name that `pylo-zoo list` shows, an artifact's directory, or hf://ORG/NAME.",
            autocompletion=complete.names,
        ),
    ],
    card: Annotated[
        bool, typer.Option("--card", help="Print the model card of an artifact, and nothing else.")
    ] = False,
    token: output.Token = None,
    offline: output.Offline = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
) -> None:
    """Show all that is known about a checkpoint or an artifact.

    Files and their addresses, sha256, licence, behaviour, defaults and paper; of an artifact its proof and its card;
    and how to train with it. What is on the Hub is pulled for that.
    """
    from pylo_zoo import weights
    from pylo_zoo.registry import get

    if not card and "/" not in name and not Path(name).is_dir():
        entry = get(name)
        output.emit(_data(entry), lambda console: _show(entry, console), json=json)
        return
    found = artifact_info.data(weights.pull(name, access=output.access(offline=offline, token=token)), name)
    if card and found["card"] is None:
        raise ZooError(
            f"{name} has no model card.", "`pylo-zoo publish DIR --repo-id ORG/NAME --dry-run` shows its own."
        )
    human = output.printable_lines(found["card"]) if card else lambda console: artifact_info.show(found, console)
    output.emit(found, human, json=json)


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
        "artifact": entry.artifact and {"uri": entry.artifact.uri, "sha256": dict(entry.artifact.sha256)},
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
    data = _data(entry)
    console.print(entry.name, style="bold cyan")
    console.print(output.printable(entry.summary))
    trained = "yes" if entry.trained else "no: hand-set"
    about = {"family": entry.family, "licence": entry.license, "trained": trained, "size": output.size(entry.bytes)}
    if entry.paper:
        about["paper"] = f"{entry.paper.title} (arXiv {entry.paper.arxiv})"
    if entry.notes:
        about["notes"] = entry.notes
    section(console, "About", about)
    for source in data["sources"]:
        rows = {key: value for key, value in source.items() if value is not None}
        if rows.get("url") == rows["uri"]:
            del rows["url"]
        section(console, "Source", rows)
    if entry.artifact:
        section(console, "Published", {"uri": entry.artifact.uri, **entry.artifact.sha256})
    else:
        where = (
            f"not published; `pylo-zoo convert {entry.name}` proves it, and `pylo-zoo info zoo/{entry.name}` shows that"
        )
        section(console, "Parity", {"status": where})
    for title in ("architecture", "behavior", "learned_decays", "defaults"):
        section(console, title.replace("_", " ").capitalize(), data[title] or {})
    use(console, data["usage"])
