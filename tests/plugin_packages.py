"""Packages that declare entry points, installed for a test: on ``sys.path``, with a dist-info directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylo_zoo import converters, registry

TOY = Path(__file__).parent / "toy_family"


def entry_points(pyproject: str) -> str:
    """``entry_points.txt`` as an installer writes it for this ``pyproject.toml``."""
    sections = re.findall(
        r'^\[project\.entry-points\."([\w.]+)"\]\n(.*?)(?=\n\[|\Z)', pyproject, re.MULTILINE | re.DOTALL
    )
    return "\n".join(f"[{group}]\n{body.replace(chr(34), '')}" for group, body in sections)


@contextmanager
def installed(site: Path, name: str, declared: str, *source: Path) -> Iterator[None]:
    """Install the package ``name`` with these entry points; its code is in the folders ``source`` or in ``site``."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(declared)
    with pytest.MonkeyPatch.context() as patch:
        for folder in (site, *source):
            patch.syspath_prepend(folder)
        forget()
        yield
    forget()


def forget() -> None:
    """Make the package read the entry points again."""
    converters.third_party.cache_clear()
    registry._all_entries.cache_clear()
