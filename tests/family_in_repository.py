"""A copy of this repository to which the toy family is added as docs/adding-a-family.md says, "In this repository"."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOY = ROOT / "tests" / "toy_family" / "toy_family"
RECORDS = re.compile(r"^@dataclass\(frozen=True\)\nclass Toy\w+:\n(?:(?: {4}.*)?\n)+", re.MULTILINE)
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.md")


def copy_repository(root: Path) -> None:
    """Copy the package, as a wheel installs it, and the tests to ``root``."""
    shutil.copytree(ROOT / "pylo_zoo", root / "pylo_zoo", ignore=IGNORED)
    shutil.copytree(ROOT / "converters", root / "pylo_zoo" / "converters", ignore=IGNORED)
    shutil.copytree(ROOT / "tests", root / "tests", ignore=IGNORED)
    shutil.copy(ROOT / "registry.yaml", root / "pylo_zoo")
    shutil.copy(ROOT / "pyproject.toml", root)


def add_toy(root: Path) -> set[str]:
    """Add the toy to the copy at ``root``. Returns the files of the repository that change, besides the checkpoint."""
    texts = {name: (TOY / name).read_text() for name in ("converter.py", "optimizer.py", "reference.py")}
    converter = RECORDS.sub("", texts["converter.py"]).replace(
        "from dataclasses import dataclass\n\n", "from pylo_zoo.config import ToyArchitecture, ToyBehavior\n"
    )
    converter = converter.replace("toy_family.optimizer:Toy" + '"', "pylo_zoo.optim:Toy" + '"')
    converter = converter.replace("toy_family.optimizer", "pylo_zoo.optim.toy")
    optimizer = texts["optimizer.py"].replace("from .converter", "from pylo_zoo.converters.toy")
    reference = texts["reference.py"].replace("from .converter", "from pylo_zoo.config")
    added = {
        "pylo_zoo/config.py": "\n\n" + "\n\n".join(RECORDS.findall(texts["converter.py"])),
        "converters/toy.py": converter.replace("toy_family.reference", "pylo_zoo.reference.toy"),
        "pylo_zoo/optim/toy.py": optimizer,
        "pylo_zoo/optim/__init__.py": '\nfrom pylo_zoo.optim.toy import Toy\n\n__all__ += ["Toy"]\n',
        "pylo_zoo/reference/toy.py": reference.replace("hyper={", 'name="toy", hyper={'),
        "registry.yaml": "\n" + (TOY / "registry.yaml").read_text(),
    }
    for name, text in added.items():
        with (root / "pylo_zoo" / name.removeprefix("pylo_zoo/")).open("a", encoding="utf-8") as file:
            file.write(text)
    shutil.copy(TOY / "theta.state", root / "pylo_zoo")
    return set(added)
