"""Writes the checkpoint ``velo-sample``: VeLO with weights that are set by hand, not trained.

    python -m pylo_zoo.samples.velo_sample [DIR]

The weights implement this rule, in VeLO's terms (SPEC §4):

- direction: the momenta with decays 0.9 and 0.99, each divided by the root of the second moment and normalized to RMS
  1. The LSTM's controls favor the faster one early in the run and the slower one later.
- step size: ``lr_mult`` decreases along the run in five smooth steps. It is larger for vectors and scalars, whose
  values often start at zero. VeLO makes it relative to the parameter's RMS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pylo_zoo import formats
from pylo_zoo.config import HyperNetArchitecture
from pylo_zoo.converters import FAMILIES, to_jax
from pylo_zoo.converters.base import tensor_shapes

ARCHITECTURE = HyperNetArchitecture(lstm_hidden_size=64, param_inits=32, ff_hidden_size=4, ff_hidden_layers=2)
"""The sizes of velo-s."""
FF_MULT = 100.0
"""The constant of Google's class that multiplies the generated weights."""

PEAK, VECTOR_BONUS = 4.0, 4.0
"""Initial ``lr_mult``, and the addition for vectors and scalars. Chosen from five pairs tried on the digits."""
STAIRS = {3: 0.2, 4: 0.25, 5: 0.25, 6: 0.15, 7: 0.15}
"""Share of the decrease at the fractions 0.4, 0.6, 0.8, 0.9 and 1.0, by index of the fraction feature."""
TURN, LEAN = 3, 0.5
"""The fraction feature at which the controls switch from one momentum to the other, and the size of the switch."""

FRACTIONS = slice(0, 9)
RANK_0_AND_1 = slice(19, 21)
"""The LSTM's inputs for the fraction features, and for the one-hot of scalars and vectors."""
SMALL = 0.1
"""Scale of the LSTM's inputs, for which tanh is almost linear."""
SHUT, OPEN = -20.0, 20.0
"""Pre-activations of a closed and of an open gate."""
SLOPE = float(np.tanh(np.tanh(SMALL)))
"""The LSTM's output for a fraction feature of 1."""
GATED = 9
"""The first of ten units for vectors and scalars only: a copy of the first nine units, and a constant."""


def tensors() -> dict[str, np.ndarray]:
    """The float32 weights, with the names of :class:`pylo_zoo.nets.VeLONet`."""
    weights = {
        name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(FAMILIES["velo"], ARCHITECTURE).items()
    }
    _lstm(weights)
    _step_size(weights)
    _mlp(weights)
    return weights


def _lstm(weights: dict[str, np.ndarray]) -> None:
    """Units 0 to 8 hold the fraction features, without memory. Units 9 to 18 hold them and a 1 if the rank is < 2."""
    hidden = ARCHITECTURE.lstm_hidden_size
    units = np.arange(9)
    constant = GATED + 9
    direct = weights["controller.direct.weight"]
    direct[units, np.arange(64)[FRACTIONS]] = SMALL
    direct[GATED + units, np.arange(64)[FRACTIONS]] = SMALL
    indicator = constant + 1
    direct[indicator, RANK_0_AND_1] = 1
    weights["controller.direct.bias"][constant] = SMALL

    lstm, bias = weights["controller.lstm.weight"], weights["controller.lstm.bias"]
    i, g, f, o = (slice(k * hidden, (k + 1) * hidden) for k in range(4))
    bias[i], bias[f], bias[o] = OPEN, SHUT, OPEN
    lstm[g, :hidden] = np.eye(hidden)
    bias[i][GATED : constant + 1] = SHUT
    lstm[i, indicator][GATED : constant + 1] = OPEN - SHUT


def _step_size(weights: dict[str, np.ndarray]) -> None:
    """``peak · Σ share·(1 − φ)/2`` over the stairs, for every tensor, plus the same for vectors and scalars."""
    row, bias = weights["controller.step_size.weight"][0], weights["controller.step_size.bias"]
    for feature, share in STAIRS.items():
        row[feature] = -PEAK * share / 2 / SLOPE
        row[GATED + feature] = -VECTOR_BONUS * share / 2 / SLOPE
    bias[0] = PEAK / 2
    row[GATED + 9] = VECTOR_BONUS / 2 / SLOPE


def _mlp(weights: dict[str, np.ndarray]) -> None:
    """Hidden units: positive and negative parts of both momenta. Half of the bank outputs one, half the other."""
    half = ARCHITECTURE.param_inits // 2
    weights["controller.controls.bias"][:] = 1
    weights["controller.controls.weight"][:half, TURN] = -LEAN / SLOPE
    weights["controller.controls.weight"][half:, TURN] = LEAN / SLOPE

    fast, slow = 7, 8  # channels of the momenta with decays 0.9 and 0.99, over the root of the second moment
    first, second, output = (weights[f"mlp.layers.{k}.weight"] for k in range(3))
    for unit, (channel, sign) in enumerate([(fast, 1), (fast, -1), (slow, 1), (slow, -1)]):
        first[:, unit, channel] = sign / FF_MULT
        second[:, unit, unit] = 1 / FF_MULT
        bank = slice(None, half) if channel == fast else slice(half, None)
        output[bank, 0, unit] = sign / FF_MULT


def main(folder: Path) -> None:
    """Write ``params`` and ``config.gin`` to ``folder``, in the format of Google's VeLO."""
    leaves = to_jax(FAMILIES["velo"], tensors(), ARCHITECTURE)
    layout = {
        "container": "flax-params",
        "keys": ["params", "gen_id", "step"],
        "header": {"gen_id": "hand-set, not trained", "step": 0},
        "leaves": [list(path) for path in sorted(leaves)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params").write_bytes(formats.write(leaves, layout))
    (folder / "config.gin").write_text(
        "# velo-sample: hand-set, not trained. Written by pylo_zoo/samples/velo_sample.py.\n"
        f"HyperV2.lstm_hidden_size = {ARCHITECTURE.lstm_hidden_size}\n"
        f"HyperV2.param_inits = {ARCHITECTURE.param_inits}\n"
        "HyperV2.use_bugged_loss_features = False\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "velo-sample")
