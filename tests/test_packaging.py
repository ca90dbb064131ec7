"""What is installed: the wheel, built from the sdist, carries everything and works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = shutil.ignore_patterns(".git", ".venv", "zoo", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")

INSTALLED = """
import json, pathlib, pylo_zoo, pylo_zoo.converters
from pylo_zoo import registry
print(json.dumps({
    "package": str(pathlib.Path(pylo_zoo.__file__).parent),
    "converters": str(pathlib.Path(pylo_zoo.converters.__file__).parent),
    "names": list(registry.load_registry()),
    "samples": [source.path.is_file() for source in registry.get("velo-sample").sources],
}))
"""


def check_output(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, directory / "tree", ignore=ELSEWHERE, symlinks=True)
    check_output(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "tree", cwd=directory)
    return directory


def test_the_sdist_has_what_a_build_and_a_test_need(built: Path) -> None:
    (path,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"registry.yaml", "setup.py", "LICENSE", "README.md", "constraints.txt", "Makefile"} <= names
    assert {"converters/__init__.py", "tests/test_packaging.py"} <= names


def test_the_wheel_has_every_module_and_every_data_file(built: Path) -> None:
    (path,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = built / "tree"
    modules = {str(path.relative_to(tree)) for path in (tree / "pylo_zoo").rglob("*.py")}
    converters = {f"pylo_zoo/{path.relative_to(tree)}" for path in (tree / "converters").rglob("*.py")}
    samples = {f"pylo_zoo/samples/velo-sample/{name}" for name in ("params", "config.gin")}
    assert modules | converters | samples | {"pylo_zoo/registry.yaml", "pylo_zoo/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {"pylo_zoo"}, "nothing else lands in site-packages"


def test_the_installed_wheel_works(built: Path, tmp_path: Path) -> None:
    import json

    (wheel,) = (built / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = os.environ | {"PYTHONPATH": str(site)}
    found = json.loads(check_output(sys.executable, "-c", INSTALLED, cwd=tmp_path, env=env))
    assert Path(found["package"]) == site / "pylo_zoo"
    assert Path(found["converters"]) == site / "pylo_zoo" / "converters"
    assert "celo" in found["names"]
    assert found["samples"] == [True, True]
    listing = check_output(sys.executable, "-c", "from pylo_zoo.cli import main; main(['list'])", cwd=tmp_path, env=env)
    assert "velo-sample" in listing


def test_the_version_is_stated_once() -> None:
    from importlib.metadata import version

    import pylo_zoo

    assert version("pylo-zoo") == pylo_zoo.__version__
