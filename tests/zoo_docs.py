"""docs/zoo.md, the registry as a page; ``python tests/zoo_docs.py`` writes it."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import converters
from pylo_zoo.parity.markdown import escaped
from pylo_zoo.publish.card_text import web_address
from pylo_zoo.registry import Entry, load_registry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "zoo.md"
HEAD = """\
# The zoo

Every checkpoint that the [registry](../registry.yaml) knows; `pylo-zoo info NAME` has the rest of it: addresses,
sha256, behaviour, how to train with it. This page is written by `python tests/zoo_docs.py`, and a test holds it to the
registry.

A licence that is *unknown* was stated by nobody, so nobody may assume one. A size without a figure is not known before
the first download. *Published* is the converted artifact on the Hub, with its proof.

| name | optimizer | bytes | licence | paper (arXiv) | source | published |
| --- | --- | ---: | --- | --- | --- | --- |
"""


def linked(text: str, address: str | None) -> str:
    """A link, where there is an address."""
    return f"[{escaped(text)}](<{address}>)" if address else escaped(text)


def source(entry: Entry) -> str:
    """Each place that the weights are fetched from, a Hub repository by its name."""
    places = {}
    for each in entry.sources:
        if each.format == "gin":  # lies beside the weights
            continue
        on_the_hub = each.scheme == "hf"
        places["/".join(each.uri.split("/")[2:4]) if on_the_hub else each.origin] = web_address(each.uri)
    return ", ".join(linked(text, address) for text, address in places.items())


def published(entry: Entry) -> str:
    """The artifact on the Hub, a dash without."""
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


def rendered() -> str:
    """The page. Entries that other installed packages declare are no part of it."""
    entries = load_registry(ROOT / "registry.yaml")
    said = {entry.name: filter(None, (entry.summary, entry.notes)) for entry in entries.values()}
    notes = [f"- `{name}`: {' '.join(map(escaped, texts))}" for name, texts in said.items()]
    return HEAD + "\n".join([*map(row, entries.values()), "", *notes]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
