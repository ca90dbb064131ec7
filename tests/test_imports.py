"""Import rules between packages, as a table. A module without a row, or an import that its row lacks, is an error."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each layer may import: other layers and third-party packages; itself and the standard library are always allowed.
# A layer is a module or a package directly under pylo_zoo; "pylo_zoo" is its __init__.py.
ARROWS = {
    "pylo_zoo": "artifact errors weights",
    "errors": "",
    "__main__": "cli",
    "impostors": "",
    "leftovers": "",
    "files": "errors leftovers",
    "plain_yaml": "yaml",
    "parsing": "errors",
    "source_record": "parsing",
    "limits": "errors",
    "warn": "errors",
    "plugins": "errors warn",
    "config": "parsing",
    "ops": "errors torch",
    "kernels": "errors fetch filelock files leftovers ops torch triton warn",
    "nets": "config ops torch",
    "converters": "config errors limits numpy plugins torch",
    "formats": "converters errors files impostors limits msgpack numpy orbax safetensors tensorstore",
    "artifact": "config converters errors files impostors leftovers limits numpy parsing safetensors source_record "
    "torch",
    "registry": "config converters errors files parsing plain_yaml plugins",
    "fetch": "errors filelock files huggingface_hub impostors leftovers limits parsing pylo_zoo rich",
    "hub": "artifact errors fetch files huggingface_hub leftovers limits",
    "convert": "artifact config converters errors fetch files formats limits numpy parsing plain_yaml pylo_zoo "
    "registry samples torch",
    "report": "errors jinja2 numpy parsing rich",
    "weights": "artifact convert converters errors fetch files formats hub limits registry report samples",
    "optim": "artifact converters errors kernels nets ops registry torch typing_extensions warn weights",
    "integrations": "errors lightning optim pytorch_lightning torch warn",
    "compat": "artifact config convert errors fetch files formats limits optim parsing registry torch warn weights",
    "experiments": "artifact converters errors fetch files jinja2 kernels leftovers matplotlib ops optim parsing "
    "pylo_zoo registry report samples sklearn torch weights",
    "reference": "config errors jax numpy plugins",
    "parity": "artifact config convert converters errors fetch files flax formats hub jax kernels limits nets numpy "
    "ops optax optim parsing reference registry report samples torch warn weights",
    "pipeline": "artifact convert errors fetch formats parity report",
    "usage": "converters optim",
    "samples": "artifact config converters formats numpy pylo_zoo torch",
    "publish": "artifact config converters errors fetch files hub huggingface_hub jinja2 leftovers limits matplotlib "
    "optim parity pylo_zoo registry report usage yaml",
    "cli": "artifact config convert converters errors experiments fetch files limits parity parsing pipeline publish "
    "pylo_zoo registry report rich samples typer usage weights",
}
LAYERS = {layer: set(allowed.split()) for layer, allowed in ARROWS.items()}
# Imported only inside functions: the command line starts without torch, and training does not need JAX.
LAZY = {
    "converters": {"nets", "torch"},
    "pylo_zoo": {"artifact", "weights"},
    "weights": {"report"},
    "fetch": {"huggingface_hub", "rich"},
    "hub": {"huggingface_hub"},
    "publish": {"huggingface_hub", "matplotlib", "optim"},
    "parity": {"flax", "jax", "optax", "reference"},
    "formats": {"orbax", "tensorstore"},
    "usage": {"optim"},
    "experiments": {"matplotlib"},
    "cli": LAYERS["cli"] - {"errors", "limits", "pylo_zoo", "typer"},
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import statement: ``target`` is a layer of pylo_zoo or a third-party package."""

    layer: str
    target: str
    lazy: bool
    where: str


def read_imports(root: Path) -> Iterator[Import]:
    """Every import in the packages under ``root``, except a layer's own modules and the standard library."""
    files = [(path, path.relative_to(root / "pylo_zoo")) for path in (root / "pylo_zoo").rglob("*.py")]
    files += [(path, path.relative_to(root)) for path in (root / "converters").rglob("*.py")]
    for path, inside in files:
        layer = "pylo_zoo" if inside == Path("__init__.py") else inside.parts[0].removesuffix(".py")
        package = ["pylo_zoo", *inside.parts[:-1]]
        for node, lazy in walk(ast.parse(path.read_text(encoding="utf-8")), lazy=False):
            for name in imported_names(node, package):
                target = layer_of(name)
                if target not in sys.stdlib_module_names and target != layer:
                    yield Import(layer, target, lazy, f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}")


def walk(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether importing the module leaves it unexecuted."""
    yield node, lazy
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        lazy = True
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and child in node.body
        yield from walk(child, lazy=lazy or typing_only)


def imported_names(node: ast.AST, package: list[str]) -> list[str]:
    """The full dotted names that ``node`` imports, including a literal ``import_module("x")``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) + 1 - node.level] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names] if module == "pylo_zoo" else [module]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
        name = node.args[0]
        return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return []


def layer_of(name: str) -> str:
    """``torch.nn`` -> ``torch``; ``pylo_zoo.optim.velo`` -> ``optim``; a name in ``pylo_zoo`` -> ``pylo_zoo``."""
    first, *rest = name.split(".")
    own = not rest or rest[0] in ("Artifact", "ZooError", "__version__", "load")
    return first if first != "pylo_zoo" or own else rest[0]


def violations(root: Path) -> list[str]:
    """Violations of the table, one line each."""
    results = []
    for each in read_imports(root):
        if each.layer not in LAYERS:
            results.append(f"{each.where}: layer {each.layer} has no row in ARROWS")
        elif each.target not in LAYERS[each.layer]:
            results.append(f"{each.where}: {each.layer} must not import {each.target}")
        elif not each.lazy and each.target in LAZY.get(each.layer, ()):
            results.append(f"{each.where}: {each.layer} must import {each.target} inside a function")
    return results


def test_imports_follow_the_table() -> None:
    assert violations(ROOT) == []


def test_the_table_has_no_cycle() -> None:
    """Imports inside functions count too, except those of ``pylo_zoo/__init__.py``, which offers ``load`` to users."""
    graphlib.TopologicalSorter({**LAYERS, "pylo_zoo": LAYERS["pylo_zoo"] - LAZY["pylo_zoo"]}).prepare()


def test_the_table_has_no_unused_entry() -> None:
    imported = {(each.layer, each.target) for each in read_imports(ROOT)}
    assert {(layer, target) for layer, allowed in LAYERS.items() for target in allowed} == imported


def test_modules_have_no_cycle() -> None:
    """Imports inside functions count too; imports for type checkers do not."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / "pylo_zoo").rglob("*.py")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    del modules["pylo_zoo"]
    graph = {name: modules_imported_by(path, modules) - {name} for name, path in modules.items()}
    assert "pylo_zoo.ops.step" in graph["pylo_zoo.optim.mlp_rule"]
    graphlib.TopologicalSorter(graph).prepare()


def modules_imported_by(path: Path, modules: Collection[str]) -> set[str]:
    """Names in ``modules`` that the module at ``path`` imports."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in modules else node.module for name in inner)
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes.extend(ast.iter_child_nodes(node))
    return names & set(modules)


def test_the_table_keeps_optional_packages_optional() -> None:
    def importers(*names: str) -> set[str]:
        return {layer for layer, allowed in LAYERS.items() if allowed & set(names)}

    assert importers("jax", "flax") == {"reference", "parity"}
    assert importers("reference") == {"parity"}
    assert importers("safetensors") == {"artifact", "formats"}
    assert importers("typer") == {"cli"}


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("pylo_zoo/ops/bad.py", "import jax.numpy as jnp", "ops must not import jax"),
        ("pylo_zoo/ops/bad.py", "from pylo_zoo.nets import x", "ops must not import nets"),
        ("pylo_zoo/ops/bad.py", "from .. import optim", "ops must not import optim"),
        ("pylo_zoo/ops/bad.py", "from ..optim import VeLO", "ops must not import optim"),
        ("pylo_zoo/kernels/bad.py", "from pylo_zoo import optim", "kernels must not import optim"),
        ("pylo_zoo/optim/bad.py", "def f():\n    import pylo_zoo.reference", "optim must not import reference"),
        ("pylo_zoo/optim/bad.py", "import importlib\nimportlib.import_module('flax')", "optim must not import flax"),
        ("pylo_zoo/optim/bad.py", "import safetensors.torch", "optim must not import safetensors"),
        ("pylo_zoo/reference/bad.py", "import torch", "reference must not import torch"),
        ("pylo_zoo/cli/bad.py", "import torch", "cli must not import torch"),
        ("pylo_zoo/cli/bad.py", "from rich.table import Table", "cli must import rich inside a function"),
        ("pylo_zoo/parity/bad.py", "import jax", "parity must import jax inside a function"),
        (
            "pylo_zoo/__init__.py",
            "from pylo_zoo.weights import load",
            "pylo_zoo must import weights inside",
        ),
        ("pylo_zoo/new.py", "import numpy", "layer new has no row in ARROWS"),
        ("converters/bad.py", "from flax.serialization import msgpack_restore", "converters must not import flax"),
        ("converters/bad.py", "from pylo_zoo.optim import VeLO", "converters must not import optim"),
    ],
)
def test_a_forbidden_import_is_detected(tmp_path: Path, path: str, line: str, complaint: str) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(line)
    assert [each.partition(": ")[2].startswith(complaint) for each in violations(tmp_path)] == [True]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pylo_zoo/cli/good.py", "def f():\n    from rich.table import Table"),
        ("pylo_zoo/cli/good.py", "if TYPE_CHECKING:\n    from pylo_zoo.registry import Entry"),
        ("pylo_zoo/ops/good.py", "import math\nimport torch\nfrom pylo_zoo.ops.layout import x"),
    ],
)
def test_an_allowed_import_is_accepted(tmp_path: Path, path: str, line: str) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pylo_zoo", {"torch", "numpy", "jax", "flax"}),
        ("import pylo_zoo.cli", {"torch", "numpy", "jax", "flax", "yaml", "rich.table"}),
        ("import pylo_zoo; from pylo_zoo.optim import VeLO", {"jax", "flax"}),
    ],
)
def test_importing_does_not_load_heavy_packages(statement: str, absent: set[str]) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
