"""The rename tables are complete and invertible, and map every number to the right place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import SMALL, Leaves, theta

import pylo_zoo
from pylo_zoo import converters
from pylo_zoo.converters import FAMILIES, candidates, diagnose, nearest, to_jax, to_torch
from pylo_zoo.converters.base import UNUSED, leaf_shapes, tensor_shapes
from pylo_zoo.converters.velo import HYPER_V2
from pylo_zoo.errors import ZooError

SHARED_TREES = [{"celo2", "celo2-base", "elo-celo2"}, {"adafac-mlp", "mulo"}]
MLP, RNN = ("ff_mod_stack", "~"), "rnn_params"


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> converters.Family:
    return FAMILIES[request.param]


def test_a_table_fills_every_tensor_of_the_network_once(family: converters.Family) -> None:
    architecture = SMALL[family.name]
    names = [row.tensor for row in family.table(architecture)]
    assert len(names) == len(set(names))
    net = family.build(architecture, family.behavior())
    used = {name for name in names if not name.startswith(UNUSED)}
    assert used == set(net.state_dict())
    sources = [path for row in family.table(architecture) for path in row.leaves]
    assert len(sources) == len(set(sources))


def test_conversion_is_invertible(family: converters.Family) -> None:
    leaves = theta(family.name)
    architecture = family.infer(leaves)
    assert architecture == SMALL[family.name]
    tensors = to_torch(family, leaves, architecture)
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(family, architecture)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    back = to_jax(family, tensors, architecture)
    assert back.keys() == leaves.keys()
    assert all(back[path].tobytes() == leaf.tobytes() for path, leaf in leaves.items())
    assert sum(tensor.size for tensor in tensors.values()) == sum(leaf.size for leaf in leaves.values())


def test_the_released_shapes_match_the_specification() -> None:
    velo = leaf_shapes(FAMILIES["velo"], FAMILIES["velo"].released)
    assert velo[(*MLP, "w0__3")] == (256, 3, 4)
    assert velo[(*MLP, "w0__4")] == (256, 1, 4)
    assert velo[(*MLP, "w2")] == (256, 4, 3)
    assert velo["lstm_init_state", "hidden"] == (1, 512)
    assert velo[RNN, "rnn/linear", "w"] == (1024, 2048)
    assert velo[RNN, "linear", "w"] == (30, 512)
    celo = leaf_shapes(FAMILIES["celo"], FAMILIES["celo"].released)
    assert celo[RNN, "linear_1", "w"] == (18, 64)
    celo2 = leaf_shapes(FAMILIES["celo2"], FAMILIES["celo2"].released)
    assert (celo2[(*MLP, "w0__13")], celo2[(*MLP, "w2")]) == ((3, 8), (8, 3))
    adafac = leaf_shapes(FAMILIES["adafac-mlp"], FAMILIES["adafac-mlp"].released)
    assert (adafac["nn", "~", "w0"], adafac["nn", "~", "b2"]) == ((39, 32), (2,))
    assert (adafac["momentum_decays",], adafac["rms_decays",]) == ((3,), (1,))
    elo = leaf_shapes(FAMILIES["elo"], FAMILIES["elo"].released)
    assert set(elo) == {("nn", "~", f"{kind}{i}") for kind in "wb" for i in range(3)}


@pytest.mark.parametrize("name", ["velo", "celo", "celo2"])
def test_feature_groups_are_in_numeric_order(name: str) -> None:
    leaves = theta(name)
    for k in range(14):
        leaf = leaves[(*MLP, f"w0__{k}")]
        leaf[:] = 100 * k + np.arange(leaf.shape[-2])[:, None]
    weight = to_torch(FAMILIES[name], leaves, SMALL[name])["mlp.layers.0.weight"]
    widths = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
    expected = [100 * k + channel for k, width in enumerate(widths) for channel in range(width)]
    assert weight.reshape(-1, 30).tolist() == [expected] * (weight.size // 30)


def test_names_and_layouts_agree_with_the_forward_pass() -> None:
    leaves = theta("velo")
    tensors = to_torch(FAMILIES["velo"], leaves, SMALL["velo"])
    for ours, theirs in {
        "controller.pooled": "linear_1",
        "controller.direct": "linear_2",
        "controller.lstm": "rnn/linear",
        "controller.controls": "rnn_to_controls",
        "controller.step_size": "step_size",
        "unused.rnn_params.linear": "linear",
    }.items():
        weight, bias = (".w", ".b") if ours.startswith("unused") else (".weight", ".bias")
        np.testing.assert_array_equal(tensors[ours + weight], leaves[RNN, theirs, "w"].T)
        np.testing.assert_array_equal(tensors[ours + bias], leaves[RNN, theirs, "b"])
    np.testing.assert_array_equal(tensors["controller.initial_cell"], leaves["lstm_init_state", "cell"])
    np.testing.assert_array_equal(tensors["mlp.layers.1.weight"], leaves[(*MLP, "w1")].transpose(0, 2, 1))


# --- family detection ----------------------------------------------------------------------------------------------


def test_a_tree_fits_the_families_that_share_it_and_no_other(family: converters.Family) -> None:
    expected = next((group for group in SHARED_TREES if family.name in group), {family.name})
    assert set(candidates(theta(family.name))) == expected
    assert diagnose(family, theta(family.name)) == []


def test_a_damaged_tree_is_compared_with_the_nearest_family(family: converters.Family) -> None:
    leaves = theta(family.name)
    leaves["surplus",] = np.zeros(1, np.float32)
    del leaves[list(leaves)[1]]
    assert candidates(leaves) == []
    group = next((group for group in SHARED_TREES if family.name in group), {family.name})
    assert nearest(leaves).name in group


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ZooError, match="family 'adam'"):
        converters.get("adam")


# --- complete coverage of leaves -----------------------------------------------------------------------------------


def spoil(leaves: Leaves, how: str) -> None:
    path = ("nn", "~", "w1")
    if how == "missing":
        del leaves[path]
    elif how == "surplus":
        leaves["nn", "~", "w9"] = leaves[path]
    elif how == "misshapen":
        leaves[path] = leaves[path][:, :-1]
    elif how == "float64":
        leaves[path] = leaves[path].astype(np.float64)
    else:
        leaves[path] = np.where(np.eye(6) > 0, np.float32(how), leaves[path])


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("missing", r"leaves missing \(1\): nn/~/w1 \[6, 6\]"),
        ("surplus", r"leaves that this family does not have \(1\): nn/~/w9"),
        ("misshapen", r"leaves of another shape \(1\): nn/~/w1 \[6, 5\] instead of \[6, 6\]"),
        ("float64", r"leaves that are not float32 \(1\): nn/~/w1 float64"),
        ("nan", r"leaves with NaN or infinite values \(1\): nn/~/w1"),
        ("-inf", r"leaves with NaN or infinite values \(1\): nn/~/w1"),
    ],
)
def test_an_invalid_leaf_is_named(how: str, complaint: str) -> None:
    leaves = theta("elo")
    spoil(leaves, how)
    with pytest.raises(ZooError, match=complaint):
        to_torch(FAMILIES["elo"], leaves, SMALL["elo"])
    assert diagnose(FAMILIES["elo"], leaves)


def test_all_invalid_leaves_are_listed_at_once() -> None:
    leaves = {path: leaf for path, leaf in theta("velo").items() if path[0] != RNN or path[1] == "rnn_to_controls"}
    leaves["x",] = np.zeros(1, np.float32)
    with pytest.raises(ZooError) as error:
        to_torch(FAMILIES["velo"], leaves, SMALL["velo"])
    assert "leaves missing (10): " in error.value.message
    assert "and 6 more" in error.value.message
    assert "does not have (1): x" in error.value.message


def test_the_inverse_checks_its_tensors() -> None:
    tensors = to_torch(FAMILIES["celo"], theta("celo"), SMALL["celo"])
    del tensors["unused.rnn_params.linear.b"]
    with pytest.raises(ZooError, match=r"tensors missing \(1\): unused\.rnn_params\.linear\.b"):
        to_jax(FAMILIES["celo"], tensors, SMALL["celo"])


@pytest.mark.parametrize("leaf", [np.zeros((), np.float32), np.zeros((2, 2, 2, 2), np.float32)])
def test_an_architecture_is_not_inferred_from_invalid_leaves(leaf: np.ndarray) -> None:
    leaves = theta("velo")
    leaves["rnn_params", "rnn_to_controls", "b"] = leaf
    assert diagnose(FAMILIES["velo"], leaves)


# --- Google's class ------------------------------------------------------------------------------------------------


def test_fields_missing_from_a_gin_file_get_the_defaults_of_googles_class() -> None:
    fields = HYPER_V2.read({})
    assert (fields["lstm_hidden_size"], fields["param_inits"], fields["use_bugged_loss_features"]) == (128, 64, True)
    assert "ff_mult" not in fields


def test_values_in_a_gin_file_override_the_defaults() -> None:
    bound = {"lstm_hidden_size": 512, "use_bugged_loss_features": False, "reparam_decay": 10.0, "with_g": True}
    fields = HYPER_V2.read(bound)
    assert (fields["lstm_hidden_size"], fields["use_bugged_loss_features"]) == (512, False)
    assert not {"reparam_decay", "with_g"} & fields.keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("with_rms_norm_g", False),
        ("mix_layers", False),
        ("param_scale_mult", False),
        ("precondition_output", True),
        ("clip_param_scale_amount", 0.1),
        ("rnn_state_decay", 0.5),
        ("validation_mode", True),
        ("identity_controls", True),
        ("interpolation", 3),
    ],
)
def test_an_argument_without_an_equivalent_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ZooError, match=rf"HyperV2\.{field}"):
        HYPER_V2.read({field: value})


# --- the record decides ------------------------------------------------------------------------------------------


def test_no_module_compares_with_the_name_of_a_family() -> None:
    root = Path(pylo_zoo.__file__).parent
    compared = {
        f"{path.relative_to(root)}: {ast.unparse(node)}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(each, ast.Constant) and each.value in converters.OWN for each in ast.walk(node))
    }
    assert compared == set()
