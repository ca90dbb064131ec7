"""Generate docs/zoo.md from the registry: ``python tests/zoo_docs.py``."""

from __future__ import annotations

from pathlib import Path

from pylo_zoo import converters
from pylo_zoo.parity.markdown import escaped
from pylo_zoo.publish.words import web_address
from pylo_zoo.registry import Entry, load_registry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "zoo.md"
HEAD = """\
# The zoo

Every checkpoint in the [registry](../registry.yaml). `pylo-zoo info NAME` shows the details: addresses, sha256, behavior, and
how to train with it. `python tests/zoo_docs.py` generates this page, and a test keeps it in sync with the registry.

License *unknown* means that the publisher states no license; do not assume one. A missing size is unknown until the first download.
*Published* is the converted artifact on the Hub, with its proof.

| name | optimizer | bytes | license | paper (arXiv) | source | published |
| --- | --- | ---: | --- | --- | --- | --- |
"""


def linked(text: str, address: str | None) -> str:
    """``text``, as a link if ``address`` is known."""
    return f"[{escaped(text)}](<{address}>)" if address else escaped(text)


def source(entry: Entry) -> str:
    """Links to the places that the weights are fetched from; a Hub repository is shown by its name."""
    places = {}
    for each in entry.sources:
        if each.format == "gin":  # next to the weights
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
    """One row of the table."""
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
    texts = {entry.name: filter(None, (entry.summary, entry.notes)) for entry in entries.values()}
    notes = [f"- `{name}`: {' '.join(map(escaped, parts))}" for name, parts in texts.items()]
    return HEAD + "\n".join([*map(row, entries.values()), "", *notes]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
