"""A family of another package works like a built-in one: every generic test runs over the toy in ``toy_family/``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import plugin_packages
import pytest
import test_artifact
import test_contract_compile
import test_contract_options
import test_contract_parameters
import test_contract_pytorch
import test_contract_state
import test_contract_steps
import test_contract_training
import test_convert_cli
import test_converters
import test_npz
import test_parity
import torch
import trees
from commands import Capture, run
from contract_table import PROPERTIES, Entry
from plugin_packages import TOY, installed

from pylo_zoo import converters, load, parity, registry
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import optimizer_class

CODE = TOY / "toy_family"
DOCS = Path(__file__).parent.parent / "docs" / "adding-a-family.md"
CONTRACT = (
    test_contract_steps,
    test_contract_options,
    test_contract_state,
    test_contract_parameters,
    test_contract_training,
    test_contract_compile,
    test_contract_pytorch,
)
MODULES = (test_converters, test_artifact, test_npz, test_convert_cli, test_parity, *CONTRACT)
BUILT_IN_ONLY = "test_the_optimizer_that_a_family_names_exists"  # in pylo_zoo.optim


def generic_tests() -> Iterator[Any]:
    """The tests in :data:`MODULES` that run over a table of families or optimizers, with their other parameters."""
    for module in MODULES:
        for name, function in vars(module).items():
            arguments = inspect.signature(function).parameters if name.startswith("test_") else {}
            if name == BUILT_IN_ONLY or not {"family", "entry"} & arguments.keys() or "resumed" in arguments:
                continue
            if "entry" in arguments and not (hasattr(function, "row") and not PROPERTIES[function.row].left_out):
                continue  # a helper, or a property that not every family has
            marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
            others = [mark for mark in marks if mark.args[0] not in ("family", "entry")]
            if any("family" in mark.args[0] for mark in others):
                continue  # a table of named checkpoints
            axes = [[(mark.args[0], value) for value in mark.args[1]] for mark in others]
            for choice in map(dict, itertools.product(*axes)):
                yield pytest.param(function, choice, id=f"{name}{list(choice.values()) or ''}")


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[converters.Family]:
    """The toy family, installed."""
    declared = plugin_packages.entry_points((TOY / "pyproject.toml").read_text())
    with installed(tmp_path_factory.mktemp("site"), "toy-family", declared, TOY), pytest.MonkeyPatch.context() as patch:
        family = converters.get("toy")
        patch.setitem(trees.SMALL, "toy", family.architecture(hidden_size=4))
        yield family


@pytest.mark.parametrize(("test", "choice"), list(generic_tests()))
def test_generic(
    test: Callable[..., None], choice: dict[str, Any], toy: converters.Family, request: pytest.FixtureRequest
) -> None:
    arguments = dict(choice)
    for name, parameter in inspect.signature(test).parameters.items():
        if name == "entry":
            arguments[name] = Entry(optimizer_class("toy"), trees.synthetic_artifact("toy"), {})
        elif name == "family":
            arguments[name] = "toy" if parameter.annotation == "str" else toy
        elif name not in arguments:
            arguments[name] = request.getfixturevalue(name)
    test(**arguments)


def test_the_generic_tests_are_collected() -> None:
    result = {param.values[0].__name__ for param in generic_tests()}  # pyright: ignore[reportAttributeAccessIssue]
    assert {"test_conversion_is_invertible", "test_every_family_passes", "test_joined_names"} <= result
    assert {"test_a_saved_run_continues_bit_for_bit", "test_synthetic_checkpoints_of_every_family_round_trip"} <= result
    assert len(result) >= 18


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands(here: Path, capsys: Capture) -> None:
    assert run("list", "--quiet") == 0
    assert "toy-released" in capsys.readouterr().out.split()
    assert run("info", "toy-released", "--json") == 0
    assert json.loads(capsys.readouterr().out)["family"] == "toy"
    assert run("convert", "toy-released") == 0
    assert run("verify", "zoo/toy-released", "--json") == 0
    assert run("export", "zoo/toy-released", "--out", "theta.state") == 0
    assert (here / "theta.state").read_bytes() == (CODE / "theta.state").read_bytes()
    assert load("zoo/toy-released").defaults == {"lr": 0.5, "weight_decay": 0.0}
    assert run("inspect", "theta.state") == 0
    assert "toy" in capsys.readouterr().out


def test_it_trains() -> None:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    optimizer = optimizer_class("toy")([p], weights="toy-released", lr=1.0)  # pyright: ignore[reportCallIssue]
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("tensor", ["hidden.weight", "out.bias"])
def test_a_corrupted_weight_fails(tensor: str, tmp_path: Path) -> None:
    source = trees.write_theta(tmp_path, "toy")
    report = parity.verify(test_parity.corrupted(convert("toy", source=source), tensor, 1.001), source)
    assert report.status == "failed"
    failed = {(check.level, check.dtype) for check in report.checks if not check.passed}
    assert {("network", "float64"), ("trajectory", "float64")} <= failed


def test_without_a_reference_parity_is_not_run(toy: converters.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "third_party", lambda: {"toy": replace(toy, reference=None)})
    report = parity.verify(convert("toy-released"), CODE / "theta.state")
    assert (report.status, report.leaves.passed) == ("not_run", True)
    assert report.reason == "the family toy has no JAX reference"


# --- broken packages ---------------------------------------------------------------------------------------------

BROKEN = {
    "module that is absent": ("families", "nowhere:FAMILY", "ModuleNotFoundError"),
    "attribute that is absent": ("families", "broken:NONE", "AttributeError"),
    "module that raises": ("families", "raises:FAMILY", "RuntimeError: not today"),
    "object that is not a family": ("families", "broken:NUMBERS", "1 is not a Family"),
    "object that is not a sequence": ("families", "broken:NUMBER", "TypeError"),
    "built-in name": ("families", "broken:ELO", "elo exists already"),
    "invalid name": ("families", "broken:SPACED", "is not a valid family name"),
    "registry that is absent": ("registries", "broken:registry.yaml", "Cannot read the registry"),
    "built-in registry entry": ("registries", "broken:ours.yaml", "velo-sample exists already"),
    "registry entry of an unknown family": ("registries", "broken:unknown.yaml", "family 'nothing' is unknown"),
}
ENTRY = """{name}:
  {{family: {family}, summary: s, license: MIT, trained: false, sources: [{{uri: "package://f", format: npz}}]}}
"""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_one_warning_and_breaks_nothing(case: str, tmp_path: Path, capsys: Capture) -> None:
    group, value, complaint = BROKEN[case]
    package = tmp_path / "broken"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from dataclasses import replace\nfrom pylo_zoo.converters.elo import ELO\n"
        "SPACED, NUMBER, NUMBERS = replace(ELO, name='a b'), 1, [1]\n"
    )
    (package / "ours.yaml").write_text(ENTRY.format(name="velo-sample", family="velo"))
    (package / "unknown.yaml").write_text(ENTRY.format(name="something", family="nothing"))
    (tmp_path / "raises.py").write_text("raise RuntimeError('not today')")
    with installed(tmp_path, "broken-package", f"[pylo_zoo.{group}]\nbroken = {value}\n"):
        assert converters.get("elo").name == "elo"  # built-in families are registered before third-party code runs
        with pytest.warns(UserWarning, match=re.escape(complaint)) as caught:
            families = set(converters.FAMILIES) if run("list", "--quiet") == 0 else set()
        listed = capsys.readouterr().out.split()
        assert {"celo", "toy-released"} <= set(listed)
        assert "something" not in listed
        assert {"elo", "toy"} <= families
        assert len(caught) == 1
        assert "of the package broken-package: " in str(caught[0].message)


def test_the_command_line_warns_in_one_line(tmp_path: Path) -> None:
    with installed(tmp_path, "broken-package", "[pylo_zoo.families]\nbroken = nowhere:FAMILY\n"):
        code = "from pylo_zoo.cli import main; main(['list', '--quiet'])"
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0
    assert "celo" in done.stdout.split()
    assert done.stderr == (
        "Warning: Skipped the pylo_zoo.families entry point 'broken' (nowhere:FAMILY) of the package broken-package: "
        "ModuleNotFoundError: No module named 'nowhere'\n"
    )


def test_an_invalid_import_string(toy: converters.Family) -> None:
    with pytest.raises(ZooError, match=r"toy names 'toy_family:None', which cannot be imported"):
        toy.load("toy_family:None")


# --- the guide ---------------------------------------------------------------------------------------------------


def test_every_code_block_of_the_guide_is_from_the_toy() -> None:
    files = [path.read_text() for path in TOY.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    blocks = re.findall(r"^```(?:python|toml|yaml)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    assert [block for block in blocks if not any(block in text for text in files)] == []


@pytest.mark.parametrize("name", ["converter.py", "optimizer.py", "registry.yaml", "checkpoint.py", "reference.py"])
def test_the_guide_has_every_file_of_the_toy_in_full(name: str) -> None:
    """The blocks that are part of a file, in the guide's order, are the file without its docstring."""
    text = (CODE / name).read_text()
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    pasted = "\n\n".join(block for block in blocks if block in text)
    assert re.sub(r"\s+", " ", re.sub(r'^""".*?"""', "", text, count=1)).strip() == re.sub(r"\s+", " ", pasted).strip()


def test_a_written_checkpoint_converts(here: Path) -> None:
    importlib.import_module("toy_family.checkpoint").write_theta(here / "theta.state")
    assert convert("toy", source=here / "theta.state").architecture == converters.get("toy").released


def test_the_toys_registry_pins_its_checkpoint() -> None:
    source = registry.get("toy-released").weights
    assert source.path == CODE / "theta.state"
    assert source.origin == "toy_family"
    assert source.sha256 == hashlib.sha256((CODE / "theta.state").read_bytes()).hexdigest()
