"""Files in PyLO's naming (SPEC §8), built from theta trees by hand, without the package's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from trees import Leaves

Tensors = dict[str, np.ndarray]

GROUPS = 14


def velo_rnn(theta: Leaves) -> Tensors:
    result = {
        "lstm_init_state.0": theta["lstm_init_state", "hidden"],
        "lstm_init_state.1": theta["lstm_init_state", "cell"],
    }
    for theirs, ours in (
        ("mix_layer1", "linear"),
        ("mix_layer2", "linear_1"),
        ("final_mix_layer", "linear_2"),
        ("lstm.linear", "rnn/linear"),
        ("rnn_to_controls", "rnn_to_controls"),
        ("step_size", "step_size"),
    ):
        result[f"{theirs}.weight"] = theta["rnn_params", ours, "w"].T
        result[f"{theirs}.bias"] = theta["rnn_params", ours, "b"]
    return contiguous(result)


def velo_mlp(theta: Leaves) -> Tensors:
    def leaf(name: str) -> np.ndarray:
        return theta["ff_mod_stack", "~", name]

    first = np.concatenate([leaf(f"w0__{k}") for k in range(GROUPS)], axis=1)  # [inits, 30, 4]
    result = {
        "input_weights_": first.transpose(0, 2, 1),
        "input_bias_": leaf("b0"),
        "hidden_weights_.0": leaf("w1").transpose(0, 2, 1),
        "hidden_bias_.0": leaf("b1"),
        "output_weights_": leaf("w2").transpose(0, 2, 1),
        "output_bias_": leaf("b2"),
    }
    scratch = {name.replace("_.", ".").removesuffix("_"): 7 * tensor[0] for name, tensor in result.items()}
    return contiguous(result | scratch)


def celo2(theta: Leaves) -> Tensors:
    def leaf(name: str) -> np.ndarray:
        return theta["ff_mod_stack", "~", name]

    result = {f"w0.{k}": leaf(f"w0__{k}") for k in range(GROUPS)} | {"b0": leaf("b0")}
    j = 0
    while ("ff_mod_stack", "~", f"w{j + 1}") in theta:
        result |= {f"dense_w.{j}": leaf(f"w{j + 1}"), f"dense_b.{j}": leaf(f"b{j + 1}")}
        j += 1
    return contiguous(result)


def network(theta: Leaves) -> Tensors:
    """ELO and μLO, with two hidden layers."""
    results = {}
    for i, layer in enumerate(("input", "linear_0", "output")):
        results[f"network.{layer}.weight"] = theta["nn", "~", f"w{i}"].T
        results[f"network.{layer}.bias"] = theta["nn", "~", f"b{i}"]
    return contiguous(results)


FILES = {"celo2": celo2, "celo2-base": celo2, "elo-celo2": celo2, "elo": network, "mulo": network}
"""Family to the content of PyLO's single file."""


def contiguous(tensors: Tensors) -> Tensors:
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write(directory: Path, family: str, theta: Leaves) -> Path:
    """Write PyLO's file of ``theta``, or the directory of its two files."""
    if family != "velo":
        path = directory / "model.safetensors"
        save_file(FILES[family](theta), path)
        return path
    for name, tensors in (("VeLO_RNN", velo_rnn(theta)), ("VeLO_MLP", velo_mlp(theta))):
        (directory / "pylo" / name).mkdir(parents=True)
        save_file(tensors, directory / "pylo" / name / "model.safetensors")
        (directory / "pylo" / name / "README.md").write_text("of no interest")
    return directory / "pylo"
