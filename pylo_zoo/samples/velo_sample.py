"""Writes the checkpoint ``velo-sample``: VeLO's weights set by hand, for a known rule. Nothing is trained.

    python -m pylo_zoo.samples.velo_sample [DIR]

The rule that these weights spell, in VeLO's own terms (SPEC §4):

- direction: the momenta of decays 0.9 and 0.99, each over the root of the second moment and normalised to RMS 1. The
  LSTM's controls lean on the faster one early in the run and on the slower one later.
- step size: ``lr_mult`` falls along the run in five soft stairs, and is larger for vectors and scalars, whose values
  often start at zero. VeLO itself makes it relative to the parameter's RMS.
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
"""The constant of Google's class, by which the written weights are multiplied."""

PEAK, VECTOR_BONUS = 4.0, 4.0
"""``lr_mult`` at the start, and what vectors and scalars have on top: of five pairs tried on the digits, a good one."""
STAIRS = {3: 0.2, 4: 0.25, 5: 0.25, 6: 0.15, 7: 0.15}
"""Weight of the fall at each of the fractions 0.4, 0.6, 0.8, 0.9 and 1.0 (by index into the fraction features)."""
TURN, LEAN = 3, 0.5
"""The fraction feature around which the controls turn from one momentum to the other, and by how much."""

FRACTIONS = slice(0, 9)
RANK_0_AND_1 = slice(19, 21)
"""Where the LSTM's inputs hold the fraction features and the one-hot of scalars and vectors."""
SMALL = 0.1
"""Inputs enter the LSTM this small, where tanh is all but linear."""
SHUT, OPEN = -20.0, 20.0
"""Pre-activations of a gate that stays shut or open."""
SLOPE = float(np.tanh(np.tanh(SMALL)))
"""What a fraction feature of 1 comes out of the LSTM as."""
GATED = 9
"""The units from here on repeat the first nine for vectors and scalars only; the last of them is a constant."""


def tensors() -> dict[str, np.ndarray]:
    """The weights, by the names of :class:`pylo_zoo.nets.VeLONet`, float32."""
    weights = {
        name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(FAMILIES["velo"], ARCHITECTURE).items()
    }
    _lstm(weights)
    _step_size(weights)
    _mlp(weights)
    return weights


def _lstm(weights: dict[str, np.ndarray]) -> None:
    """Units 0 to 8 carry the fraction features, without memory; 9 to 18 the same and a 1, if the rank is under 2."""
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
    """``peak · Σ weight·(1 − φ)/2`` over the stairs, for every tensor, and once more for vectors and scalars."""
    row, bias = weights["controller.step_size.weight"][0], weights["controller.step_size.bias"]
    for feature, share in STAIRS.items():
        row[feature] = -PEAK * share / 2 / SLOPE
        row[GATED + feature] = -VECTOR_BONUS * share / 2 / SLOPE
    bias[0] = PEAK / 2
    row[GATED + 9] = VECTOR_BONUS / 2 / SLOPE


def _mlp(weights: dict[str, np.ndarray]) -> None:
    """Hidden units: positive and negative parts of either momentum. Half of the bank outputs one, half the other."""
    half = ARCHITECTURE.param_inits // 2
    weights["controller.controls.bias"][:] = 1
    weights["controller.controls.weight"][:half, TURN] = -LEAN / SLOPE
    weights["controller.controls.weight"][half:, TURN] = LEAN / SLOPE

    fast, slow = 7, 8  # channels of the momenta of decays 0.9 and 0.99 over the root of the second moment
    first, second, output = (weights[f"mlp.layers.{k}.weight"] for k in range(3))
    for unit, (channel, sign) in enumerate([(fast, 1), (fast, -1), (slow, 1), (slow, -1)]):
        first[:, unit, channel] = sign / FF_MULT
        second[:, unit, unit] = 1 / FF_MULT
        bank = slice(None, half) if channel == fast else slice(half, None)
        output[bank, 0, unit] = sign / FF_MULT


def main(folder: Path) -> None:
    """Write ``params`` and ``config.gin`` into ``folder``, as Google publishes VeLO."""
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
