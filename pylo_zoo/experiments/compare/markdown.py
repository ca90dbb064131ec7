"""The report of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pylo_zoo.experiments.compare import words
from pylo_zoo.report.markdown import escaped


def render_comparison(results: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """``results`` as a document; ``pictures`` are file names in the same directory."""
    task = results["task"]
    parts = [
        f"# {escaped(task['name'])}: {escaped(', '.join(each['label'] for each in results['optimizers']))}",
        f"**{escaped(words.sentence(results['verdict']))}**",
        *([escaped(words.sentence(results["clock"]))] if results["clock"] else []),
        f"{escaped(words.setting(results))}",
        "\n".join(_table(words.head(results), [words.row(each, results) for each in results["optimizers"]])),
        "\n".join(f"- {escaped(note)}" for note in results["notes"]),
        *(f"![{escaped(words.CAPTIONS[name])}]({name})" for name in pictures),
        "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in words.provenance(results)),
        f"    {results['command']}",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(escaped, head))} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(map(escaped, row))} |" for row in rows]
