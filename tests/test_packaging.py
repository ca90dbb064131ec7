"""The installed package: the wheel, built from the sdist, is complete and works outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = shutil.ignore_patterns(".git", ".venv*", "zoo", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")

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

TRAINED = """
import importlib.util, json, sys
import torch
from pylo_zoo.optim import VeLO

torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
before = model.weight.detach().clone()
optimizer = VeLO(model.parameters(), num_steps=3, weights=sys.argv[1])
for _ in range(3):
    optimizer.zero_grad()
    loss = model(torch.ones(4, 3)).square().mean()
    loss.backward()
    optimizer.step(loss)
there = [name for name in ("jax", "flax", "orbax", "pytest") if importlib.util.find_spec(name) or name in sys.modules]
moved = bool(model.weight.isfinite().all()) and not torch.equal(before, model.weight)
print(json.dumps({"there": there, "moved": moved}))
"""

CLUTTER = (
    "zoo/velo-sample/model.safetensors",
    ".venv/lib/site.py",
    "golden/velo.npz",
    ".hypothesis/examples/x",
    "pylo_zoo/__pycache__/x.cpython-311.pyc",
    "pylo_zoo/samples/__pycache__/velo_sample.cpython-311.pyc",
    "pylo_zoo/samples/velo-sample/.ipynb_checkpoints/params",
    "converters/__pycache__/velo.cpython-311.pyc",
)
"""Files that accumulate in a checkout and must not be distributed."""

RANGE = re.compile(r"""["']([A-Za-z][\w.-]*)(?:\[\w+\])?>=([\w.]+)""")
"""A requirement in pyproject.toml: its name and lower bound."""


def check_output(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel built from it."""
    directory = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, directory / "tree", ignore=ELSEWHERE, symlinks=True)
    check_output(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "tree", cwd=directory)
    return directory


def test_the_sdist_suffices_to_build_and_test(built: Path) -> None:
    (path,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "registry.yaml",
        "setup.py",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "constraints-oldest.txt",
        "Makefile",
    } <= names
    assert {"converters/__init__.py", "tests/test_packaging.py"} <= names
    assert {str(path.relative_to(ROOT)) for path in documents()} <= names
    published = {f"tests/checkpoints/{name}" for name in ("LICENSE", "celo/theta.state", "celo-adam/theta.state")}
    assert published <= names, "tests need the published checkpoints with their license"


def test_the_wheel_has_no_checkpoint_but_the_sample(built: Path) -> None:
    (wheel,) = (built / "dist").glob("*.whl")
    names = [name for name in members(wheel) if name.endswith((".state", "/params"))]
    assert names == ["pylo_zoo/samples/velo-sample/params"]


def documents() -> Iterator[Path]:
    """The repository's docs, tests and examples."""
    for folder in ("docs", "examples", "tests"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in (".md", ".py"))


def members(wheel: Path) -> dict[str, bytes]:
    """All files of a wheel, RECORD included."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_tree_and_the_sdist_build_the_same_wheel_despite_stray_files(built: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "tree", ignore=ELSEWHERE, symlinks=True)
    for name in CLUTTER:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"clutter")
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "dist", "tree")
    check_output(*command, cwd=tmp_path)
    (from_tree,) = (tmp_path / "dist").glob("*.whl")
    (from_sdist,) = (built / "dist").glob("*.whl")
    expected = members(from_sdist)
    assert any(name.endswith(".dist-info/RECORD") for name in expected)
    assert list(members(from_tree)) == list(expected)
    assert members(from_tree) == expected


@pytest.mark.slow
def test_an_empty_environment_needs_only_the_wheel(built: Path, tmp_path: Path) -> None:
    import json

    (wheel,) = (built / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python, command = str(bin / "python"), str(bin / "pylo-zoo")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env["PYLO_ZOO_HOME"] = str(tmp_path / "home")
    empty = tmp_path / "empty"
    empty.mkdir()

    def output_of(*words: str) -> str:
        return check_output(*words, cwd=empty, env=env)

    output_of(python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel))
    assert output_of(command, "--help").startswith("Usage: pylo-zoo")
    assert output_of(command, "--version").startswith("pylo-zoo ")
    assert "velo-sample" in output_of(command, "list")
    convert = [command, "convert", "velo-sample"]
    done = subprocess.run(convert, cwd=empty, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Warning: parity was not checked: jax and flax are not installed")
    assert sorted(path.name for path in (empty / "zoo" / "velo-sample").iterdir()) == [
        "config.json",
        "model.safetensors",
        "parity.json",
    ]
    assert json.loads(output_of(python, "-c", TRAINED, "zoo/velo-sample")) == {"there": [], "moved": True}


def test_the_wheel_has_every_module_and_every_data_file(built: Path) -> None:
    (path,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = built / "tree"
    modules = {str(path.relative_to(tree)) for path in (tree / "pylo_zoo").rglob("*.py")}
    converters = {f"pylo_zoo/{path.relative_to(tree)}" for path in (tree / "converters").rglob("*.py")}
    samples = {f"pylo_zoo/samples/velo-sample/{name}" for name in ("params", "config.gin")}
    templates = {str(path.relative_to(tree)) for path in (tree / "pylo_zoo").rglob("*.j2")}
    assert "pylo_zoo/report/report.html.j2" in templates
    kernels = {str(path.relative_to(tree)) for path in (tree / "pylo_zoo" / "kernels").rglob("*.[ch]*")}
    assert "pylo_zoo/kernels/cpu/kernels.cpp" in kernels
    others = {"pylo_zoo/registry.yaml", "pylo_zoo/py.typed"}
    assert modules | converters | samples | templates | kernels | others <= names
    assert {name.partition("/")[0] for name in names} == {"pylo_zoo"}, "nothing else is installed into site-packages"


def test_the_installed_wheel_works(built: Path, tmp_path: Path) -> None:
    import json

    (wheel,) = (built / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = os.environ | {"PYTHONPATH": str(site)}
    result = json.loads(check_output(sys.executable, "-c", INSTALLED, cwd=tmp_path, env=env))
    assert Path(result["package"]) == site / "pylo_zoo"
    assert Path(result["converters"]) == site / "pylo_zoo" / "converters"
    assert "celo" in result["names"]
    assert result["samples"] == [True, True]
    listing = check_output(sys.executable, "-c", "from pylo_zoo.cli import main; main(['list'])", cwd=tmp_path, env=env)
    assert "velo-sample" in listing


def test_make_test_oldest_installs_the_lowest_versions_that_are_declared() -> None:
    """Every range in pyproject.toml has a lower bound, and the constraints pin the first release that meets it."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = {name.lower().replace("_", "-"): bound for name, bound in RANGE.findall(project)}
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"torch", "numpy", "huggingface-hub", "jax", "triton", "pytest"} <= declared.keys()
    assert {name: pinned[name] for name in declared if not f"{pinned[name]}.".startswith(f"{declared[name]}.")} == {}


def test_the_version_is_stated_once() -> None:
    from importlib.metadata import version

    import pylo_zoo

    assert version("pylo-zoo") == pylo_zoo.__version__
