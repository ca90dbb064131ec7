"""Stand-ins for the groups' packages: their interfaces, our reference's numbers. They test plumbing, not a rule.

They copy what a caller sees of the originals: modules, names, arguments, and the separate class of the LSTM's state in
theta, because of which a theta cannot be used as read from a file.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trees

PACKAGES = ("learned_optimization", "celo", "celo2_optax")

HYPER_V2 = """
from stand_ins import LearnedOptimizer

class HyperV2(LearnedOptimizer):
    family = "velo"
    settled = {"ff_mult": 100.0}
"""
ADAFAC = """
from stand_ins import LearnedOptimizer

class AdafacMLPLOpt(LearnedOptimizer):
    family = "adafac-mlp"
"""
CELO = """
from stand_ins import LearnedOptimizer

class Celo(LearnedOptimizer):
    family = "celo"
    def __init__(self, train_phase=1, **arguments):
        assert train_phase == 2
        super().__init__(**arguments)
"""
CELO_ADAM = """
from stand_ins import LearnedOptimizer

class Celo(LearnedOptimizer):
    family = "celo-adam"
"""
CELO2 = "from stand_ins import scale_by_celo2\n"

MODULES = {
    "learned_optimization/research/general_lopt/hyper_v2.py": HYPER_V2,
    "learned_optimization/learned_optimizers/adafac_mlp_lopt.py": ADAFAC,
    "celo/optimizers/celo.py": CELO,
    "celo/optimizers/celo_adam.py": CELO_ADAM,
    "celo2_optax.py": CELO2,
}
"""The packages' contents, by path."""


@contextmanager
def importable(site: Path, modules: Mapping[str, str], versions: Mapping[str, str] | None = None) -> Iterator[None]:
    """Make only these modules of the three packages importable; ``versions`` sets their distributions."""
    for path, text in modules.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        for folder in list(Path(path).parents)[:-1]:  # otherwise an installed package would take precedence
            (site / folder / "__init__.py").touch()
    for name, version in (versions or {}).items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        for name in set(_loaded()):
            patch.delitem(sys.modules, name)
        for package in set(PACKAGES) - {path.partition("/")[0].removesuffix(".py") for path in modules}:
            patch.setitem(sys.modules, package, None)
        yield
        for name in _loaded():
            del sys.modules[name]


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in PACKAGES]


class LSTMState(NamedTuple):
    hidden: Any
    cell: Any


class State(NamedTuple):
    params: Any
    inner: Any


class LearnedOptimizer:
    """One of ``learned_optimization``'s optimizers, computed by the reference of ``family``.

    ``settled`` holds behavior fields that the original has no argument for; ``off`` lengthens each step by that factor.
    """

    family: str
    settled: Mapping[str, Any] = {}
    off = 0.0

    def __init__(self, **arguments: Any) -> None:
        self.records: Any = split(self.family, {**arguments, **self.settled})
        if not set(arguments).isdisjoint(self.settled):
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument")

    def init(self, key: Any) -> dict[str, Any]:
        theta = trees.nested(trees.theta(self.family))
        if "lstm_init_state" in theta:
            theta["lstm_init_state"] = LSTMState(**theta["lstm_init_state"])
        return theta

    def opt_fn(self, theta: Mapping[str, Any]) -> Optimizer:
        return Optimizer(self, theta)


class Optimizer:
    def __init__(self, learned: LearnedOptimizer, theta: Mapping[str, Any]) -> None:
        self.learned = learned
        self.theta = dict(theta)
        if "lstm_init_state" in theta:
            state = theta["lstm_init_state"]
            self.theta["lstm_init_state"] = {"hidden": state.hidden, "cell": state.cell}

    def init(self, params: Any, model_state: Any = None, num_steps: int | None = None, key: Any = None) -> State:
        from pylo_zoo.reference import FAMILIES, build

        assert num_steps is not None
        family = self.learned.family
        hyper = {"num_steps": num_steps} if "num_steps" in FAMILIES[family].hyper else {}
        self.reference = build(family, self.theta, **self.learned.records, hyper=hyper)
        return State(params, self.reference.init(params))

    def update(self, opt_state: State, grads: Any, loss: Any = None, *, key: Any = None) -> State:
        assert key is not None
        params, inner = self.reference.update(opt_state.params, grads, opt_state.inner, loss)
        off = self.learned.off
        return State({name: p + off * (p - opt_state.params[name]) for name, p in params.items()}, inner)

    def get_params(self, state: State) -> Any:
        return state.params


def scale_by_celo2(theta: Mapping[str, Any], **config: Any) -> Any:
    """``celo2_optax``'s transformation of the parameters it owns: the step alone, without lr and decay."""
    import optax

    from pylo_zoo.reference import build

    records: Any = split("celo2-base", config)
    reference = build("celo2-base", theta, **records, hyper={"lr": 1.0})

    def own(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in tree.items() if not isinstance(leaf, optax.MaskedNode)}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        before = own(params)
        after, state = reference.update(before, own(updates), state)
        return {**updates, **{name: before[name] - after[name] for name in before}}, state

    return optax.GradientTransformation(lambda params: reference.init(own(params)), update)


def split(family: str, arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Distribute arguments over the records that have them as fields; an unknown one is an error."""
    from pylo_zoo.reference import FAMILIES

    kinds = {"architecture": FAMILIES[family].architecture, "behavior": FAMILIES[family].behavior}
    names = {what: {field.name for field in dataclasses.fields(kind)} for what, kind in kinds.items()}
    if unknown := set(arguments) - names["architecture"] - names["behavior"]:
        raise TypeError(f"got unexpected keyword arguments {sorted(unknown)}")
    return {what: {name: arguments[name] for name in own if name in arguments} for what, own in names.items()}
