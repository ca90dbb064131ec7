"""The JAX reference against trajectories of the original code, and against SPEC."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from golden_data import CASES, CHECKPOINTS, GOLDEN
from margins import check, check_close
from rounding import FUNCTION, additions, gamma
from safetensors.numpy import load_file

from pylo_zoo import config, converters
from pylo_zoo.errors import ZooError

jax = pytest.importorskip("jax")
flax_serialization = pytest.importorskip("flax.serialization")

from pylo_zoo import reference as package  # noqa: E402  (needs jax)
from pylo_zoo.reference import FAMILIES, Reference, accumulators, build  # noqa: E402

# Relative to a parameter's largest movement over the run (golden/README.md); a weight off by one percent exceeds 1e-3.
TOLERANCE = 1e-4
# Relative to a parameter's largest value: 12 roundings in each of two runs, of random sign, add up to √24/2 = 2.4 eps.
FLOOR = 4 * np.finfo(np.float32).eps
SINGLE = torch.float32


class Golden(NamedTuple):
    family: str
    records: dict[str, Any]
    hyper: dict[str, Any]
    theta: dict[str, Any]
    params: list[dict[str, np.ndarray]]
    grads: list[dict[str, np.ndarray]]
    loss: np.ndarray
    lstm: dict[str, np.ndarray]

    def build(self, theta: dict[str, Any] | None = None, dtype: str = "float32") -> Reference:
        return build(self.family, theta or self.theta, **self.records, hyper=self.hyper, dtype=dtype)

    def only(self, *names: str) -> Golden:
        """A run with a few of its tensors, which compiles faster; it differs if clipping or an LSTM couples them."""
        params, grads = ([{name: step[name] for name in names} for step in run] for run in (self.params, self.grads))
        return self._replace(params=params, grads=grads)


@functools.cache
def golden(case: str) -> Golden:
    spec = json.loads((GOLDEN / case / "case.json").read_text())
    family = spec["family"].replace("_", "-")
    fields = spec | spec["config"]
    tensors = load_file(GOLDEN / case / "trajectory.safetensors")

    def at(prefix: str) -> dict[str, np.ndarray]:  # a 0-d tensor is stored as (1,)
        return {name: tensors[f"{prefix}.{name}"].reshape(shape) for name, shape in spec["shapes"].items()}

    return Golden(
        family=family,
        records=records(family, fields),
        hyper={name: spec[name] for name in FAMILIES[family].hyper if name in spec},
        theta=restore("celo" if spec.get("checkpoint") == "real" else GOLDEN / case),
        params=[at(f"params.{t}") for t in range(spec["steps"] + 1)],
        grads=[at(f"grads.{t}") for t in range(spec["steps"])],
        loss=tensors["loss"],
        lstm={leaf: tensors[f"lstm.{leaf}"] for leaf in ("hidden", "cell") if f"lstm.{leaf}" in tensors},
    )


def records(family: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The architecture and behavior of ``family``, from ``fields`` or their defaults."""
    kinds = FAMILIES[family].architecture, FAMILIES[family].behavior
    architecture, behavior = (
        kind(**{field.name: fields[field.name] for field in dataclasses.fields(kind) if field.name in fields})
        for kind in kinds
    )
    return {"architecture": config.to_dict(architecture), "behavior": config.to_dict(behavior)}


def restore(where: str | Path) -> dict[str, Any]:
    """The theta in a folder, or of a real checkpoint by name."""
    folder = CHECKPOINTS / where if isinstance(where, str) else where
    return flax_serialization.msgpack_restore((folder / "theta.state").read_bytes())


def test_every_specification_is_the_reference_of_its_family() -> None:
    named = {name: family.load(family.reference) for name, family in converters.OWN.items() if family.reference}
    assert named == FAMILIES, "A Specification in pylo_zoo/reference needs the name of the family that refers to it."


def run(reference: Reference, case: Golden, steps: int | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The parameters after each step, and the last state."""
    params, state = case.params[0], reference.init(case.params[0])
    trajectory = []
    for grads, loss in list(zip(case.grads, case.loss, strict=True))[:steps]:
        params, state = reference.update(params, grads, state, loss)
        trajectory.append({name: np.asarray(p) for name, p in params.items()})
    return trajectory, state


def errors(trajectory: list[dict[str, Any]], case: Golden) -> dict[str, float]:
    """Each parameter's worst error over the steps, above the floor and relative to its largest movement."""
    worst = {}
    for name, start in case.params[0].items():
        expected = np.stack([params[name] for params in case.params])
        got = np.stack([params[name] for params in trajectory])
        error = np.abs(got - expected[1 : len(got) + 1]).max() - FLOOR * np.abs(expected).max()
        worst[name] = float(np.maximum(error, 0) / np.abs(expected - start).max())  # np.maximum propagates NaN
    return worst


# --- golden trajectories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_golden_trajectory_is_reproduced(case: str) -> None:
    known = golden(case)
    trajectory, state = run(known.build(), known)
    worst = errors(trajectory, known)
    for name, error in worst.items():
        check(error, TOLERANCE, name)
    for leaf, expected in known.lstm.items():  # a sum over 12 steps, computed twice
        bound = gamma(2 * 12, SINGLE) * np.abs(expected).max()
        check_close(np.asarray(state[f"lstm_{leaf}"]), expected, bound, leaf)


@pytest.mark.parametrize("case", CASES)
def test_a_weight_off_by_one_percent_is_detected(case: str) -> None:
    known = golden(case)
    theta = copy.deepcopy(known.theta)
    net = (theta["nn"] if "nn" in theta else theta["ff_mod_stack"])["~"]
    leaf = "w0" if "w0" in net else "w0__2"
    net[leaf] = net[leaf] * np.float32(1.01)
    worst = errors(run(known.build(theta), known)[0], known)
    assert max(worst.values()) > 5 * TOLERANCE


@pytest.mark.slow
def test_another_tie_rule_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_of_equals(shape: tuple[int, ...]) -> tuple[int, int] | None:
        order = sorted(range(len(shape)), key=lambda axis: (shape[axis], -axis))
        return (order[-1], order[-2]) if len(order) > 1 else None

    monkeypatch.setattr(accumulators, "factored_axes", first_of_equals)
    recompile = lambda function: jax.jit(lambda *args: function(*args), static_argnums=0)  # noqa: E731
    monkeypatch.setattr(package, "_compiled", recompile)  # cached compilations with the correct rule are not used
    known = golden("celo2").only("e_tall", "f_square")
    worst = errors(run(known.build(), known)[0], known)
    assert worst["e_tall"] <= TOLERANCE < worst["f_square"]


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["velo_small", "celo2", "elo_mixed"])
def test_float64_is_double_throughout_and_agrees(case: str) -> None:
    known = golden(case).only("a_scalar", "b_vec", "e_tall", "h_conv_tie")
    narrow, _ = run(known.build(), known)
    with enable_x64():
        wide, state = run(known.build(dtype="float64"), known)
    leaves = [leaf for leaf in jax.tree.leaves((wide, state)) if jax.numpy.issubdtype(leaf.dtype, np.floating)]
    assert {leaf.dtype.name for leaf in leaves} == {"float64"}
    worst = errors(narrow, known._replace(params=[known.params[0], *wide]))
    for name, error in worst.items():
        check(error, TOLERANCE, name)


def enable_x64() -> Any:
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


# --- celo-adam, which has no golden trajectory -------------------------------------------------------------------


class LossFeatures:
    """SPEC §4's loss features, written independently in numpy."""

    def __init__(self, num_steps: int) -> None:
        self.decays = np.exp(-1 / np.logspace(1, np.log10(num_steps), 10))
        self.means, self.minima, self.seen = np.zeros(10), np.full(10, 999999999999.0), 0

    def __call__(self, loss: float) -> np.ndarray:
        if self.seen:
            loss = min(2 * abs(self.corrected(self.seen + 1).max()), loss)
        self.seen += 1
        self.means = self.decays * self.means + (1 - self.decays) * loss
        c = self.corrected(self.seen)
        self.minima = np.minimum(self.minima, c)
        rise = np.clip((c[:9] - self.minima[:9]) / np.maximum(1e-8, c[1:] - self.minima[:9]) - 1, -1, 1)
        return rise if self.seen > 2 else np.zeros(9)

    def corrected(self, count: int) -> np.ndarray:
        return self.means / (1 - self.decays**count)


class Adam:
    """SPEC §5's Adam, in numpy."""

    def __init__(self) -> None:
        self.m, self.v, self.t = np.zeros(()), np.zeros(()), 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        m_hat, v_hat = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return m_hat / (1e-8 + np.sqrt(v_hat + 1e-10))


def test_celo_adam_is_adam_at_the_rates_of_its_lstm() -> None:
    known, record = golden("celo_real"), records("celo-adam", {"lstm_hidden_size": 64})
    hyper = {"num_steps": 20, "lr": 0.5, "weight_decay": 0.1}
    taus = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
    names, loss_features = sorted(known.params[0]), LossFeatures(20)
    expected = {name: p.astype(np.float64) for name, p in known.params[0].items()}
    adam = {name: Adam() for name in names}
    with enable_x64():
        reference = build("celo-adam", restore("celo-adam"), **record, hyper=hyper, dtype="float64")
        params: Any = known.params[0]
        state = reference.init(params)
        for t, (grads, loss) in enumerate(zip(known.grads, known.loss, strict=True)):
            z = np.concatenate([np.tanh(10 * (t / 20 - taus)), loss_features(float(loss))])
            inputs = {"lstm_inputs": np.tile(z, (10, 1)), "hidden": state["lstm_hidden"], "cell": state["lstm_cell"]}
            lr_mult = np.asarray(reference.forward(inputs)["lr_mult"])
            params, state = reference.update(params, grads, state, loss)
            for name, rate in zip(names, lr_mult, strict=True):
                step = 0.001 * rate * adam[name](grads[name].astype(np.float64))
                expected[name] = expected[name] - 0.5 * (step + 0.1 * expected[name])
    for name in names:
        # About 20 roundings per step in each of two float64 programs, and a tanh of 10 times its argument.
        bound = gamma(2 * 20 * 10 * len(known.loss), torch.float64) * np.abs(expected[name])
        check_close(np.asarray(params[name]), expected[name], bound, name)


# --- the network's forward pass alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["celo_real", "velo_small"])
def test_forward_generates_an_mlp_for_every_tensor(case: str) -> None:
    known = golden(case)
    leaves, rng = known.theta["ff_mod_stack"]["~"], np.random.default_rng(0)
    hidden = known.theta["lstm_init_state"]["hidden"].shape[1]
    inputs = {"lstm_inputs": known.theta["rnn_params"]["linear_1"]["w"].shape[0], "hidden": hidden, "cell": hidden}
    inputs = {name: rng.normal(size=(3, size)).astype(np.float32) for name, size in inputs.items()}
    inputs["features"] = rng.normal(size=(7, 30)).astype(np.float32)
    out = known.build().forward(inputs)
    controls = np.asarray(out["controls"])
    if known.family == "celo":
        terms = controls.shape[1]  # a softmax: its sum's roundings, a division's, and those of this sum
        check_close(controls.sum(axis=1), np.ones(3), gamma(2 * additions(terms) + FUNCTION, SINGLE), "controls")
    scale = known.records["behavior"].get("ff_mult", 1.0)
    leaves = leaves | {"w0": np.concatenate([leaves[f"w0__{k}"] for k in range(14)], axis=1)}
    for i in range(3):
        w = {name: scale * np.einsum("n,n...->n...", controls[i], leaf).mean(0) for name, leaf in leaves.items()}
        x, terms = inputs["features"], np.abs(inputs["features"])
        for k in range(3):
            hidden_terms = terms @ np.abs(w[f"w{k}"]) + np.abs(w[f"b{k}"])
            x = x @ w[f"w{k}"] + w[f"b{k}"]
            x, terms = (np.maximum(x, 0), hidden_terms) if k < 2 else (x, hidden_terms)
        # Sums of n products in each layer and in the weights, in two programs, bounded by sums of absolute values.
        layers = sum(w[f"w{k}"].shape[0] + 1 + controls.shape[1] + 1 for k in range(3))
        check_close(np.asarray(out["mlp"][i]), x, 2 * gamma(layers, SINGLE) * terms, "mlp")
    assert out["hidden"].shape == out["cell"].shape == (3, hidden)
    assert out["lr_mult"].shape == (3,)


def test_forward_of_the_plain_mlps() -> None:
    out = mulo().forward({"features": np.ones((5, 39), np.float32)})
    assert out["mlp"].shape == (5, 2)
    # an offset of zero keeps a decay, up to float32's resolution of 1 − d
    # 1 − d rounds with the error of 1, then passes through a logarithm and an exponential of ten times as much.
    rounding = gamma(2 * FUNCTION + 4, SINGLE)
    check_close(np.asarray(out["momentum_decays"]), np.array([0.9, 0.99, 0.999]), rounding, "momentum decays")
    check_close(np.asarray(out["rms_decays"]), np.array([1 - 1e-3 * np.exp(0.1)]), rounding, "rms decays")
    assert out["adafactor_decays"].tolist()[0] == 0  # an offset beyond its range is clipped


def test_forward_of_celo2_uses_nine_groups_for_a_vector() -> None:
    features = np.ones((5, 30), np.float32)
    features[:, 15:] = 0
    out = golden("celo2").build().forward({"features": features, "features_unfactored": features[:, :15]})
    # The same sums, once with zeros among their terms, through layers of 30, 8 and 8 inputs.
    unfactored = np.asarray(out["mlp_unfactored"])
    rounding = gamma(2 * (30 + 8 + 8 + 3), SINGLE) * np.abs(unfactored).max()
    check_close(np.asarray(out["mlp"]), unfactored, rounding, "mlp")


# --- behavior without golden trajectories ------------------------------------------------------------------------


def mulo(**hyper: Any) -> Reference:
    """A small μLO with random weights; all offsets but two are zero."""
    rng, sizes = np.random.default_rng(1), (39, 8, 8, 2)
    net = {f"w{i}": rng.normal(size=sizes[i : i + 2]).astype(np.float32) for i in range(3)}
    net |= {f"b{i}": np.zeros(size, np.float32) for i, size in enumerate(sizes[1:])}
    theta = {
        "nn": {"~": net},
        "momentum_decays": np.zeros(3, np.float32),
        "rms_decays": np.array([0.01], np.float32),
        "adafactor_decays": np.array([1.0, 0.0, 0.0], np.float32),
    }
    return build("mulo", theta, **records("mulo", {"hidden_size": 8, "hidden_layers": 2}), hyper=hyper)


def test_mulo_divides_by_the_width_and_cleans_gradients() -> None:
    params = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
    grads = {"w": np.full((4, 4), 0.1, np.float32), "b": np.array([np.nan, 1, 2, 3], np.float32)}
    moved = []
    for reference in (mulo(), mulo(width_mult={"w": 4.0})):
        new, _ = reference.update(params, grads, reference.init(params))
        moved.append({name: np.asarray(p) - params[name] for name, p in new.items()})
    assert np.isfinite(moved[0]["b"]).all()
    np.testing.assert_array_equal(moved[1]["b"], moved[0]["b"])
    # The movement is the difference of parameters near 1, each rounded once.
    check_close(moved[1]["w"], moved[0]["w"] / 4, 2 * gamma(1, SINGLE) * 1.01, "movement")


def test_rules_route_a_parameter() -> None:
    reference, params = golden("celo2").build(), {"w": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)}
    state = reference.init(params)
    assert (list(state["learned"]), list(state["adamw"])) == (["w"], ["b"])
    state = reference.init(params, {"w": "adamw", "b": "learned"})
    assert (list(state["learned"]), list(state["adamw"])) == (["b"], ["w"])
    new, state = reference.update(params, {name: 0.1 * p for name, p in params.items()}, state)
    assert set(new) == set(params)
    assert (list(state["learned"]), list(state["adamw"])) == (["b"], ["w"])
    with pytest.raises(ZooError, match="Invalid rules: v"):
        reference.init(params, {"v": "adamw"})


def test_the_later_of_equal_axes_counts_as_the_largest() -> None:
    shapes = [(3,), (6, 6), (3, 11), (11, 3), (3, 3, 5, 5), (3, 3, 3), (1, 6), (5, 2, 5)]
    expected = [None, (1, 0), (1, 0), (0, 1), (3, 2), (2, 1), (1, 0), (2, 0)]
    assert [accumulators.factored_axes(shape) for shape in shapes] == expected


def test_bad_input_is_named() -> None:
    velo = {"lstm_hidden_size": 4, "param_inits": 2, "ff_hidden_size": 4, "ff_hidden_layers": 2}
    with pytest.raises(ZooError, match="family"):
        build("adam", {}, architecture={}, behavior={}, hyper={})
    with pytest.raises(ZooError, match="num_steps missing"):
        build("velo", {}, **records("velo", velo), hyper={})
    with pytest.raises(ZooError, match="unknown momentum"):
        mulo(momentum=0.9)
    with pytest.raises(ZooError, match="float64"):
        build("velo", {}, **records("velo", velo), hyper={"num_steps": 10}, dtype="float64")


def test_a_missing_loss_is_named() -> None:
    reference, params = golden("velo_small").build(), {"w": np.ones(3, np.float32)}
    with pytest.raises(ZooError, match="loss"):
        reference.update(params, params, reference.init(params))
