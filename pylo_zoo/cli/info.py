"""``pylo-zoo info NAME``: describe a checkpoint or an artifact, and how to train with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import artifact_info, complete, output
from pylo_zoo.cli.sections import print_usage, section
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
            help="A name from `pylo-zoo list`, an artifact directory, hf://ORG/NAME, or random:FAMILY.",
            autocompletion=complete.names,
        ),
    ],
    card: Annotated[bool, typer.Option("--card", help="Print only the model card of an artifact.")] = False,
    token: output.Token = None,
    offline: output.Offline = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
) -> None:
    """Show what is known about a checkpoint or an artifact.

    It prints files, addresses, sha256, license, behavior, defaults, paper, and how to train with it. For an artifact it
    also prints the parity result. An artifact on the Hub is pulled first.
    """
    from pylo_zoo import weights
    from pylo_zoo.files import is_local
    from pylo_zoo.registry import get, load_registry
    from pylo_zoo.samples.random_weights import RANDOM

    is_random = name.startswith(RANDOM) and not Path(name).is_dir()
    is_path = "/" in name or Path(name).is_dir() or (name not in load_registry() and is_local(name))
    if not card and not is_random and not is_path:
        entry = get(name)
        output.emit(_data(entry), lambda console: _show(entry, console), json=json)
        return
    if is_random:
        description = artifact_info.data(weights.load(name), None, name)
    else:
        pulled = weights.pull(name, access=output.access(offline=offline, token=token))
        description = artifact_info.data(pulled.artifact, pulled, name)
    if card and description["card"] is None:
        hint = "Leave --card out." if is_random else "Run `pylo-zoo publish DIR --repo-id ORG/NAME --dry-run` for one."
        raise ZooError(f"{name} has no model card.", hint)
    human = (
        output.printable_lines(description["card"])
        if card
        else lambda console: artifact_info.show(description, console)
    )
    output.emit(description, human, json=json)


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
    """A source's record, with the URL for a browser."""
    from pylo_zoo import config
    from pylo_zoo.fetch import parse

    fields = config.to_dict(source)
    if source.scheme != "package":
        del fields["package"]
    return {"uri": source.uri, "url": None if source.path else parse(source.uri).url, **fields}


def _usage(entry: Entry) -> list[str]:
    """Three lines that train with ``entry``."""
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
    about = {"family": entry.family, "license": entry.license, "trained": trained, "size": output.size(entry.bytes)}
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
        status = (
            f"not published; `pylo-zoo convert {entry.name}` checks parity, then `pylo-zoo info zoo/{entry.name}` "
            "shows the result"
        )
        section(console, "Parity", {"status": status})
    for title in ("architecture", "behavior", "learned_decays", "defaults"):
        section(console, title.replace("_", " ").capitalize(), data[title] or {})
    print_usage(console, data["usage"])
