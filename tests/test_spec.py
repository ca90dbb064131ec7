"""docs/spec.md has every section that code, docs and reports cite, and its presets are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pylo_zoo.ops.orthogonalize import COEFFICIENTS

ROOT = Path(__file__).parent.parent
SPEC = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
SECTIONS = {int(number) for number in re.findall(r"^## §(\d+) ", SPEC, re.MULTILINE)}
CITING = ("pylo_zoo", "converters", "docs", "tests", "examples", "benchmarks")
SUFFIXES = {".py", ".md", ".h", ".cpp", ".j2", ".json", ".yaml"}


def citations() -> dict[int, list[str]]:
    """Section numbers cited in the repository, with the citing files."""
    results: dict[int, list[str]] = {}
    files = [path for folder in CITING for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in [*files, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "registry.yaml"]:
        for number in re.findall(r"§(\d+)", path.read_text(encoding="utf-8")):
            results.setdefault(int(number), []).append(str(path.relative_to(ROOT)))
    return results


def test_every_cited_section_exists() -> None:
    cited = citations()
    assert len(cited) > 5, "the search finds no citations"
    missing = {number: files[:3] for number, files in cited.items() if number not in SECTIONS}
    assert not missing


def test_sections_are_numbered_in_order() -> None:
    assert re.findall(r"^## §(\d+) ", SPEC, re.MULTILINE) == [str(k) for k in range(1, len(SECTIONS) + 1)]


@pytest.mark.parametrize("preset", ["original", "quintic"])
def test_presets_of_muon_match_the_code(preset: str) -> None:
    (row,) = re.findall(rf"^\| `{preset}` \| (.*) \|$", SPEC, re.MULTILINE)
    triples = re.findall(r"\(([^)]*)\)", row.replace("−", "-"))
    assert [tuple(map(float, triple.split(","))) for triple in triples] == list(COEFFICIENTS[preset])
