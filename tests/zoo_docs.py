"""Writes docs/zoo.md, the registry as a page: ``python tests/zoo_docs.py``."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import converters
from pylo_zoo.publish.card_text import web_address
from pylo_zoo.registry import Entry, load_registry
from pylo_zoo.report.markdown import escaped

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "zoo.md"
HEAD = """\
# The zoo

Every checkpoint in the [registry](../registry.yaml). `pylo-zoo info NAME` shows the rest: addresses, sha256, behavior
and how to train with it. `python tests/zoo_docs.py` writes this page, and a test compares it with the registry.

A license is *unknown* if the authors of the checkpoint state none; do not assume one. A size is missing if it is
unknown before the first download. *Published* links to the converted artifact on the Hub, with its proof.

| name | optimizer | bytes | license | paper (arXiv) | source | published |
| --- | --- | ---: | --- | --- | --- | --- |
"""


def linked(text: str, address: str | None) -> str:
    """A link, or plain text without an address."""
    return f"[{escaped(text)}](<{address}>)" if address else escaped(text)


def source(entry: Entry) -> str:
    """Every place that the weights are fetched from; a Hub repository by its name."""
    places = {}
    for each in entry.sources:
        if each.format == "gin":  # an additional file of the weights
            continue
        on_the_hub = each.scheme == "hf"
        places["/".join(each.uri.split("/")[2:4]) if on_the_hub else each.origin] = web_address(each.uri)
    return ", ".join(linked(text, address) for text, address in places.items())


def published(entry: Entry) -> str:
    """A link to the artifact on the Hub, or a dash."""
    if entry.artifact is None:
        return "–"
    repo, _, commit = entry.artifact.uri.removeprefix("hf://").partition("@")
    return linked(repo, f"https://huggingface.co/{repo}/tree/{commit}")


def row(entry: Entry) -> str:
    """One line of the table."""
    optimizer = converters.get(entry.family).optimizer.partition(":")[2]
    paper = linked(entry.paper.arxiv, f"https://arxiv.org/abs/{entry.paper.arxiv}") if entry.paper else "–"
    cells = (
        f"`{entry.name}`",
        f"`{optimizer}`" if optimizer.lower() == entry.family.replace("-", "") else f"`{optimizer}` ({entry.family})",
        "–" if entry.bytes is None else f"{entry.bytes:,}",
        "*unknown*" if entry.license == "unknown" else escaped(entry.license),
        paper,
        source(entry),
        published(entry),
    )
    return f"| {' | '.join(cells)} |"


def render_page() -> str:
    """The page, without entries that other installed packages declare."""
    entries = load_registry(ROOT / "registry.yaml")
    texts_of = {entry.name: filter(None, (entry.summary, entry.notes)) for entry in entries.values()}
    notes = [f"- `{name}`: {' '.join(map(escaped, texts))}" for name, texts in texts_of.items()]
    return HEAD + "\n".join([*map(row, entries.values()), "", *notes]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
