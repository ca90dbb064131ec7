"""Compare the artifacts and reports of two versions of the package (docs/development.md).

``python tests/identity.py make DIRECTORY`` converts and verifies a checkpoint of every family with the installed
version. ``python tests/identity.py compare OLD NEW`` lists the differences of two such directories: weights and vectors
byte by byte; in the JSON files every key, number and identifier. Sentences may differ, and so may times and versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trees import write_theta

from pylo_zoo import converters

EXEMPT = {"created", "seconds", "environment", "version"}
"""Keys whose values belong to a run or to a version, not to an artifact."""


def make(directory: Path) -> None:
    """Write ``directory/FAMILY`` for every family, random weights, and for the sample that the package contains."""
    directory.mkdir(parents=True)
    sources = {"velo-sample": ["convert", "velo-sample"]}
    for family in converters.FAMILIES:
        (directory / f"{family}-theta").mkdir()
        theta = write_theta(directory / f"{family}-theta", family, scale=0.1)
        sources[family] = ["convert", family, "--source", str(theta)]
    for name, words in sources.items():
        command = [sys.executable, "-m", "pylo_zoo", *words, "--quiet", "--out", str(directory / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"{name}: {'converted and verified' if done.returncode == 0 else done.stderr}")


def compare(old: Path, new: Path) -> list[str]:
    """The differences of two directories that :func:`make` wrote."""
    names = sorted({path.relative_to(root).as_posix() for root in (old, new) for path in root.rglob("*.*")})
    return [difference for name in names for difference in _compare_files(name, old / name, new / name)]


def _compare_files(name: str, old: Path, new: Path) -> Iterator[str]:
    if missing := [str(path) for path in (old, new) if not path.is_file()]:
        yield f"{missing[0]} is missing"
    elif name.endswith(".json"):
        yield from _compare_values(name, json.loads(old.read_text()), json.loads(new.read_text()))
    elif old.read_bytes() != new.read_bytes():
        yield f"{name}: other bytes"


def _compare_values(where: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from (f"{where}: {key} only on one side" for key in sorted(old.keys() ^ new.keys()))
        for key in old.keys() & new.keys() - EXEMPT:
            yield from _compare_values(f"{where}: {key}", old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from _compare_values(f"{where}[{number}]", first, second)
    elif old != new and not (isinstance(old, str) and isinstance(new, str) and " " in old):
        yield f"{where}: {old} became {new}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", directory]:
            make(Path(directory))
        case ["compare", old, new]:
            differences = compare(Path(old), Path(new))
            print(*differences, f"{len(differences)} differences", sep="\n")
            sys.exit(1 if differences else 0)
        case _:
            sys.exit(__doc__)
