"""The check of the reference against the groups' own packages: with stand-ins, and for real if they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_data
import numpy as np
import pytest
import stand_ins
import trees

pytest.importorskip("jax")
pytest.importorskip("optax")
serialization = pytest.importorskip("flax.serialization")

from pylo_zoo import config  # noqa: E402  (needs jax)
from pylo_zoo.errors import ZooError  # noqa: E402
from pylo_zoo.parity import original_packages, originals  # noqa: E402
from pylo_zoo.parity.originals import ORIGINALS, TOLERANCE, available, check_reference, run_original  # noqa: E402
from pylo_zoo.reference import FAMILIES  # noqa: E402

SHAPES: dict[str, tuple[int, ...]] = {"a": (), "b": (5,), "w": (4, 6)}
STEPS = 3
VERSIONS = {"learned_optimization": "0.0.1", "celo": "0.0.2", "celo2_optax": "0.1.0"}


@pytest.fixture
def stand_in_packages(tmp_path: Path) -> Iterator[None]:
    """The three packages, as stand-ins."""
    with stand_ins.importable(tmp_path, stand_ins.MODULES, VERSIONS):
        yield


def request(family: str, **behavior: Any) -> dict[str, Any]:
    """Arguments of a small run, except the family's name."""
    rng = np.random.default_rng(3)

    def draw() -> dict[str, np.ndarray]:
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

    return {
        "theta": trees.nested(trees.theta(family, scale=0.3)),
        "architecture": config.to_dict(trees.SMALL[family]),
        "behavior": config.to_dict(FAMILIES[family].behavior(**behavior)),
        "hyper": {"num_steps": 20} if "num_steps" in FAMILIES[family].hyper else {},
        "params": draw(),
        "grads": [draw() for _ in range(STEPS)],
        "losses": [2.0, 1.5, 1.7],
    }


# --- with stand-ins ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in_packages")
def test_importable_packages_are_listed_with_versions() -> None:
    assert available() == VERSIONS


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("family", ORIGINALS)
def test_each_original_is_found_and_run(family: str) -> None:
    inputs = request(family)
    check = check_reference(family, **inputs)
    assert check.agrees, check.errors
    assert check.run.original == f"{ORIGINALS[family].module}.{ORIGINALS[family].name}"
    assert check.run.version == VERSIONS[ORIGINALS[family].package]
    assert len(check.run.sha256) == 64
    assert len(check.run.params) == len(check.reference) == STEPS
    for name, shape in SHAPES.items():
        assert (check.run.params[-1][name].shape, check.run.params[-1][name].dtype) == (shape, np.float32)
        assert not np.array_equal(check.run.params[-1][name], inputs["params"][name])


@pytest.mark.usefixtures("stand_in_packages")
def test_a_factor_that_is_a_literal_in_googles_class() -> None:
    check = check_reference("velo", **request("velo", ff_mult=1.0))
    assert check.agrees, check.errors


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize("family", ["celo2", "celo2-base"])
def test_celo2_is_composed_with_clipping_decay_and_adamw(family: str) -> None:
    inputs = request(family)
    inputs["hyper"] = {"lr": 0.1, "weight_decay": 0.2, "clip_norm": 0.5, "adam_weight_decay": 0.3, "adam_eps": 1e-3}
    inputs["losses"] = None
    check = check_reference(family, **inputs)
    assert check.agrees, check.errors
    inputs["hyper"]["lr"] = 0.11
    assert not np.allclose(run_original(family, **inputs).params[-1]["b"], check.run.params[-1]["b"], rtol=1e-4)


def test_a_disagreement_is_reported(tmp_path: Path) -> None:
    path = "learned_optimization/learned_optimizers/adafac_mlp_lopt.py"
    with stand_ins.importable(tmp_path, {path: stand_ins.ADAFAC + "    off = 0.01\n"}):
        check = check_reference("adafac-mlp", **request("adafac-mlp"))
    assert not check.agrees
    name, error = check.worst
    assert error == max(check.errors.values())
    assert 50 * TOLERANCE < error < 150 * TOLERANCE  # one percent per step
    assert check.errors[name] == error


def test_an_original_that_is_not_finite_agrees_with_nothing(tmp_path: Path) -> None:
    path = "learned_optimization/learned_optimizers/adafac_mlp_lopt.py"
    with stand_ins.importable(tmp_path, {path: stand_ins.ADAFAC + "    off = float('nan')\n"}):
        check = check_reference("adafac-mlp", **request("adafac-mlp"))
    assert not check.agrees
    assert np.isnan(check.worst[1])


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with stand_ins.importable(tmp_path, {}):
        assert available() == {}
        for family, original in ORIGINALS.items():
            with pytest.raises(ZooError, match="cannot be imported") as caught:
                run_original(family, **request(family))
            assert original.module in caught.value.message
            assert original_packages.HOMES[original.package] in caught.value.hint


def test_a_version_without_the_optimizer_is_named(tmp_path: Path) -> None:
    """Like the release of 2022 on the package index, which has no ``research``."""
    path = "learned_optimization/learned_optimizers/adafac_mlp_lopt.py"
    with stand_ins.importable(tmp_path, {path: stand_ins.ADAFAC}, {"learned_optimization": "0.0.1"}):
        assert available() == {"learned_optimization": "0.0.1"}
        with pytest.raises(ZooError, match=r"HyperV2 \(version 0\.0\.1\), cannot be imported: ModuleNotFoundError"):
            run_original("velo", **request("velo"))


BROKEN = {
    "an import": ("raise AttributeError('module jax has no attribute tree_map')", "cannot be imported"),
    "its name": ("AdafacMLP = None", "cannot be imported"),
    "an argument": ("class AdafacMLPLOpt:\n    pass", "fails to run"),
    "a step": (
        stand_ins.ADAFAC + "    def opt_fn(self, theta):\n        raise AttributeError('tree_map')\n",
        "fails to run",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_version_that_does_not_run_here_is_one_clear_error(what: str, tmp_path: Path) -> None:
    text, complaint = BROKEN[what]
    path = "learned_optimization/learned_optimizers/adafac_mlp_lopt.py"
    with stand_ins.importable(tmp_path, {path: text}, {"learned_optimization": "0.0.1"}):
        with pytest.raises(
            ZooError, match=rf"\(version 0\.0\.1\), {complaint}: \w+Error: .*(tree_map|AdafacMLPLOpt)"
        ) as caught:
            run_original("adafac-mlp", **request("adafac-mlp"))
        assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("stand_in_packages")
@pytest.mark.parametrize(
    ("family", "change", "complaint"),
    [
        ("velo", {"losses": None}, "0 losses for 3 steps"),
        ("velo", {"losses": [1.0]}, "1 loss for 3 steps"),
        ("velo", {"hyper": {}}, "num_steps missing"),
        ("velo", {"hyper": {"num_steps": 20, "lr": 0.5}}, "lr is 0.5"),
        ("adafac-mlp", {"hyper": {"weight_decay": 0.1}}, "weight_decay is 0.1"),
        ("adafac-mlp", {"hyper": {"clip_norm": 1.0}}, "clip_norm is 1.0"),
        ("celo2", {"hyper": {"grad_clip_val": 1.0}}, "grad_clip_val is 1.0"),
        ("celo2", {"hyper": {"momentum": 0.9}}, "unknown momentum"),
        ("celo2", {"grads": [{"w": np.zeros((4, 6))}]}, "gradients of step 0"),
        ("celo2", {"grads": []}, "params or grads is empty"),
        ("celo2", {"architecture": {"ff_hidden_size": 8}}, "ff_hidden_layers missing"),
    ],
)
def test_mismatches_are_named(family: str, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        run_original(family, **request(family) | change)


@pytest.mark.parametrize("family", ["elo", "elo-celo2", "mulo", "adam"])
def test_a_family_without_an_original_is_named(family: str) -> None:
    with pytest.raises(ZooError, match=f"Unknown original {family!r}"):
        run_original(family, {}, architecture={}, behavior={}, hyper={}, params={}, grads=[])


# --- for real ----------------------------------------------------------------------------------------------------

REAL = [name for name in golden_data.CASES if golden_data.spec(name)["family"].replace("_", "-") in ORIGINALS]


@pytest.mark.parametrize("case", REAL)
def test_the_reference_agrees_with_the_installed_original(case: str) -> None:
    """On the golden runs, the original must reproduce its recorded numbers, and the reference must agree with it."""
    spec, tensors = golden_data.spec(case), golden_data.trajectory(case)
    family = spec["family"].replace("_", "-")
    artifact = golden_data.artifact(case)
    inputs = {
        "theta": serialization.msgpack_restore(golden_data.theta_path(case).read_bytes()),
        "architecture": config.to_dict(artifact.architecture),
        "behavior": config.to_dict(artifact.behavior),
        "hyper": {name: spec[name] for name in FAMILIES[family].hyper if name in spec},
        "params": {name: tensors[f"params.0.{name}"] for name in spec["shapes"]},
        "grads": [{name: tensors[f"grads.{t}.{name}"] for name in spec["shapes"]} for t in range(spec["steps"])],
        "losses": tensors["loss"],
    }
    try:
        check = check_reference(family, **inputs)
    except ZooError as error:
        if "cannot be imported" not in error.message:
            raise
        pytest.skip(error.message)
    assert check.agrees, (check.run.original, check.run.version, check.run.sha256, check.errors)
    for t, params in enumerate(check.run.params):
        for name, got in params.items():
            start, expected = inputs["params"][name], tensors[f"params.{t + 1}.{name}"]
            floor = originals.FLOOR * np.abs(expected).max()
            moved = np.abs(tensors[f"params.{spec['steps']}.{name}"] - start).max()
            assert np.abs(got - expected).max() <= TOLERANCE * moved + floor, (name, t)
