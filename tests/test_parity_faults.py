"""Faults planted in the torch side's source: single steps show them and name the first affected quantity."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from proofs import corrupted, random_weights, reference

from pylo_zoo.ops import accumulators, adam, conditioning, features, layout, mlp, orthogonalize, step
from pylo_zoo.optim import base, celo2, lstm_controlled, mlp_rule, mulo, velo
from pylo_zoo.parity import cases, controls
from pylo_zoo.parity.explain import first_difference
from pylo_zoo.parity.steps import compare
from pylo_zoo.report.records import Explanation

pytest.importorskip("jax")


class Fault(NamedTuple):
    """A piece of a function's source, its replacement, and the first quantity that shows it."""

    module: ModuleType
    function: str
    right: str
    wrong: str
    shows: str
    family: str = "velo"
    regime: str = "ordinary"


FAULTS = {
    "guard of a zero parameter": Fault(
        conditioning, "tensor_features", "square.clamp(min=1e-9)", "square", "lstm_inputs", regime="zero parameters"
    ),
    "rank of five axes": Fault(
        conditioning,
        "ranks",
        "(counts[:, None] == torch.arange",
        "(counts[:, None].clamp(max=MAX_RANK - 1) == torch.arange",
        "lstm_inputs",
    ),
    "cap of a negative loss": Fault(
        conditioning, "advance_loss", "cap.abs()", "cap", "loss_average", regime="negative losses"
    ),
    "initial LSTM state": Fault(
        lstm_controlled,
        "LSTMControlledOptimizer.new_state",
        "controller.initial_hidden[0], controller.initial_cell[0]",
        "controller.initial_cell[0], controller.initial_hidden[0]",
        "lstm_cell",
    ),
    "decay of zero": Fault(
        celo2,
        "CELO2._options",
        'if group["adam_weight_decay"] is None else',
        'if not group["adam_weight_decay"] else',
        "parameter",
        "celo2",
        "no AdamW decay",
    ),
    "vectors with all features": Fault(
        step,
        "learned_step",
        "rule.unfactored if axes.factored is None else rule.features",
        "rule.features",
        "direction",
        "celo2",
        "learned rule for all",
    ),
    "gradient clipped in place": Fault(
        mlp_rule, "Limits.condition", "else g.clamp(", "else g.clamp_(", "parameter", regime="huge"
    ),
    "row for column": Fault(
        accumulators, "factors", "return Factors(row, col,", "return Factors(col, row,", "features/row"
    ),
    "an exception": Fault(mlp_rule, "Limits.condition", "else g.clamp(", "else g[0, 0, 0, 0].clamp(", "parameter"),
    "order of spatial axes": Fault(layout, "jax_axes", "*axes[2:]", "*reversed(axes[2:])", "row", regime="spikes"),
    "tie of equal axes": Fault(layout, "axes_of", "by_size[-2], by_size[-1]", "by_size[-1], by_size[-2]", "row"),
    "guard of a squared gradient": Fault(
        accumulators, "advance_factored", "square().add_(1e-30)", "square()", "row", regime="zeros"
    ),
    "epsilon of the row factor": Fault(
        accumulators, "factors", "keepdim=True) + 1e-9", "keepdim=True) + 1e-8", "row_factor"
    ),
    "clamp of the column factor": Fault(
        accumulators, "factors", "col.clamp(min=1e-9)", "col.clamp(min=1e-8)", "col_factor", regime="tiny"
    ),
    "second moment before first": Fault(
        accumulators, "advance_all", "gradient.square(), decays.rms", "gradient, decays.rms", "second_moment"
    ),
    "largest for mean": Fault(accumulators, "advance_factored", "mean(dim=d1", "amax(dim=d1", "col"),
    "fraction past the end": Fault(
        conditioning, "fraction_features", "step.to(like)", "(step.to(like) + (step >= 7))", "fraction_features"
    ),
    "cap of the loss": Fault(conditioning, "advance_loss", "2 * cap", "3 * cap", "loss_average"),
    "guard of the loss features": Fault(
        conditioning, "loss_features", "min=1e-8", "min=1e-7", "loss_features", regime="tiny"
    ),
    "loss features from the first": Fault(conditioning, "loss_features", "step <= 2", "step <= 1", "loss_features"),
    "mean of m for var_rms": Fault(
        conditioning,
        "tensor_features",
        "var_v + (mean_v - mean_m).square()",
        "var_v + 0 * mean_m",
        "lstm_inputs",
    ),
    "rank with axes of 1": Fault(conditioning, "ranks", "size > 1", "size > 0", "lstm_inputs"),
    "epsilon of a logarithm": Fault(conditioning, "_log", "1e-8 + (10", "1e-7 + (10", "lstm_inputs"),
    "horizon of the loss decays": Fault(
        conditioning,
        "loss_decays",
        "linspace(1, math.log10(num_steps)",
        "linspace(1, math.log10(num_steps + 1)",
        "loss_average",
    ),
    "epsilon of the normalization": Fault(
        features, "normalize", "torch.rsqrt(eps", "torch.rsqrt(2 * eps", "normalized/gradient"
    ),
    "normalization by deviation": Fault(
        features, "mean_square", "x.square().mean(", "x.var(unbiased=False, ", "normalized/gradient"
    ),
    "epsilon of the scale": Fault(features, "parameter_scale", "mean() + 1e-9", "mean() + 1e-8", "parameter_scale"),
    "magnitude without its factor": Fault(
        features, "step_of", "magnitude * exp_mult", "magnitude * 2 * exp_mult", "step"
    ),
    "activation": Fault(mlp, "mlp", "torch.relu_(x) if", "torch.tanh_(x) if", "direction"),
    "written weights without bias": Fault(
        velo, "GeneratedMLPs.__getitem__", "b[k].to(like)", "0 * b[k].to(like)", "direction"
    ),
    "gradients without clipping": Fault(
        velo, "VeLO.limits", "Limits(MAX_GRADIENT)", "Limits()", "features/gradient", regime="huge"
    ),
    "decay of the new parameter": Fault(
        mlp_rule, "MLPRuleOptimizer.apply", "delta.add_(item.p, ", "delta.add_(item.p - delta, ", "parameter"
    ),
    "time from one": Fault(
        features, "time_features", "number(step, scales)", "number(step + 1, scales)", "time_features", "elo"
    ),
    "epsilon of the unfactored momentum": Fault(
        features, "_factored_momentum", "x.diag_eps", "0.0", "features/factored_momentum", "elo", "tiny"
    ),
    "step_mult twice": Fault(
        mulo, "MuLO.step_mult", "self.behavior.step_mult /", "self.behavior.step_mult**2 /", "step", "mulo"
    ),
    "Adam's count": Fault(adam, "adam_direction", "beta2**count", "beta2**(count + 1)", "v_hat", "celo2"),
    "Adam's epsilon in the root": Fault(
        adam, "adam_direction", "v_hat + eps_root", "v_hat + eps_root + eps", "direction", "celo2"
    ),
    "Newton–Schulz's norm": Fault(
        orthogonalize,
        "newton_schulz_all",
        "_frobenius(x, x.dtype).add_(eps)",
        "_frobenius(x, x.dtype).clamp(min=1).add_(eps)",
        "orthogonalized",
        "celo2",
    ),
    "embeddings under the learned rule": Fault(
        celo2, "CELO2._rule", 'return group["rule"]', 'return "learned"', "momentum", "celo2"
    ),
    "norm of the gradient by tensor": Fault(
        base, "ParamStep.g", "g * scale.to(g)", "g * scale.to(g) * scale.to(g)", "features/gradient", "elo"
    ),
    "LSTM state not carried": Fault(
        lstm_controlled,
        "LSTMControlledOptimizer.prepare",
        "control.hidden, control.cell",
        "control.hidden, cell",
        "lstm_cell",
    ),
}
"""By name."""


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The torch side with the fault."""
    owner: Any = fault.module
    *path, name = fault.function.split(".")
    for each in path:
        owner = getattr(owner, each)
    original = getattr(owner, name)
    function: Any = original.fget if isinstance(original, property) else original
    code = inspect.cleandoc("\n" + inspect.getsource(function)) if path else inspect.getsource(function)
    assert code.count(fault.right) == 1, f"the source has {fault.right!r} {code.count(fault.right)} times"
    namespace = dict(vars(fault.module))
    exec(
        compile("from __future__ import annotations\n" + code.replace(fault.right, fault.wrong), "fault", "exec"),
        namespace,
    )
    users = [vars(m) for n, m in list(sys.modules.items()) if n.startswith("pylo_zoo.")]
    users += [each for user in users for each in user.values() if type(each) is dict]  # tables of functions
    with pytest.MonkeyPatch.context() as patch:
        layout.axes_of.cache_clear()
        if path:
            patch.setattr(owner, name, namespace[name])
        for user in users:
            for key in [key for key, value in user.items() if value is original]:
                patch.setitem(user, key, namespace[name])
        yield
    layout.axes_of.cache_clear()


def difference(family: str, regime: str) -> Explanation | None:
    reference_run = reference(family, regime)
    return first_difference([compare(random_weights(family)[0], reference_run, "float64", "torch")])


@pytest.mark.parametrize("family", ["velo", "celo2", "elo", "mulo"])
def test_there_is_no_difference_without_a_fault(family: str) -> None:
    assert difference(family, "ordinary") is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_located(name: str) -> None:
    fault = FAULTS[name]
    with planted(fault):
        result = difference(fault.family, fault.regime)
    assert result is not None
    assert result.quantity == fault.shows


def test_the_initial_loss_minimum_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's first step uses the optimizer's own new state, not a synchronized one."""
    monkeypatch.setattr(conditioning, "LOSS_MINIMUM_START", 100.0)
    result = difference("velo", "huge")
    assert result is not None
    assert (result.quantity, result.step) == ("loss_minimum", 0)


def test_an_exception_is_located() -> None:
    with planted(FAULTS["an exception"]):
        result = difference("velo", "ordinary")
    assert result is not None
    assert result.misfit is not None
    assert result.misfit.startswith("the optimizer raised IndexError")
    assert (result.case, result.step) == ("scalar", 0)


RECORDED = {
    "of a wrong shape": (
        "feature.movedim(0, -1) if name == 'momentum' else feature",
        r"features/momentum has shape \(.*\) on the torch side and \(3, .*\) in the original, both in JAX layout",
    ),
    "of too few channels": ("feature[:2]", r"features/momentum has shape \(2, .*\) on the torch side and \(3, .*"),
    "not at all": ("feature) if name != 'momentum' else (None", r"the torch side does not record features/momentum"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_value_of_another_shape_has_its_own_message(name: str) -> None:
    wrong, expected = RECORDED[name]
    right = 'record(f"features/{name}", feature)'
    with planted(Fault(features, "columns", right, right.replace("feature)", f"{wrong})"), "")):
        result = difference("elo", "ordinary")
    assert result is not None
    assert result.quantity == "features/momentum"
    assert re.fullmatch(expected, result.misfit or "")


def test_a_wrong_tie_shows_only_in_tied_shapes() -> None:
    tied = next(fault for fault in controls.FAULTS if fault.name == "tied axes")
    with controls.substituted(tied.code, "pylo_zoo.optim"):
        result = difference("velo", "ordinary")
    assert result is not None
    shapes = {case.name: case.shape for case in cases.CASES}
    off = {name for name in result.off_in if sorted(shapes[name])[-1] == sorted(shapes[name])[-2]}
    assert set(result.off_in) == off
    assert {"square dense", "conv2d, in = out", "conv1d, all equal"} <= off
    assert {"wide dense", "conv2d", "embedding"} <= set(result.right_in)


@pytest.mark.parametrize(
    ("family", "tensor", "first"),
    [
        ("velo", "controller.lstm.weight", "lstm_cell"),
        ("velo", "mlp.layers.0.weight", "written/0"),
        ("celo2", "mlp.layers.2.weight", "direction"),
        ("elo", "mlp.layers.1.bias", "direction"),
        ("mulo", "momentum_decays", "momentum"),
    ],
)
def test_a_wrong_weight_is_located(family: str, tensor: str, first: str) -> None:
    wrong = corrupted(random_weights(family)[0], tensor, 1.001)
    result = first_difference([compare(wrong, reference(family, "ordinary"), "float64", "torch")])
    assert result is not None
    assert (result.quantity, result.step) == (first, 0)
    assert result.ours != result.theirs
    assert next(link.quantity for link in result.chain if not link.passed) == first
