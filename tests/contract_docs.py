"""Writes the shared options and the contract table of docs/optimizers.md: ``python tests/contract_docs.py``."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from contract_table import HELD, PROPERTIES, TABLE

from pylo_zoo.optim.options import CHOICES, DEFAULTS, PER_GROUP, SharedOptions

PAGE = Path(__file__).parent.parent / "docs" / "optimizers.md"
MARKS = re.compile(
    r"(<!-- the (options|contract): written by tests/contract_docs\.py -->\n).*?(<!-- end of the \2 -->)", re.S
)
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_contract_*.py"))


def render_table() -> str:
    """The table, one part per section; a cell is ✓ or the number of a reason listed below it."""
    for module in MODULES:
        importlib.import_module(module)
    reasons: dict[str, int] = {}
    lines: list[str] = []
    section = ""
    for key, row in PROPERTIES.items():
        if row.section != section:
            section = row.section
            lines += ["", f"### {section}", "", f"| promise | {' | '.join(TABLE)} | tests |"]
            lines.append(f"| --- |{' :-: |' * len(TABLE)} --- |")
        cells = []
        for name in TABLE:
            reason = row.reason(name)
            cells.append("✓" if reason is None else f"[{reasons.setdefault(reason, len(reasons) + 1)}]")
        tests = ", ".join(f"`{where.removeprefix('test_contract_')}`" for where in HELD.get(key, [])) or "none"
        lines.append(f"| {row.promise} | {' | '.join(cells)} | {tests} |")
    lines += ["", "### Reasons", ""]
    lines += [f"- [{number}] {reason}" for reason, number in reasons.items()]
    return "\n".join(lines).strip()


def render_options() -> str:
    """The table of the shared options; the first value of each is the default."""
    entries = re.findall(r"^    (\w+): ((?:.|\n     +)+)$", inspect.cleandoc(SharedOptions.__doc__ or ""), re.MULTILINE)
    texts = {name: re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", " ".join(text.split())) for name, text in entries}
    lines = ["| option | values, default first | meaning |", "| --- | --- | --- |"]
    for name, default in DEFAULTS.items():
        values: list[Any] = sorted(CHOICES.get(name, (False, True)), key=lambda value: value != default)
        shown = ", ".join(f"`{value!r}`" for value in values).replace("'", '"')
        also = "; also a group option" if name in PER_GROUP else ""
        lines.append(f"| `{name}` | {shown}{also} | {texts[name].replace('``', '`')} |")
    return "\n".join(lines)


def update_page(page: str) -> str:
    """The page with the current tables."""
    tables = {"options": render_options, "contract": render_table}
    return MARKS.sub(lambda match: f"{match[1]}\n{tables[match[2]]()}\n\n{match[3]}", page)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
