"""The contract: the options that all optimizers share come from one declaration, pylo_zoo/optim/options.py."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import contract_docs
import pytest
from contract_table import Entry, holds, make, parameters

from pylo_zoo.compat import pylo
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import VeLO, options
from pylo_zoo.optim.options import CHOICES, DEFAULTS, PER_GROUP, PER_OPTIMIZER, SharedOptions

ROOT = Path(__file__).parent.parent
DECLARED_IN = ("options.py", "contract.py")
"""The modules of pylo_zoo/optim that name every shared option: its declaration, and the base class that reads it."""


def others(name: str) -> list[Any]:
    """The values of an option except its default."""
    return [value for value in CHOICES.get(name, (False, True)) if value != {**DEFAULTS}[name]]


@holds("shared_options")
def test_the_signature_and_the_docstring_list_them(entry: Entry) -> None:
    for of in (entry.cls, type("Derived", (entry.cls,), {})):
        signature = list(inspect.signature(of).parameters.values())
        last = {each.name: each.default for each in signature if each.kind is each.KEYWORD_ONLY}
        assert list(last.items()) == list(DEFAULTS.items())
        assert not any(each.kind is each.VAR_KEYWORD for each in signature)
        docs = inspect.getdoc(of) or ""
        assert "Args:" not in docs or all(f"\n    {name}: " in docs for name in DEFAULTS)
        assert "options: see" not in docs


@holds("shared_options")
def test_arguments_before_them_may_be_positional(entry: Entry) -> None:
    given = {"params": parameters(), **entry.arguments} | ({} if entry.weights is None else {"weights": entry.weights})
    own = [each for each in inspect.signature(entry.cls).parameters.values() if each.kind is not each.KEYWORD_ONLY]
    optimizer: Any = entry.cls(*(given.get(each.name, each.default) for each in own))
    assert optimizer.defaults == make(entry, parameters()).defaults


@holds("shared_options")
def test_copies_keep_them(entry: Entry) -> None:
    chosen = {name: others(name)[0] for name in DEFAULTS}
    optimizer = make(entry, parameters(), **chosen)
    for each in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert {name: getattr(each, name) for name in PER_OPTIMIZER} | {
            name: each.param_groups[0][name] for name in PER_GROUP
        } == chosen


@holds("shared_options")
def test_a_pickle_from_before_an_option_gets_its_default(entry: Entry) -> None:
    optimizer = make(entry, parameters())
    for name in PER_OPTIMIZER:
        delattr(optimizer, name)
    optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    assert {name: getattr(optimizer, name) for name in PER_OPTIMIZER}.items() <= DEFAULTS.items()


@holds("shared_options")
def test_unknown_names_and_values_are_errors(entry: Entry) -> None:
    for name in ("nonfinit", "defaults", "options", "self_"):
        with pytest.raises(TypeError, match=rf"__init__\(\) got an unexpected keyword argument '{name}'"):
            make(entry, parameters(), **{name: "skip"})
    for name, choices in CHOICES.items():
        with pytest.raises(ZooError, match=f"{name} is 'other'. Use one of {', '.join(choices)}"):
            make(entry, parameters(), **{name: "other"})


@holds("shared_options")
def test_a_new_option_appears_from_its_declaration(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "fresh", 3)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(SharedOptions.__annotations__, "fresh", int)
    monkeypatch.setattr(SharedOptions, "__doc__", f"{SharedOptions.__doc__}    fresh: is new.\n    ")
    derived: Any = type("Derived", (entry.cls,), {"__doc__": f"Derived.\n\nArgs:\n{options.DOCS_LINE}"})
    assert inspect.signature(derived).parameters["fresh"].default == 3
    assert derived.__doc__.endswith("fresh: is new.")
    assert "| `fresh` | " in contract_docs.render_options()


def test_only_the_declaration_and_the_base_class_name_them() -> None:
    """A new shared option touches neither the constructors nor their docstrings."""
    for path in sorted((ROOT / "pylo_zoo" / "optim").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        entries = {line.strip().partition(":")[0] for line in path.read_text(encoding="utf-8").splitlines()}
        if path.name not in DECLARED_IN:
            assert not DEFAULTS.keys() & (arguments | entries), path.name


def test_subclasses_may_pass_keywords_on() -> None:
    class Short(VeLO):
        def __init__(self, params: Any, **others: Any) -> None:
            super().__init__(params, num_steps=10, **others)

    assert "nonfinite" not in inspect.signature(Short).parameters
    assert Short(parameters(), weights="velo-sample", nonfinite="skip").nonfinite == "skip"
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Short(parameters(), weights="velo-sample", nonfinit="skip")
    with pytest.raises(TypeError, match=r"VeLO_naive.__init__\(\) got an unexpected keyword argument 'nonfinite'"):
        pylo.VeLO_naive(parameters(), nonfinite="skip")  # pyright: ignore[reportCallIssue]
