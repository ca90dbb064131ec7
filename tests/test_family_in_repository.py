"""A family that is added to this repository as docs/adding-a-family.md says needs no entry in a list elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, cast

import family_in_repository
import pytest
from family_in_repository import ROOT

from pylo_zoo.errors import ZooError
from pylo_zoo.plugins import defined_in

GUIDE = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
FOUND = """
import pylo_zoo
from contract_table import TABLE
from trees import SMALL
from pylo_zoo import converters, load, reference, registry
from pylo_zoo.optim import Toy, optimizer_class

assert pylo_zoo.__file__.startswith({root!r}), pylo_zoo.__file__
assert "toy" in converters.OWN
assert reference.FAMILIES["toy"] is converters.get("toy").load(converters.get("toy").reference)
assert optimizer_class("toy") is Toy is TABLE["Toy"].cls
assert SMALL["toy"].hidden_size <= 5
assert registry.get("toy-released").family == "toy"
assert load("random:toy").architecture == converters.get("toy").released
"""
GENERIC = (
    *("test_converters.py", "test_npz.py", "test_artifact.py", "test_convert_cli.py", "test_random_weights.py"),
    *("test_contract_steps.py", "test_parity.py::test_every_family_passes"),
    "test_reference.py::test_every_specification_is_the_reference_of_its_family",
    *("test_imports.py::test_imports_follow_the_table", "test_imports.py::test_the_table_has_no_unused_entry"),
    "test_recognition.py::test_a_tree_is_detected[safetensors-None]",
    "test_registry.py::test_every_published_checkpoint_is_listed",
)
SELECTED = "toy or Toy or of_the_package or imports or listed or specification or a_tree_is_detected"


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A copy of the repository with the toy, and the files that it changes."""
    root = tmp_path_factory.mktemp("repository")
    family_in_repository.copy_repository(root)
    before = digests(root)
    family_in_repository.add_toy(root)
    after = digests(root)
    assert before.keys() <= after.keys()
    changed = {name for name in after if after[name] != before.get(name)}
    return root, {re.sub(r"^pylo_zoo/(?=converters/|registry)", "", name) for name in changed}


def run_in(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests")))}
    return subprocess.run(
        [sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_only_the_files_of_the_guide_change(extended: tuple[Path, set[str]]) -> None:
    section = GUIDE.partition("## In this repository")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [\w ]+ \| `([\w./]+)`", section, re.MULTILINE)
    stated = {path.replace("NAME", "toy") for path in rows}
    assert extended[1] - {"pylo_zoo/theta.state"} == stated - {"docs/spec.md"}


def test_the_tables_of_the_package_and_of_the_tests_have_the_family(extended: tuple[Path, set[str]]) -> None:
    done = run_in(extended[0], "-c", FOUND.format(root=str(extended[0])))
    assert done.returncode == 0, done.stderr


def test_a_forgotten_export_is_a_sentence(extended: tuple[Path, set[str]]) -> None:
    init = extended[0] / "pylo_zoo" / "optim" / "__init__.py"
    exported = init.read_text()
    init.write_text(exported.replace('__all__ += ["Toy"]', ""))
    try:
        code = "import test_convert_cli as test; test.test_the_optimizer_that_a_family_names_exists('toy')"
        done = run_in(extended[0], "-c", code)
    finally:
        init.write_text(exported)
    assert done.returncode == 1
    assert "The optimizer of toy, pylo_zoo.optim:Toy, is not exported: import Toy in" in done.stderr


@pytest.mark.slow
def test_the_generic_tests_pass_for_the_family(extended: tuple[Path, set[str]]) -> None:
    nodes = [f"tests/{name}" for name in GENERIC]
    done = run_in(extended[0], "-m", "pytest", *nodes, *["-q", "-n", "0", "-p", "no:cacheprovider", "-k"], SELECTED)
    assert done.returncode == 0, done.stdout[-5_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30


def test_two_families_of_one_name_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, kind = tmp_path / "twofold", cast(Any, types.SimpleNamespace)
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("a", "b"):
        (package / f"{name}.py").write_text("import types\nvalue = types.SimpleNamespace(name='celo')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZooError, match="twofold defines 'celo' twice"):
        defined_in("twofold", [str(package)], kind)
    (package / "b.py").write_text("from twofold.a import value\n")
    sys.modules.pop("twofold.b")
    assert list(defined_in("twofold", [str(package)], kind)) == ["celo"]
