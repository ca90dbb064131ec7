"""Sections of the output of ``pylo-zoo info``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from rich.console import Console


def section(console: Console, title: str, rows: Mapping[str, Any]) -> None:
    """Print ``rows`` under ``title``, or nothing if ``rows`` is empty. Long values wrap in their own column."""
    if not rows:
        return
    console.print(f"\n{title}", style="bold")
    named = [(output.printable(str(key)), value) for key, value in rows.items()]
    width = max(len(key) for key, _ in named)
    for key, value in named:
        indent = " " * (width + 4)
        room = max(console.width - len(indent), 20)
        filled = textwrap.fill(_text(value), room, break_long_words=False, break_on_hyphens=False)
        console.print(f"  {key:<{width}}  " + textwrap.indent(filled, indent).lstrip(), soft_wrap=True)


def print_usage(console: Console, lines: Sequence[str]) -> None:
    """Print lines to copy, without wrapping."""
    console.print("\nUse", style="bold")
    for line in lines:
        console.print(f"  {output.printable(line)}", soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return output.printable(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
