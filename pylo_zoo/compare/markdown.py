"""A comparison as Markdown: the verdict, one table, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pylo_zoo.compare import words
from pylo_zoo.parity.markdown import escaped


def render_comparison(found: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """``found`` as a document; ``pictures`` are files beside it."""
    task = found["task"]
    parts = [
        f"# {escaped(task['name'])}: {escaped(', '.join(each['label'] for each in found['optimizers']))}",
        f"**{escaped(words.sentence(found['verdict']))}**",
        *([escaped(words.sentence(found["clock"]))] if found["clock"] else []),
        f"{escaped(words.setting(found))}",
        "\n".join(_table(words.head(found), [words.row(each, found) for each in found["optimizers"]])),
        "\n".join(f"- {escaped(note)}" for note in found["notes"]),
        *(f"![{escaped(words.CAPTIONS[name])}]({name})" for name in pictures),
        "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in words.made(found)),
        f"    {found['command']}",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(escaped, head))} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(map(escaped, row))} |" for row in rows]
