"""Phrases that plain English replaced do not return (docs/development.md, "Language").

``python tests/test_language.py PATH …`` lists what it finds in files and folders.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = (
    *("README.md", "CHANGELOG.md", "docs", "pylo_zoo", "converters", "registry.yaml"),
    *("tests", "benchmarks", "examples"),
)
"""Files and folders that must be free of retired phrases."""
SUFFIXES = {".py", ".md", ".h", ".cpp", ".html", ".yaml", ".toml", ".j2"}
NOT_PROSE = {"docs/spec.md", "tests/test_language.py"}

RETIRED = {
    r"\bthe plain text\b|\bplain text (does|computes|is|of)\b": "the eager implementation",
    r"\b(is|are|was|were|be|been) told\b": "receives, reports, or name the subject",
    r"\bhears\b|\bbelieves\b|\bspeaks of\b|\bknows (of|no)\b": "receives, assumes, mentions",
    r"\bsays (so|no|nothing|which|what|why|where|how)\b|\bsaid (so|there|here)\b": "reports, rejects, see",
    r"\b(wants|asks)\b": "requires, requests, checks",
    r"\bcannot be had\b|\bto be had\b": "is unavailable",
    r"\bat hand\b": "available",
    r"\bstands? in (for|place)\b|\bstands? (beside|there|here|in|at)\b": "is stored in, replaces, is next to",
    r"\bl(ies|ie|ay|ying) (beside|in|there|at|under|next)\b": "is in, is next to",
    r"\bgoes with\b|\bgone with\b": "is deleted with, belongs to",
    r"\bof (one's|its|their|his|our) own\b": "its own, your own, a separate",
    r"\bshall\b|\bought to\b": "must",
    r"\banew\b|\bhence\b|\bthus\b|\bupon\b|\bwhence\b|\bthere(of|by|in|upon)\b|\bwhere(by|upon|of|in)\b": "again, so",
    r"\bnobody\b|\bno one\b|\bwhoever\b|\bwhosoever\b": "name the subject",
    r"\bthere (is|are) none\b|\bwhat there is\b|\bif there (is|are) one\b": "none exist",
    r"\b(is|are|was|were) no (?!longer|more|fewer|less|other|better|worse|such)[a-z]": "is not a",
    r"\bone (?!is|of|was|has|as|such)\w+ an? (?!time)\w+": "one per",
    r"\b(bytes|[mnµ]s|nanoseconds|microseconds|milliseconds|seconds|numbers|rows|scales?|floats|flags?|copies|copy|"
    r"calls?|lines?|files?|entry|entries|operations|launch|launches|units|programs|tests?|words?|elements) "
    r"an? (parameter|step|tensor|row|column|channel|layer|weight|family|test|file|device|thread|group|line|element|"
    r"program|unit|second|minute|run|matrix|check|entry)\b": "per",
    r"(?<![\"'])\bbeside\b": "next to, in addition to",
    r"\breckon|\bmended?\b|\btold apart\b|\bin truth\b": "compute, fix, distinguish, actually",
    r"\bsome (\d|ten|twenty|thirty|forty|fifty|hundred|thousand|half)": "about",
    r"\b(Read|Written|Covered|Checked|Shown|Kept|Compared|Refused|Not \w+) (is|are) (?!by\b)[a-z]": "subject first",
    r"\bhas to (say|be told)\b|\bsays? its\b": "reports",
    r"\bwhat is done to\b|\bhow far a\b": "name the thing",
    r"\bmay not (?!be|have)\w+": "must not, cannot",
}
PATTERNS = [(re.compile(pattern), better) for pattern, better in RETIRED.items()]


def files_of(path: Path) -> Iterator[Path]:
    candidates = path.rglob("*") if path.is_dir() else [path]
    for file in sorted(candidates):
        if file.suffix in SUFFIXES and file.relative_to(ROOT).as_posix() not in NOT_PROSE:
            yield file


def retired_phrases(path: Path) -> list[str]:
    """Each retired phrase in the file at ``path``, with its line number and what to write."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} (write: {better})"
        for number, line in enumerate(lines, 1)
        for pattern, better in PATTERNS
        for match in pattern.finditer(line)
    ]


@pytest.mark.parametrize("checked", CHECKED)
def test_retired_phrases_do_not_return(checked: str) -> None:
    assert [hit for file in files_of(ROOT / checked) for hit in retired_phrases(file)] == []


@pytest.mark.parametrize("phrase", ["the plain text", "it shall", "one LSTM a tensor", "is no file", "there are none"])
def test_a_retired_phrase_is_found(phrase: str) -> None:
    assert any(pattern.search(phrase) for pattern, _ in PATTERNS)


if __name__ == "__main__":
    hits = [hit for name in sys.argv[1:] for file in files_of(Path(name).resolve()) for hit in retired_phrases(file)]
    print(*hits, f"{len(hits)} retired phrases", sep="\n")
