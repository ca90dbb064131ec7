"""``pylo-zoo info NAME``: all that is known about one checkpoint, and how to train with it."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pylo_zoo.registry import Entry


def info(
    name: Annotated[str, typer.Argument(help="A name that `pylo-zoo list` shows.")], json: output.Json = False
) -> None:
    """Show everything about a checkpoint: sources, behaviour, defaults, paper, and how to use it."""
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
        "sources": [config.to_dict(source) for source in entry.sources],
        "behavior": config.to_dict(entry.behavior),
        "defaults": dict(entry.defaults),
        **{key: value and config.to_dict(value) for key, value in optional.items()},
        "notes": entry.notes,
        "usage": _usage(entry),
    }


def _usage(entry: Entry) -> list[str]:
    """The three lines that train with ``entry``."""
    from pylo_zoo.optim import optimizer_class

    optimizer = optimizer_class(entry.family)
    arguments = inspect.signature(optimizer).parameters
    routed = "adam_lr_mult" in arguments  # some parameters go to AdamW: param_groups knows which
    imports = f"{optimizer.__name__}, param_groups" if routed else optimizer.__name__
    params = "param_groups(model)" if routed else "model.parameters()"
    steps = "num_steps=10_000, " if "num_steps" in arguments else ""
    return [
        f"pylo-zoo convert {entry.name} --out zoo/{entry.name}",
        f"from pylo_zoo.optim import {imports}",
        f'opt = {optimizer.__name__}({params}, {steps}weights="zoo/{entry.name}")',
    ]


def _show(entry: Entry, console: Console) -> None:
    def section(title: str, rows: Mapping[str, Any]) -> None:
        console.print(f"\n{title}", style="bold")
        width = max(map(len, rows))
        for key, value in rows.items():
            indent = " " * (width + 4)
            text = textwrap.fill(
                _text(value), console.width - len(indent), break_long_words=False, break_on_hyphens=False
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
        section("Source", {key: value for key, value in source.items() if value is not None})
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
