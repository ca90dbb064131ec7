"""Writes the contract table of docs/optimizers.md: ``python tests/contract_docs.py``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from contract_table import HELD, PROPERTIES, TABLE

PAGE = Path(__file__).parent.parent / "docs" / "optimizers.md"
BEGIN, END = "<!-- the contract: written by tests/contract_docs.py -->", "<!-- end of the contract -->"
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


def update_page(page: str) -> str:
    """The page with the current table."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{render_table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
